"""The house rules a machine can read: who imports whom, how long files are, what is never named."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jcos"

# The floors of the house, from the ground up: a file imports only from floors below its own and
# from the other files of its folder. `jcos/__init__.py` lists the public names and may import all.
FLOORS = [
    "remote",
    "files",
    "config",
    "variants",
    "devices/",
    "model/",
    "media/",
    "weights/",
    "sampling/",
    "wan",
    "loop",
    "generation",
    "preview",
    "runs",
    "lab/",
    "staged",
    "plan/",
    "experiments/",
    "bench/",
    "report/",
    "puzzles",
    "demo",
    "cli/",
    "__main__",
]
FORBIDDEN = {"torch", "diffusers", "transformers", "convert"}
MAX_LINES = 450

# Written in two halves, so that this file passes its own test.
NEVER_NAMED = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "download.py" + "torch.org",
    "ana" + "conda.org",
    "npm" + "js.org",
    "index" + "-url",
    "../" + "shared",
    "/work" + "/main",
    "/work" + "/shared",
]


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def floor_of(path: Path) -> str:
    """`jcos/wan.py` is on the floor `wan`, `jcos/lab/tasks/maze.py` on `lab/`."""
    first, *rest = path.relative_to(PACKAGE).parts
    return f"{first}/" if rest else first.removesuffix(".py")


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of all that `source` imports, at any depth, `from x import y` giving `x.y`.

    `package` is the dotted name of the package that the file lies in, for relative imports.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=module, names=aliases, level=level):
                parts = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*parts, *([module] if module else [])])
                names |= {f"{base}.{alias.name}" for alias in aliases}
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names.add(name)
    return names


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    return imported_modules(path.read_text(encoding="utf-8"), package)


def against_the_floors(floor: str, names: set[str]) -> list[str]:
    """What is wrong with the imports `names` of a file on `floor`, one sentence for each."""
    wrong = []
    for name in sorted(names):
        if name.split(".")[0] != "jcos":
            continue
        part = name.partition(".")[2].partition(".")[0]
        target = next((known for known in FLOORS if known.rstrip("/") == part), None)
        if target is None:
            wrong.append(f"imports {name}: import from the file, not from the package")
        elif target == floor and floor.endswith("/"):
            continue
        elif FLOORS.index(target) >= FLOORS.index(floor):
            wrong.append(f"imports {name}, which does not stand on a lower floor")
    return wrong


def repository_files() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_every_file_has_a_floor():
    unknown = [
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if path != PACKAGE / "__init__.py" and floor_of(path) not in FLOORS
    ]
    assert not unknown, f"give these a place in FLOORS: {unknown}"
    drawn = re.findall(r"│ (\w+)(/|\.py)", (ROOT / "docs" / "architecture.md").read_text())
    places = {f"{name}/" if end == "/" else name for name, end in drawn}
    assert places == {*FLOORS} - {"__main__"}, "docs/architecture.md draws other floors"


def test_imports_point_downward_only():
    wrong = [
        f"{path.relative_to(ROOT)} {problem}"
        for path in sources()
        if floor_of(path) in FLOORS
        for problem in against_the_floors(floor_of(path), imports_of(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_library_never_imports_torch_or_the_converter():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources()
        for name in sorted(imports_of(path))
        if name.split(".")[0] in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)


def test_a_file_is_read_in_one_sitting():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    long = [f"{path.relative_to(ROOT)}: {n}" for path, n in lengths.items() if n > MAX_LINES]
    assert not long, f"more than {MAX_LINES} lines: {long}"


def test_no_file_is_a_drawer_for_everything():
    drawers = [path for path in repository_files() if path.name == "utils.py"]
    assert not drawers, f"name these after what they do: {drawers}"


def test_no_package_host_and_no_private_path_is_named():
    wrong = [
        f"{path.relative_to(ROOT)} says {word}"
        for path in repository_files()
        for content in [path.read_bytes()]
        for word in NEVER_NAMED
        if word.encode() in content
    ]
    assert not wrong, "\n".join(wrong)
