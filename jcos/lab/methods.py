"""What a search does, as data: rows that say after which step which judge is asked, and who goes on
how. The published methods; the choice by scores; and what is refused before anything runs.

Sources: EPBS 2603.30043, LatSearch 2603.14526, Feynman–Kac steering 2501.06848, Early-Failure
2603.14320, TBS 2606.13861, EvoSearch 2505.17618.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from jcos.config import STOCHASTIC, Sampling, WanConfig
from jcos.sampling.probes import Noise, Probe, parts

Select = Literal["top", "threshold", "multinomial", "systematic"]
Transform = Literal["raw", "diff", "max", "sum", "softmax"]
Copy = Literal["key", "mutate", "renoise", "prefix", "chain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is done after a step.

    step: 0 first, −1 the last; a fraction is of the run. judge: by name. keep: how many go on.
    select: the best (`top`); those that reach `least` (`threshold`), of which one is searched for
    among fresh seeds, up to `tries` in all rows together, which have to pass the rows before too,
    and the best one of those that came so far goes on where there is none; or drawn by
    weight, only where the effective sample size is below `ess` of the particles, each at most once
    where `distinct`.
    transform: what ranks: the score, its largest so far (max), its sum, or the sum of its shares
    (softmax). Log-weights grow by scale × that of this row (diff: by its change; softmax: as raw);
    the last row makes up for what rows before it added, but for diff, which adds up by itself.
    stop: score from which on a particle goes on alone, and later rows are left out.
    copies: how many particles go on, the kept ones in turn. copy: copies get fresh keys (`key`),
    their noise is renewed at its level (`mutate`) or all go back to the end of an earlier step
    (`renoise`, back), by `strength`, 0..1; or all begin anew with the first `frames` latent frames
    of the best (`prefix`), or begin the next clip, with its last ones (`chain`).
    """

    step: int | float
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

    def at(self, steps: int) -> int:
        """Return its step of a run of so many."""
        if isinstance(self.step, float):
            return min(steps - 1, int(self.step * steps)) if 0 <= self.step <= 1 else -1
        return self.step + steps if self.step < 0 else self.step

    @property
    def count(self) -> int:
        """How many particles go on, at most."""
        return max(self.keep, self.copies or 0)


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


# ---- methods that were published, and controls

CALIBRATED = (-math.inf,) * 5 + (-3.7, -2.5, -2.4, -1.0, -0.5)
"""For `calibrated`."""


def best_of(seeds: int = 8, judge: str = "decided", *, steps: int | None = None) -> Method:
    """All seeds run to the end, the best one is chosen; with fewer steps each, "fewer steps, more
    seeds"."""
    return Method(rows=(Row(step=-1, judge=judge),), seeds=seeds, steps=steps)


def epbs(
    seeds: int = 8, judge: str = "decided", *, at: float = 0.6, keep: int = 1, **settings: Any
) -> Method:
    """Early screening: the best seeds at one early step go on, the best of them is chosen."""
    rows = [Row(step=at, judge=judge, keep=keep)]
    rows += [Row(step=-1, judge=judge)] * (keep > 1)
    return Method(rows=tuple(rows), seeds=seeds, **settings)


def latsearch(
    seeds: int = 6,
    judge: str = "decided",
    *,
    at: Sequence[float] = (0.2, 0.3, 0.4),
    scale: float = 1.0,
    spread: float = 0.1,
) -> Method:
    """Resampling without copies at some steps; at the last of them the largest sum of shares goes
    on alone."""
    common: dict[str, Any] = {"judge": judge, "transform": "softmax", "scale": scale}
    drawn = {"select": "multinomial", "distinct": True, "keep": seeds}
    rows = [Row(step=step, **drawn, **common) for step in at[:-1]]
    return Method(rows=(*rows, Row(step=at[-1], **common)), seeds=seeds, spread=spread)


def smc(
    seeds: int = 8,
    judge: str = "decided",
    *,
    at: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    scale: float = 1.0,
    transform: Transform = "diff",
    ess: float = 0.5,
    eta: float = 1 / 3,
) -> Method:
    """Feynman–Kac steering: particles are resampled by weight towards exp(scale × final score), and
    one is drawn at the end."""
    common: dict[str, Any] = {"judge": judge, "transform": transform, "scale": scale}
    rows = [Row(step=s, keep=seeds, select="systematic", ess=ess, **common) for s in at]
    last = Row(step=-1, select="multinomial", **common)
    return Method(rows=(*rows, last), seeds=seeds, eta=eta)


def early_failure(
    tries: int = 8, judge: str = "decided", *, at: float = 0.8, least: float = -0.8
) -> Method:
    """One seed runs; where its estimate fails at an early step another one begins. least: by
    default what suits `decided` on training mazes of 7 × 7 cells, in 10 steps."""
    row = Row(step=at, judge=judge, select="threshold", least=least, tries=tries - 1)
    return Method(rows=(row,), seeds=1)


