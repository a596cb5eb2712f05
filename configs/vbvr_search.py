"""Does choosing among early estimates help on VBVR-Bench, at equal compute?

    jcos bench run configs/vbvr_search.py --samples VBVR-Bench-Data --checkpoint wan-vbvr \
      --mesh branch=2,context=4
    jcos bench score out/vbvr/{base,ensemble,search,chance,longer} --samples VBVR-Bench-Data \
      --scorer …

`search`: four seeds begin, and after step 31 of 50 the one nearest to the others goes on alone: 286
forwards a video (base: 100, the paper's ensemble: 104). Its controls take as many: `chance` chooses
at random, `longer` is one run of 143 steps. `latsearch` resamples three times, as published, and
takes at most 226. Arms of the paper are in `vbvr_base.py` and `vbvr_ensemble.py`.

Judge and step were chosen on the small model (docs/search.md); no arm was run at full size. The
first 31 steps make eight passes at once (`jcos plan --seeds 4`).
"""

from jcos.bench.arm import Arm
from jcos.experiments.experiment import Settings
from jcos.lab.methods import epbs, latsearch

LONGER = Settings(steps=143, shift=5.0, solver="euler", guidance=(5.0,))

arms = {
    "search": Arm(search=epbs(4, "agreement", at=0.6)),
    "chance": Arm(search=epbs(4, "random", at=0.6)),
    "longer": Arm(sampling=LONGER),
    "latsearch": Arm(search=latsearch(4, "decided")),
}
