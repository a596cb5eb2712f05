"""What a search does, as data: rows that say after which step which judge is asked, and who goes on
how. The published methods, by name and with their cost.

Sources: EPBS 2603.30043, LatSearch 2603.14526, Feynman–Kac steering 2501.06848, Early-Failure
2603.14320, TBS 2606.13861, EvoSearch 2505.17618.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, SupportsFloat

from jcos.config import STOCHASTIC, Sampling
from jcos.sampling.interventions import is_fraction, number_of

Select = Literal["top", "threshold", "multinomial", "systematic"]
Transform = Literal["raw", "diff", "max", "sum", "softmax"]
Copy = Literal["key", "mutate", "renoise", "prefix", "chain"]
DRAWN: tuple[Select, ...] = ("multinomial", "systematic")
"""By weight."""
RANKED: dict[Transform, str] = {
    "raw": "",
    "diff": ", by the change of the score",
    "max": ", by the largest score so far",
    "sum": ", by the sum of scores",
    "softmax": ", by the sum of shares",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is done after a step.

    step: 0 first, −1 the last; a fraction is of the run, but where copies get fresh keys never one
    of the last two steps, after which nothing parts them. judge: by name. keep: how many go on.
    select: the best (`top`); those that reach `least` (`threshold`), of which one is searched for
    among fresh seeds, up to `tries` in all rows together, which have to pass the rows before too,
    and the best one of those that came so far goes on where there is none; or drawn by
    weight, only where the effective sample size is below `ess` of the particles; where `distinct`
    as many are drawn as are alive, and of these the best go on, each once.
    transform: what ranks: the score, its largest so far (max), its sum, or the sum of its shares
    (softmax). Log-weights grow by scale × that of this row (diff: by its change; softmax: as raw);
    the last row makes up for what rows before it added, but for diff, which adds up by itself, and
    softmax, whose shares are of one row.
    stop: score from which on a particle goes on alone, and later rows are left out. From such a row
    on, none may go back (`renoise`, `prefix`, `chain`).
    copies: how many particles go on, the kept ones in turn. copy: copies get fresh keys (`key`),
    their noise is renewed at its level (`mutate`) or all go back to the end of an earlier step
    (`renoise`, back), by `strength`, 0..1; or all begin anew with the first `frames` latent frames
    of the best (`prefix`), or begin the next clip, with its last ones (`chain`).
    """

    step: SupportsFloat
    judge: str = "decided"
    keep: int = 1
    select: Select = "top"
    least: float = -math.inf
    tries: int = 0
    ess: float = 1.0
    distinct: bool = False
    transform: Transform = "raw"
    scale: float = 1.0
    stop: float = math.inf
    copies: int | None = None
    copy: Copy = "key"
    strength: float = 0.0
    back: int = 0
    frames: int = 0
    fitted: bool = dataclasses.field(default=False, repr=False, compare=False)

    def at(self, steps: int) -> int:
        """Return its step of a run of so many; one out of range where there is none."""
        number = number_of(self.step, steps)
        if is_fraction(self.step) and number < steps and self.copy == "key" and self.repeats:
            return min(number, max(0, steps - 3))
        return number + steps if number < 0 else number

    @property
    def count(self) -> int:
        """How many particles go on, at most."""
        return max(self.keep, self.copies or 0)

    @property
    def repeats(self) -> bool:
        """Whether a particle may go on more than once."""
        drawn = self.select in DRAWN and not self.distinct
        return self.count > self.keep or (drawn and self.keep > 1)

    @property
    def rule(self) -> str:
        """How it chooses, in a few words."""
        if self.select == "threshold":
            words = f"the best {self.keep} with {self.least:.3g} or more"
            words += f", else one of up to {self.tries} fresh seeds" if self.tries else ""
        elif self.select in DRAWN and self.ess == 0 and not self.distinct:
            words = "all, with their weights"
        elif self.select in DRAWN:
            drawn = f"drawn by weight exp({self.scale:g} × score)"
            best = f"as many {drawn}, of these the best {self.keep}"
            words = best if self.distinct else f"{self.keep} {drawn}"
            words += f", where fewer than {self.ess:.0%} are effective" if self.ess < 1 else ""
        else:
            words = f"the best {self.keep}"
        words += RANKED[self.transform]
        if self.count > self.keep or self.copy != "key":
            words += f", copied ({self.copy}) to {self.count}"
        return words + (
            f"; one with {self.stop:.3g} or more goes on alone" * (self.stop < math.inf)
        )

    def resumes(self, at: int) -> int:
        """Return the step after which particles go on, where the row acts after this one."""
        return {"prefix": -1, "chain": -1, "renoise": self.back}.get(self.copy, at)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Rows, in the order in which they act.

    seeds: particles that begin. steps: of the run, by default the model's own. eta: of Flow-CPS in
    place of the solver Euler, 0..1; a stochastic solver needs none. spread: of the first noises
    about the first particle's, 0..1 (LatSearch's β); 1 are independent seeds.
    """

    rows: tuple[Row, ...]
    seeds: int
    steps: int | None = None
    eta: float = 0.0
    spread: float = 1.0

    def stages(self, steps: int) -> Iterator[tuple[Row, int, int, int]]:
        """Yield every row, after which step of so many it acts, after which one its particles have
        gone on, and how many they are."""
        before, alive = -1, self.seeds
        for row in self.rows:
            at = row.at(steps)
            yield row, at, before, alive
            before, alive = row.resumes(at), row.count

    def spans(self, steps: int) -> Iterator[tuple[int, int, int]]:
        """Yield between which steps, to the end of so many, how many particles run."""
        end = dataclasses.replace(self, rows=(*self.rows, Row(step=-1)))
        yield from ((before, at, alive) for _, at, before, alive in end.stages(steps))


# ---- methods that were published, and controls

CALIBRATED = (-math.inf,) * 5 + (-3.7, -2.5, -2.4, -1.0, -0.5)
LEAST = -0.8
"""For `calibrated` and `early_failure`, fitted to `decided`."""


def _threshold(judge: str, least: Any, fitted: Any) -> Any:
    """Return the threshold of a preset: the fitted one for its judge alone."""
    if least is None and judge != "decided":
        raise ValueError(f"the default threshold suits decided; give least, a score of {judge}")
    return fitted if least is None else least


def best_of(seeds: int = 8, judge: str = "decided", *, steps: int | None = None) -> Method:
    """All seeds run to the end, the best one is chosen; with fewer steps each, "fewer steps, more
    seeds"."""
    return Method(rows=(Row(step=-1, judge=judge),), seeds=seeds, steps=steps)


