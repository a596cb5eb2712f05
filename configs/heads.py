"""Which heads carry the route, the agent, the walls; and does one layer decide, seen by heads?

    jcos run configs/heads.py

14 minutes on a busy machine (2 × x86_64 CPU, shared, 2026-11-30).
"""

from jcos.experiments.experiment import Settings
from jcos.experiments.heads import Heads

experiment = Heads(sampling=Settings(steps=10))
