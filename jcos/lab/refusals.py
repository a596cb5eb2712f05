"""What a method of search is refused for, before anything runs."""

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from jcos.config import STOCHASTIC, PixelCodec, Sampling, WanConfig
from jcos.lab.methods import DRAWN, Copy, Method, Select, Transform
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
    steps = sampling.steps
    if method.seeds < 1 or not 0 < method.spread <= 1:
        raise ValueError(
            f"a search of {method.seeds} seeds and spread {method.spread} is none: at least 1 "
            "seed, a spread above 0 and up to 1"
        )
    if any(row.fitted for row in method.rows) and not isinstance(config.codec, PixelCodec):
        raise ValueError(
            f"the default threshold suits the small model; give least for {config.name}"
        )
    stops: int | None = None
    noisy = sampling.solver in STOCHASTIC and sampling.eta != 0
    parting = max(_drawing(probe, steps), steps - 2 if noisy else 0)
    for number, (row, at, before, alive) in enumerate(method.stages(steps)):
        here = f"row {number} (after step {row.step:g})"
        for name, kind in (("select", Select), ("transform", Transform), ("copy", Copy)):
            if getattr(row, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{here}: {name} is {getattr(row, name)!r}; there are {known}")
        if not 0 <= at < steps:
            raise ValueError(
                f"{here}: there is no such step; they are 0 to {steps - 1}, −1 is the last one, "
                "and a fraction is 0.0 to 1.0"
            )
        if at < before:
            raise ValueError(f"{here} comes after step {before}; rows go forwards")
        if row.judge not in names:
            raise ValueError(f"{here}: there is no judge {row.judge!r}; there are {sorted(names)}")
        if not 1 <= row.keep <= alive or (row.copies is not None and row.copies < row.keep):
            of = f"{row.keep} of {alive} particle(s), with copies {row.copies}"
            raise ValueError(f"{here} keeps {of}")
        numbers = row.least, row.stop, row.ess
        if row.tries < 0 or not math.isfinite(row.scale) or np.isnan(numbers).any() or row.ess < 0:
            raise ValueError(
                f"{here}: tries {row.tries}, scale {row.scale}, least {row.least}, stop {row.stop} "
                f"and ess {row.ess} are to be numbers, tries and ess at least 0 and scale finite"
            )
        if row.tries and (
            row.select != "threshold" or (number and not method.rows[number - 1].tries)
        ):
            raise ValueError(
                f"{here}: fresh seeds are tried by a threshold, in the first row or in one that "
                "follows such rows"
            )
        stops = number if stops is None and row.stop < math.inf else stops
        if stops is not None and row.copy in ("prefix", "chain", "renoise"):
            raise ValueError(
                f"{here}: a {row.copy} would lose the particle that stops in row {stops}: leave "
                f"out the stop, or the {row.copy}"
            )
        if row.select in DRAWN and not row.distinct and row.ess < 1 and row.keep < alive:
            raise ValueError(f"{here}: ess leaves {alive} particles as they are; keep them all")
        ends = at == steps - 1 and row.count == row.keep  # equal weights, the same video twice
        if row.repeats and row.copy == "key" and at >= parting and not ends:
            raise ValueError(
                f"{here} copies particles, and nothing parts the copies: give the method eta and "
                "the row a step before the last two, or a copy that draws (mutate, renoise)"
            )
        if row.copy in ("mutate", "renoise") and not 0 < row.strength <= 1:
            raise ValueError(
                f"{here}: strength is {row.strength}; {row.copy} needs one above 0 and up to 1"
            )
        remembers = sampling.solver in ("unipc", "dpmpp")
        if row.copy == "renoise" and (remembers or not -1 <= row.back <= at):
            raise ValueError(
                f"{here}: going back to step {row.back} needs a step up to {at}, and a solver "
                f"that remembers nothing, like euler (here {sampling.solver})"
            )
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
    averaged = _averaged(probe)
    for before, at, alive in method.spans(steps):
        if alive == 1 and (alone := averaged & {*range(before + 1, at + 1)}):
            raise ValueError(
                f"the probe averages over seeds in step {min(alone)}, where one particle is left"
            )


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


def _averaged(probe: Probe) -> set[int]:
    """Return the steps in which a probe averages over seeds."""
    masks = (p.mask for p in all_parts(probe) if isinstance(p, SeedEnsemble | EstimateEnsemble))
    return {int(step) for mask in masks for step in np.nonzero(mask)[0]}