def epbs(seeds: int = 8, judge: str = "decided", *, at: float = 0.6) -> Method:
    """Early screening: the best seed at one early step goes on alone."""
    return Method(rows=(Row(step=at, judge=judge),), seeds=seeds)


def latsearch(
    seeds: int = 6,
    judge: str = "decided",
    *,
    at: Sequence[float] = (0.2, 0.3, 0.4),
    scale: float = 1.0,
    spread: float = 0.1,
) -> Method:
    """Resampling without copies at some steps; after the last of them the largest sum of shares
    goes on alone."""
    common: dict[str, Any] = {"judge": judge, "transform": "softmax", "scale": scale}
    common |= {"select": "multinomial", "distinct": True}
    rows = [Row(step=step, keep=seeds if step != at[-1] else 1, **common) for step in at]
    return Method(rows=tuple(rows), seeds=seeds, spread=spread)


def smc(
    seeds: int = 8,
    judge: str = "decided",
    *,
    at: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    scale: float = 1.0,
    ess: float = 0.5,
    eta: float = 1 / 3,
) -> Method:
    """Feynman–Kac steering: particles are resampled by weight towards exp(scale × final score), and
    one is drawn at the end."""
    common: dict[str, Any] = {"judge": judge, "transform": "diff", "scale": scale}
    rows = [Row(step=s, keep=seeds, select="systematic", ess=ess, **common) for s in at]
    last = Row(step=-1, select="multinomial", **common)
    return Method(rows=(*rows, last), seeds=seeds, eta=eta)


def early_failure(
    tries: int = 8, judge: str = "decided", *, at: float = 0.8, least: float | None = None
) -> Method:
    """One seed runs; where its estimate fails at an early step another one begins. least: for
    `decided` alone by default what suits training mazes of 7 × 7 cells, in 10 steps."""
    score = float(_threshold(judge, least, LEAST))
    more: dict[str, Any] = {"tries": tries - 1, "fitted": least is None}
    return Method(
        rows=(Row(step=at, judge=judge, select="threshold", least=score, **more),), seeds=1
    )


def calibrated(
    tries: int = 8, judge: str = "decided", *, least: Sequence[float] | None = None
) -> Method:
    """One seed runs; as soon as its chance of success falls below what a new one is worth, another
    one begins. least: the score after each step below which that is so (`calibration.stop`; −inf:
    never); by default as of `early_failure`."""
    scores: Sequence[float] = _threshold(judge, least, CALIBRATED)
    common: dict[str, Any] = {"judge": judge, "select": "threshold", "tries": tries - 1}
    common["fitted"] = least is None
    rows = [
        Row(step=(step + 0.5) / len(scores), least=score, **common)
        for step, score in enumerate(scores)
        if score > -math.inf
    ]
    return Method(rows=tuple(rows) or (Row(step=-1, judge=judge),), seeds=1)


