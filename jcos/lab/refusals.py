"""What a method of search is refused for, before anything runs."""

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from jcos.config import STOCHASTIC, PixelCodec, Sampling, WanConfig
from jcos.lab.methods import Copy, Method, Select, Transform
from jcos.sampling.checks import all_parts
from jcos.sampling.probes import EstimateEnsemble, Noise, Probe, SeedEnsemble


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
    steps, rows = sampling.steps, method.rows
    _refuse(
        method.seeds < 1 or not 0 < method.spread <= 1,
        f"a search of {method.seeds} seeds and spread {method.spread} is none: at least 1 seed, a "
        "spread above 0 and up to 1",
    )
    _refuse(
        any(row.fitted for row in rows) and not isinstance(config.codec, PixelCodec),
        f"the default threshold suits the small model; give least for {config.name}",
    )
    noisy = sampling.solver in STOCHASTIC and sampling.eta != 0
    parting = max(_drawing(probe, steps), steps - 2 if noisy else 0)
    for number, (row, at, before, alive) in enumerate(method.stages(steps)):
        here = f"row {number} (after step {row.step:g})"
        for name, kind in (("select", Select), ("transform", Transform), ("copy", Copy)):
            value, known = getattr(row, name), get_args(kind)
            _refuse(value not in known, f"{here}: {name} is {value!r}; there are {known}")
        _refuse(
            any(map(math.isnan, (row.least, row.stop, row.ess)))
            or row.ess < 0
            or not math.isfinite(row.scale),
            f"{here}: least {row.least}, stop {row.stop}, ess {row.ess} and scale {row.scale} are "
            "to be numbers, ess at least 0 and scale finite",
        )
        _refuse(
            not 0 <= at < steps,
            f"{here}: there is no such step; they are 0 to {steps - 1}, −1 is the last one, and a "
            "fraction is 0.0 to 1.0",
        )
        _refuse(at < before, f"{here} comes after step {before}; rows go forwards")
        unknown = f"{here}: there is no judge {row.judge!r}; there are {sorted(names)}"
        _refuse(row.judge not in names, unknown)
        _refuse(
            not 1 <= row.keep <= alive or (row.copies is not None and row.copies < row.keep),
            f"{here} keeps {row.keep} of {alive} particle(s), with copies {row.copies}",
        )
        untried = number > 0 and not rows[number - 1].tries
        _refuse(
            row.tries < 0 or (row.tries > 0 and (row.select != "threshold" or untried)),
            f"{here}: tries {row.tries} of fresh seeds are made by a threshold, in the first row "
            "or in one that follows such rows",
        )
        given, stops = row.copy in ("prefix", "chain"), [r.stop for r in rows[: number + 1]]
        _refuse(
            (given or row.copy == "renoise") and min(stops) < math.inf,
            f"{here}: a {row.copy} would lose a particle that stops; leave out the stop",
        )
        ends = at == steps - 1 and row.count == row.keep  # equal weights, the same video twice
        _refuse(
            row.repeats and row.copy == "key" and at >= parting and not ends,
            f"{here} copies particles, and nothing parts the copies: give the method eta and the "
            "row a step before the last two, or a copy that draws (mutate, renoise)",
        )
        _refuse(
            row.copy in ("mutate", "renoise") and not 0 < row.strength <= 1,
            f"{here}: strength is {row.strength}; {row.copy} needs one above 0 and up to 1",
        )
        remembers = row.copy == "renoise" and sampling.solver in ("unipc", "dpmpp")
        _refuse(
            remembers or not -1 <= row.back <= at,
            f"{here}: going back to step {row.back} needs a step up to {at}, and a solver that "
            f"remembers nothing, like euler (here {sampling.solver})",
        )
        _refuse(
            given and config.image == "none",
            f"{here}: {config.name} makes videos of a text alone; a {row.copy} needs a model that "
            "is given frames (I2V, TI2V)",
        )
        least = 1 if row.copy == "chain" else 2
        _refuse(
            given
            and ((row.keep, row.count) != (1, method.seeds) or not least <= row.frames < frames),
            f"{here}: a {row.copy} of {row.frames} latent frame(s) of {row.keep} particle(s) for "
            f"{row.count}; it is {least} to {frames - 1} frames of one, for {method.seeds}",
        )
    masks = (p.mask for p in all_parts(probe) if isinstance(p, SeedEnsemble | EstimateEnsemble))
    averaged = {int(step) for mask in masks for step in np.nonzero(np.asarray(mask))[0]}
    for before, at, alive in method.spans(steps):
        alone = averaged & {*range(before + 1, at + 1)} if alive == 1 else set()
        words = f"the probe averages over seeds in step {min(alone, default=0)}, where one particle"
        _refuse(bool(alone), f"{words} is left")


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise ValueError(why)


def _drawing(probe: Probe, steps: int) -> int:
    """Return the last step in which a probe may part copies: it has noise there, or is not of this
    package."""
    last = 0
    for part in all_parts(probe):
        if isinstance(part, Noise):
            last = max(last, *np.nonzero(np.asarray(part.mask))[0].tolist(), 0)
        elif not type(part).__module__.startswith("jcos."):
            last = steps - 1
    return last
