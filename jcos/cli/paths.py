"""Paths on a command line: each option's type says what its path is for, which is checked while the
options are read, before any work is done."""

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from tyro.constructors import PrimitiveConstructorSpec

from jcos import files
from jcos.weights import hub
from jcos.weights.faults import brief


class _Unusable(Exception):
    """What tyro would put into a frame, were it a ValueError."""


def _checked(
    check: Callable[[Path], object], path_of: Callable[[str], Path] = files.local_path
) -> PrimitiveConstructorSpec[Path]:
    """Return how tyro reads a path, which `path_of` and `check` refuse by ValueError."""

    def read(words: list[str]) -> Path:
        try:
            path = path_of(words[0])
            check(path)
        except ValueError as error:
            raise _Unusable(error) from None
        return path

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def config_file(named: Path | None) -> Path:
    """Return the file of a config: a path, or the name of one of the package's (`noise`)."""
    if named and (named.suffix or len(named.parts) != 1 or named.is_file()):
        return named
    package, name = Path(__file__).parents[1], named.name if named else ""
    folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        arms = [one for one in names if one.startswith("vbvr")]
        known = ", ".join(one for one in names if one not in arms)
        hint = f"; is {near[0]} meant?" if near else f": there are the experiments {known}; and, "
        hint += "" if near else f"for jcos bench run, {', '.join(arms)}"
        raise ValueError((f"there is no config {name}" if name else "no config is named") + hint)
    return folder / f"{name}.py"


def check_config(named: Path) -> None:
    """Check that it is a Python file, or the name of a config."""
    files.check_python(config_file(named))


AnyPath = Annotated[Path, _checked(str)]
InFolder = Annotated[Path, _checked(files.check_folder)]
OutFile = Annotated[Path, _checked(files.check_new_file)]
OutFolder = Annotated[Path, _checked(files.check_new_folder)]
Model = Annotated[Path, _checked(hub.check, files.any_path)]
"""A checkpoint's folder, a transformer's single file, or a name on Hugging Face."""
AnyInFile = Annotated[Path, _checked(files.check_file, files.any_path)]
AnyInFolder = Annotated[Path, _checked(files.check_folder, files.any_path)]
AnyOutFolder = Annotated[Path, _checked(files.check_new_folder, files.any_path)]
AnyCacheFolder = Annotated[Path, _checked(files.check_cache, files.any_path)]
"""These may be in a bucket too; the others are on a disk."""
ConfigFile = Annotated[Path, _checked(check_config)]


def parse(prog: str, read: Callable[..., Any], arguments: Sequence[str]) -> Any:
    """Return the options that `read` (of tyro) makes of the arguments; one sentence and exit code 2
    where a path does not suit its use."""
    try:
        return read(args=arguments)
    except _Unusable as error:
        refuse(prog, error)


def refuse(prog: str, why: object) -> NoReturn:
    """End the program with one sentence and exit code 2."""
    said = str(why)
    if isinstance(why, OSError) and why.filename:
        said = f"{why.filename}: {why.strerror}"
    print(f"{prog}: {brief(said)}", file=sys.stderr)
    raise SystemExit(2) from None