def tbs(seeds: int = 4, judge: str = "decided", *, frames: Sequence[int] = (2,)) -> Method:
    """Restarts in time: the best run's first latent frames are where all begin anew, again and
    again with more of them. For models that are given frames. Unlike the original it does not look
    for the first frame that fails, and begins anew also after a run that is right."""
    rows = [
        Row(step=-1, judge=judge, copies=seeds, copy="prefix", frames=count) for count in frames
    ]
    return Method(rows=(*rows, Row(step=-1, judge=judge)), seeds=seeds)


def chain_clips(
    seeds: int = 4,
    judge: str = "decided",
    *,
    clips: int = 2,
    at: float = 0.6,
    frames: int = 1,
) -> Method:
    """Longer videos, clip by clip: in each the best seed at an early step goes on alone, and the
    next clip begins with its last latent frames. For models that are given frames."""
    screen = Row(step=at, judge=judge)
    change: dict[str, Any] = {"copies": seeds, "copy": "chain", "frames": frames}
    link = (screen, Row(step=-1, judge=judge, **change))
    return Method(rows=(*link * (clips - 1), screen), seeds=seeds)


def evosearch(
    seeds: int = 6,
    judge: str = "decided",
    *,
    at: Sequence[float] = (0.1, 0.4),
    strength: float = 0.5,
) -> Method:
    """The better half goes on at some steps, with mutants of it (scored on estimates, not on
    whole runs as in the original)."""
    change: dict[str, Any] = {"copies": seeds, "copy": "mutate", "strength": strength}
    rows = [Row(step=step, judge=judge, keep=max(1, seeds // 2), **change) for step in at]
    return Method(rows=(*rows, Row(step=-1, judge=judge)), seeds=seeds)


PRESETS: dict[str, Callable[..., Method]] = {
    "best-of": best_of,
    "epbs": epbs,
    "latsearch": latsearch,
    "smc": smc,
    "early-failure": early_failure,
    "calibrated": calibrated,
    "tbs": tbs,
    "chain": chain_clips,
    "evosearch": evosearch,
}
"""By name; all take how many seeds (or tries) and a judge."""

# ---- by name, and what they cost


def named(
    name: str,
    seeds: int,
    judge: str | None,
    judges: Sequence[str],
    least: float | None = None,
) -> Method:
    """Return the method of a preset, or, of a judge, early screening by it.

    judge: of a preset, by default decided. judges: that there are. least: the score that a
    threshold asks for. Raises ValueError, in one sentence, for any other name, and for a threshold
    where the preset has none.
    """
    if name in judges:
        if judge not in (None, name):
            raise ValueError(f"the search {name} is judged by {name}; leave out the judge {judge}")
        name, judge = "epbs", name
    judge, name = judge or "decided", name.replace("_", "-")
    if name not in PRESETS:
        known = ", ".join([*PRESETS, *judges])
        raise ValueError(f"there is no search {name!r}; there are the presets and judges {known}")
    if judge not in judges:
        raise ValueError(f"there is no judge {judge!r}; there are {', '.join(judges)}")
    preset = PRESETS[name]
    if least is None:
        return preset(seeds, judge)
    if preset is not early_failure:
        raise ValueError(f"the search {name} takes no least; {least} is given")
    return preset(seeds, judge, least=least)


def forwards(method: Method, sampling: Sampling) -> int:
    """Return the passes through the transformer that a method takes for a video, at most."""
    steps = method.steps or sampling.steps
    total = sum((at - before) * alive for before, at, alive in method.spans(steps))
    again = max((row.tries * (row.at(steps) + 1) for row in method.rows), default=0)
    return (1 if sampling.guidance is None else 2) * (total + again * method.seeds)


def in_words(method: Method, steps: int) -> str:
    """Return what a method does in a run of so many steps, in one line."""
    steps = method.steps or steps
    return "; ".join(
        f"after step {at + 1} of {steps}, of {alive} by {row.judge}: {row.rule}"
        for row, at, _, alive in method.stages(steps)
    )


def plan_in_words(method: Method, sampling: Sampling) -> str:
    """Return what a method will do and cost, in one line."""
    most, one = forwards(method, sampling), forwards(best_of(1), sampling)
    return (
        f"{in_words(method, sampling.steps)}; at most {most} forwards, {most / one:.1f} times one "
        f"run of {sampling.steps} steps ({one})"
    )


def sampling_of(method: Method, sampling: Sampling) -> Sampling:
    """Return how a method samples. Raises ValueError where it has an eta and the solver is of
    several steps, whose history fresh noise would contradict, or has noise already."""
    if method.steps is not None:
        sampling = dataclasses.replace(sampling, steps=method.steps, sigmas=None)
    if not method.eta or sampling.solver in STOCHASTIC:
        return sampling
    if sampling.solver != "euler":
        raise ValueError(
            f"the method has eta {method.eta:g}, but {sampling.solver} remembers earlier steps, "
            "which fresh noise contradicts: sample with euler"
        )
    return dataclasses.replace(sampling, solver="cps", eta=method.eta)
