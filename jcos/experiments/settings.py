"""Experiments from files, and changes to them as text: `puzzles=64`, `sampling.steps=10`."""

import contextlib
import dataclasses
import difflib
import runpy
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
    """The `experiment` of a Python file. Raises ValueError where there is none."""
    found = names_in(file).get("experiment")
    if not isinstance(found, Experiment):
        raise ValueError(f"{file} describes no experiment: it must set `experiment = …`")
    return found


def override(experiment: T, changes: Sequence[str]) -> T:
    """A copy with fields changed as `field=value` or `field.field=value`, typed as the fields are.

    Tuples are written `0,1,2`, no value `none`. Raises ValueError for a field that does not exist,
    naming those that do, and for a value of another type.
    """
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} changes nothing; write field=value")
        experiment = _changed(experiment, path.strip().split("."), text.strip(), path.strip())
    return experiment


def _changed(owner: Any, path: Sequence[str], text: str, whole: str) -> Any:
    first, *rest = path
    hints = get_type_hints(type(owner))
    fields = [f.name for f in dataclasses.fields(owner)]
    if first not in fields:
        near = difflib.get_close_matches(first, fields, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        name, known = type(owner).__name__, ", ".join(fields)
        raise ValueError(f"{name} has no field {first!r} ({whole}); {hint}it has {known}")
    inner = getattr(owner, first)
    if dataclasses.is_dataclass(inner):
        if not rest:
            names = ", ".join(f"{whole}.{f.name}" for f in dataclasses.fields(inner))
            raise ValueError(f"{whole} has fields of its own; set one of {names}")
        return dataclasses.replace(owner, **{first: _changed(inner, rest, text, whole)})
    if rest:
        raise ValueError(f"{whole}: {first} has no fields of its own")
    try:
        value = _read(text, hints[first])
    except ValueError:
        want = _words(hints[first])
        raise ValueError(f"{whole}={text} does not fit; {first} is {want}") from None
    if isinstance(value, Path):
        value = local_path(text)
    return dataclasses.replace(owner, **{first: value})


def _read(text: str, hint: Any) -> Any:
    """The text as a value of this type; ValueError where it is none."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        # Any text is a path or a str: those are tried last.
        for kind in sorted(kinds, key=(Path, str).__contains__):
            with contextlib.suppress(ValueError):
                return _read(text, kind)
        raise ValueError
    if get_origin(hint) is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(_read(part, kinds[0]) for part in parts)
    known = {str(kind): kind for kind in kinds}  # of a Literal
    if hint is bool:
        known = {"true": True, "false": False}
    elif hint is type(None):
        known = {"none": None}
    elif get_origin(hint) is not Literal:
        return hint(text)
    if text not in known:
        raise ValueError
    return known[text]


def _words(hint: Any) -> str:
    """A type for reading: `a whole number`, `numbers with commas between`, …"""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Path: "a file",
        type(None): "none",
    }
    kinds = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_words, kinds))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, kinds))
    if get_origin(hint) is tuple:
        return f"a list with commas, each {_words(kinds[0])}"
    return names.get(hint, str(hint))
