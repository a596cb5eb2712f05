"""Experiments from files, and changes to them as text: `puzzles=64`, `sampling.steps=10`."""

import contextlib
import dataclasses
import difflib
import inspect
import io
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from jcos.experiments.experiment import Experiment
from jcos.files import check_python, local_path

T = TypeVar("T")


def names_in(file: Path) -> dict[str, Any]:
    """Return what a Python file sets, by name. Raises ValueError where it is none, or where it
    raises anything itself: with the line."""
    check_python(local_path(file))
    try:
        return runpy.run_path(str(file))
    except Exception as error:  # noqa: BLE001 - the file may hold any mistake
        frames = traceback.extract_tb(error.__traceback__)
        line = [frame.lineno for frame in frames if frame.filename == str(file)][-1]
        why = str(error).partition("\n")[0][:300]
        raise ValueError(f"{file}, line {line}: {type(error).__name__}: {why}") from None


def load_experiment(file: Path) -> Experiment:
    """Return the `experiment` of a Python file. Raises ValueError where there is none."""
    names = names_in(file)
    experiment = names.get("experiment")
    if not isinstance(experiment, Experiment):
        hint = "it must set `experiment = …`"
        hint = f"its arms run with `jcos bench run {file.stem}`" if "arms" in names else hint
        raise ValueError(f"{file} describes no experiment: {hint}")
    return experiment


def override(experiment: T, changes: Sequence[str]) -> T:
    """Return a copy with fields changed as `field=value` or `field.field=value`, typed as they are.

    Tuples are written `0,1,2`, no value `none`. Raises ValueError for a field that does not exist,
    naming those that do, and for a value of another type.
    """
    for change in changes:
        name, equals, text = (part.strip() for part in change.partition("="))
        if not equals:
            raise ValueError(f"{change!r} changes nothing; write field=value")
        hints = dict(_fields(experiment))
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint, of = f"did you mean {near[0]}? " if near else "", type(experiment).__name__
            raise ValueError(f"{of} has no field {name!r}; {hint}it has {', '.join(hints)}")
        experiment = _replaced(experiment, name.split("."), _read(name, text, hints[name]))
    return experiment


def _fields(owner: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and types, of the dataclasses within it too."""
    hints = get_type_hints(type(owner))
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{above}{field.name}.")
        else:
            yield above + field.name, hints[field.name]


def _replaced(owner: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    if rest:
        value = _replaced(getattr(owner, first), rest, value)
    return dataclasses.replace(owner, **{first: value})


def _read(name: str, text: str, hint: Any) -> Any:
    kind = inspect.formatannotation(hint)
    if Path in (hint, *get_args(hint)):
        local_path(text)
    words = [word.strip() for word in text.split(",")] if "tuple[" in kind else [text]
    if type(None) in get_args(hint) or hint is bool:
        words = [word.capitalize() if word in ("none", "true", "false") else word for word in words]
    config, words = (tyro.conf.FlagConversionOff,), [word for word in words if word]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            value = tyro.cli(hint, args=words, config=config, add_help=False)
    except SystemExit:
        raise ValueError(f"{name}={text} does not fit: {name} is {kind}") from None
    return local_path(text) if isinstance(value, Path) else value
