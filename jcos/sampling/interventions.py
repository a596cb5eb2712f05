"""The interventions that every command offers, as data; importing this file imports no jax."""

import dataclasses
import operator
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jcos.sampling.probes import Chain

Place = int | float
"""A step, layer or frame: a whole number counts from 0; a fraction, 0.0 to 1.0, is of the run or of
the depth, so that it suits every model (the paper's layer 20 of 40 is 0.5)."""


def is_fraction(place: Any) -> bool:
    """Return whether a place is a fraction: no integer of Python, numpy or jax."""
    return isinstance(place, Real) and not isinstance(place, Integral)


def number_of(place: Any, size: int) -> int:
    """Return the number of a step, layer or frame; `size` for a fraction outside 0..1."""
    if not is_fraction(place):
        return operator.index(place)
    return min(size - 1, int(float(place) * size)) if 0 <= float(place) <= 1 else size


def places(chosen: Iterable[Any] | None, size: int, what: str) -> list[int]:
    """Return chosen steps, layers or frames as numbers below `size`, ascending, each once; all of
    them for None.

    Raises IndexError for one that does not exist (`what` names it), and says how to name one that
    exists in every model.
    """
    numbers = set()
    for place in range(size) if chosen is None else chosen:
        number = number_of(place, size)
        if not 0 <= number < size:
            raise IndexError(
                f"{what} {place} is out of range: there are {what}s 0 to {size - 1} (a fraction, "
                "0.0 to 1.0, suits every model)"
            )
        numbers.add(number)
    return sorted(numbers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interventions:
    noise_steps: tuple[Place, ...] = ()
    """Replace all frames by noise before these steps (here and below numbers from 0, or fractions
    of the whole, like 0.5)."""
    noise_frames: tuple[Place, ...] = ()
    """Replace these latent frames by noise before every step."""
    ensemble_layers: tuple[Place, ...] = ()
    """Average the tokens of all seeds after these layers …"""
    ensemble_steps: tuple[Place, ...] = (0,)
    """… in these steps."""

    def numbers(self, steps: int, frames: int, layers: int) -> dict[str, list[int]]:
        """Return the places by field, as numbers. Raises IndexError for one that does not exist."""
        sizes = {"steps": steps, "frames": frames, "layers": layers}
        fields = [field.name for field in dataclasses.fields(Interventions)]
        kinds = {name: name.partition("_")[2] for name in fields}
        return {
            name: places(getattr(self, name), sizes[kind], kind.removesuffix("s"))
            for name, kind in kinds.items()
        }

    def probe(self, steps: int, frames: int, layers: int, seeds: int) -> "Chain":
        """Return all interventions in a run of this size, most of them off: one program serves
        every choice.

        Raises ValueError where one seed is to be averaged, or no layer or no step is chosen to do
        it at, and IndexError for a place that does not exist.
        """
        from jcos.sampling.probes import Noise, SeedEnsemble, chain

        if self.ensemble_layers and seeds == 1:
            raise ValueError("ensemble-layers averages over seeds; 1 is given, give at least 2")
        if not (self.ensemble_steps if self.ensemble_layers else self.ensemble_steps == (0,)):
            raise ValueError("ensemble-layers and ensemble-steps go together: give both")
        at = self.numbers(steps, frames, layers)
        on = at["ensemble_steps"] if self.ensemble_layers else ()
        return chain(
            Noise.at_steps(steps, frames, at["noise_steps"])
            | Noise.at_frames(steps, frames, at["noise_frames"]),
            SeedEnsemble.window(steps, layers, on, at["ensemble_layers"]),
        )
