"""Small reasoning tasks whose right answers can be listed; `TASKS` holds one of each."""

from jcos.lab.tasks.base import PALETTE as PALETTE
from jcos.lab.tasks.base import Puzzle as Puzzle
from jcos.lab.tasks.base import Score as Score
from jcos.lab.tasks.base import Task as Task
from jcos.lab.tasks.base import Verdict as Verdict
from jcos.lab.tasks.base import Video as Video
from jcos.lab.tasks.base import still_of as still_of
from jcos.lab.tasks.catalogue import TASKS as TASKS
from jcos.lab.tasks.catalogue import chance as chance
from jcos.lab.tasks.catalogue import get as get