def calibrated(
    tries: int = 8, judge: str = "decided", *, least: Sequence[float] = CALIBRATED
) -> Method:
    """One seed runs; as soon as its chance of success falls below what a new one is worth, another
    one begins. least: the score after each step below which that is so (`calibration.stop`; −inf:
    never); by default what suits `decided` on training mazes of 7 × 7 cells, in 10 steps."""
    common: dict[str, Any] = {"judge": judge, "select": "threshold", "tries": tries - 1}
    rows = [
        Row(step=(step + 0.5) / len(least), least=score, **common)
        for step, score in enumerate(least)
        if score > -math.inf
    ]
    return Method(rows=tuple(rows) or (Row(step=-1, judge=judge),), seeds=1)


def tbs(seeds: int = 4, judge: str = "decided", *, frames: Sequence[int] = (2,)) -> Method:
    """Restarts in time: the best run's first latent frames are where all begin anew, again and
    again with more of them. For models that are given frames."""
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
    "threshold": early_failure,
    "tbs": tbs,
    "chain": chain_clips,
    "evosearch": evosearch,
}
"""By name; all take how many seeds (or tries) and a judge."""


# ---- who goes on


class Population:
    """What is known of W × K particles, apart from their latents; arrays [W, K].

    alive: which are particles, and which fill up a row. log_weight: never lost, but where
    particles are drawn by weight, when its mean goes into log_norm [W], the log of the estimated
    mean of exp(scale × score). rank: what the last row went by.
    """

    def __init__(self, worlds: int, count: int, seeds: Sequence[int]):
        shape = (worlds, count)
        self.alive = np.ones(shape, bool)
        self.log_weight, self.tilt, self.total, self.rank = np.zeros((4, *shape))
        self.best = np.full(shape, -np.inf)
        self.fresh, self.tried = count, np.zeros(worlds, int)
        self.log_norm, self.done = np.zeros(worlds), np.zeros(worlds, bool)
        self.rngs = [np.random.default_rng((seed % 2**64, 1)) for seed in seeds]

    FIELDS = ("alive", "log_weight", "tilt", "total", "rank", "best")

    @property
    def weights(self) -> Float[np.ndarray, "W K"]:
        """Return the share of each particle."""
        logs = np.where(self.alive, self.log_weight, -np.inf)
        shares = np.exp(logs - logs.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    @property
    def ess(self) -> Float[np.ndarray, " W"]:
        """Return the effective sample size of each world's weights."""
        return 1 / np.square(self.weights).sum(1)

    def weigh(self, row: Row, scores: Float[np.ndarray, "W K"], *, last: bool) -> None:
        """Take up the scores of a row."""
        scores = np.where(self.alive, scores, 0.0)
        self.best = np.maximum(self.best, scores)
        shares = np.where(self.alive, row.scale * scores, -np.inf)
        shares = np.exp(shares - shares.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        self.total = self.total + (shares if row.transform == "softmax" else scores)
        ranks = {"max": self.best, "sum": self.total, "softmax": self.total}
        self.rank = ranks.get(row.transform, scores)
        potential = row.scale * (scores if row.transform == "softmax" else self.rank)
        growth = potential - self.tilt if last or row.transform == "diff" else potential
        self.tilt, self.log_weight = self.tilt + growth, self.log_weight + growth

    @property
    def begun(self) -> Int[np.ndarray, " W"]:
        """Return how many seeds have begun in each world."""
        return self.fresh * (1 + self.tried)

    def begin(self, worlds: Bool[np.ndarray, " W"]) -> None:
        """Count a try of fresh seeds in some worlds."""
        self.tried = self.tried + worlds

    def lacking(self, row: Row, scores: Float[np.ndarray, "W K"]) -> Bool[np.ndarray, " W"]:
        """Return the worlds in which no particle reaches a threshold, and tries are left."""
        passing = (self.alive & (scores >= row.least)).any(1)
        return ~passing & ~self.done & (self.tried < row.tries)

    def join(self, alive: Bool[np.ndarray, "W fresh"]) -> None:
        """Take up fresh particles."""
        for name in self.FIELDS:
            fresh = np.full(alive.shape, -np.inf if name == "best" else 0.0)
            fresh = alive if name == "alive" else fresh
            setattr(self, name, np.concatenate([getattr(self, name), fresh], 1))

    def select(
        self, row: Row, scores: Float[np.ndarray, "W K"], *, last: bool = False, multiple: int = 1
    ) -> Int[np.ndarray, "W k"]:
        """Return who goes on, by position; rows are filled up with their first one to an equal
        length, a multiple of `multiple`."""
        self.weigh(row, scores, last=last)
        chosen = [self._chosen(w, row, scores) for w in range(len(scores))]
        width = -(-max(map(len, chosen)) // multiple) * multiple
        which = np.array([(c + c[:1] * width)[:width] for c in chosen])
        for name in self.FIELDS:
            setattr(self, name, np.take_along_axis(getattr(self, name), which, 1))
        self.alive = np.arange(width) < np.array([[len(c)] for c in chosen])
        return which

    def _chosen(self, world: int, row: Row, scores: Float[np.ndarray, "W K"]) -> list[int]:
        alive = np.flatnonzero(self.alive[world])
        if self.done[world]:
            return alive.tolist()
        order = alive[np.argsort(-self.rank[world, alive], kind="stable")]
        if scores[world, alive].max() >= row.stop:
            self.done[world] = True
            return [int(alive[scores[world, alive].argmax()])]
        if row.select == "top":
            chosen = order[: row.keep]
        elif row.select == "threshold":
            passing = order[scores[world, order] >= row.least]
            chosen = passing[: row.keep] if len(passing) else order[:1]
        else:
            chosen = self._drawn(world, row, alive)
        chosen = list(dict.fromkeys(chosen.tolist())) if row.distinct else chosen.tolist()
        return [chosen[i % len(chosen)] for i in range(max(len(chosen), row.copies or 0))]

    def _drawn(self, world: int, row: Row, alive: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
        logs, share = self.log_weight[world, alive], self.weights[world, alive]
        if row.ess < 1 and self.ess[world] >= row.ess * len(alive) and row.keep == len(alive):
            return alive
        self.log_norm[world] += np.log(np.mean(np.exp(logs - logs.max()))) + logs.max()
        self.log_weight[world] = 0.0
        rng = self.rngs[world]
        if row.select == "multinomial":
            return rng.choice(alive, row.keep, p=share)
        points = (rng.random() + np.arange(row.keep)) / row.keep
        return alive[np.minimum(np.searchsorted(np.cumsum(share), points), len(alive) - 1)]


# ---- refusals


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


def check(
    method: Method,
    config: WanConfig,
    sampling: Sampling,
    names: Sequence[str],
    frames: int,
    probe: Probe,
) -> None:
    """Raise ValueError, in one sentence, for a method that cannot be run on a model: with these
    judges, this sampling, so many latent frames and this probe."""
    alive, before, steps = method.seeds, -1, sampling.steps
    if method.seeds < 1 or not 0 < method.spread <= 1:
        raise ValueError(
            f"a search of {method.seeds} seeds and spread {method.spread} is none: at least 1 "
            "seed, a spread above 0 and up to 1"
        )
    random = (sampling.solver in STOCHASTIC and sampling.eta != 0) or _draws(probe)
    for number, row in enumerate(method.rows):
        at, here = row.at(steps), f"row {number} (after step {row.step:g})"
        for name, kind in (("select", Select), ("transform", Transform), ("copy", Copy)):
            if getattr(row, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{here}: {name} is {getattr(row, name)!r}; there are {known}")
        if not before <= at < steps or at < 0:
            raise ValueError(f"{here} comes after step {before}; rows go forwards, to {steps - 1}")
        if row.judge not in names:
            raise ValueError(f"{here}: there is no judge {row.judge!r}; there are {sorted(names)}")
        if not 1 <= row.keep <= alive:
            raise ValueError(f"{here} keeps {row.keep} of {alive} particle(s)")
        if row.tries and (
            row.select != "threshold" or (number and not method.rows[number - 1].tries)
        ):
            raise ValueError(
                f"{here}: fresh seeds are tried by a threshold, in the first row or in one that "
                "follows such rows"
            )
        drawn = row.select in ("multinomial", "systematic") and not row.distinct
        if drawn and row.ess < 1 and row.keep < alive:
            raise ValueError(f"{here}: ess leaves {alive} particles as they are; keep them all")
        copied = row.count > row.keep or (drawn and row.keep > 1)
        if copied and row.copy == "key" and not random:
            raise ValueError(
                f"{here} copies particles, and nothing parts the copies: give the method eta, or "
                "the row a copy that draws (mutate, renoise)"
            )
        before, alive = at, row.count
        if row.copy in ("mutate", "renoise") and not 0 < row.strength <= 1:
            raise ValueError(
                f"{here}: strength is {row.strength}; {row.copy} needs one above 0 and up to 1"
            )
        if row.copy == "renoise":
            if sampling.solver in ("unipc", "dpmpp") or not -1 <= row.back <= at:
                raise ValueError(
                    f"{here}: going back to step {row.back} needs a step up to {at}, and a "
                    f"solver that remembers nothing, like euler (here {sampling.solver})"
                )
            before = row.back
        if row.copy in ("prefix", "chain"):
            if config.image == "none":
                raise ValueError(
                    f"{here}: {config.name} makes videos of a text alone; a {row.copy} needs a "
                    "model that is given frames (I2V, TI2V)"
                )
            least = 1 if row.copy == "chain" else 2
            if (row.keep, row.count) != (1, method.seeds) or not least <= row.frames < frames:
                raise ValueError(
                    f"{here}: a {row.copy} of {row.frames} latent frame(s) of {row.keep} "
                    f"particle(s) for {row.count}; it is {least} to {frames - 1} frames of one, "
                    f"for {method.seeds}"
                )
            before = -1


def _draws(probe: Probe) -> bool:
    """Whether a probe may part copies: it has noise, or is not of this package."""
    inside = parts(probe)
    here = isinstance(probe, Noise) and bool(np.any(probe.mask))
    return here or not type(probe).__module__.startswith("jcos.") or any(map(_draws, inside))
