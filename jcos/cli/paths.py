"""Paths on a command line: one reader for all options, and what each of them is for.

An option's type says whether it is read or written; `parse` checks that before any work is done. A
plain `Path` is read by the same reader and checked no further.
"""

import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import tyro

from jcos import files
from jcos.weights.faults import brief

InFile = Annotated[Path, files.check_file]
InFolder = Annotated[Path, files.check_folder]
InPath = Annotated[Path, files.check_there]


def config_file(named: Path) -> Path:
    """Return the file of a config: a path, or the name of one of the package's (`noise`)."""
    if named.suffix or len(named.parts) != 1 or named.exists():
        return named
    package = Path(__file__).parents[1]
    folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    if named.name not in names:
        near = difflib.get_close_matches(named.name, names, 1)
        hint = f"; is {near[0]} meant?" if near else f": there are {', '.join(names)}"
        raise ValueError(f"there is no config {named.name}{hint}")
    return folder / f"{named.name}.py"


def check_config(named: Path) -> None:
    """Check that it is a Python file, or the name of a config."""
    files.check_python(config_file(named))


def check_task(name: str) -> None:
    """Check that it is a task's name."""
    from jcos.lab.tasks import get

    get(name)


ConfigFile = Annotated[Path, check_config]
TaskName = Annotated[str, check_task]
OutFile = Annotated[Path, files.check_new_file]
OutFolder = Annotated[Path, files.check_new_folder]
CacheFolder = Annotated[Path, files.check_cache]


def parse(prog: str, read: Callable[..., Any], arguments: Sequence[str]) -> Any:
    """Return the options that `read` (of tyro) makes of the arguments, all paths checked.

    Ends in one sentence and exit code 2 where one cannot be used for what it is given for.
    """

    def path(texts: list[str]) -> Path:
        try:
            return files.local_path(texts[0])
        except ValueError as error:  # which tyro would put into a frame
            refuse(prog, error)

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=path,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    options = read(args=arguments, registry=registry)
    try:
        check(options)
    except ValueError as error:
        refuse(prog, error)
    return options


def refuse(prog: str, why: object) -> NoReturn:
    """End the program with one sentence and exit code 2."""
    said = str(why)
    if isinstance(why, OSError) and why.filename:
        said = f"{why.filename}: {why.strerror}"
    print(f"{prog}: {brief(said)}", file=sys.stderr)
    raise SystemExit(2) from None


def check(options: Any) -> None:
    """Check all paths of a dataclass of options, in the options within it too, as their types say;
    ValueError names the first that cannot be used."""
    hints = get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            check(value)
            continue
        for use in _uses(hints[field.name]):
            for path in value if isinstance(value, tuple) else (value,):
                if path is not None:
                    use(path)


def _uses(hint: Any) -> Iterator[Callable[[Path], object]]:
    """The functions among a type's annotations that check paths."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if getattr(part, "__module__", None) in (files.__name__, __name__):
            yield part
        else:
            yield from _uses(part)
