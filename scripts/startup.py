"""What help and mistakes cost: seconds until a command has ended that has nothing to compute.

python scripts/startup.py                                 # the best of 5 runs of each
"""

import argparse
import os
import subprocess
import sys
import time

RUN = "import sys; from {module} import main; main(sys.argv[1:])"
CASES = (
    ("jcos", "--help"),
    ("jcos", "--version"),
    *(("jcos", name, "--help") for name in ("demo", "sample", "run", "generate", "plan", "report")),
    ("jcos", "bench", "run", "--help"),
    ("jcos", "sample", "maze", "--wrong"),
    ("jcos", "run", "none.py"),
    ("jcos", "sample", "maze", "--out", "gs://bucket/out"),
    ("convert", "--help"),
    ("convert", ".", "gs://bucket/out"),
)
MODULES = {"jcos": "jcos.cli", "convert": "convert.__main__"}


def seconds(case: tuple[str, ...]) -> tuple[float, float]:
    """Return how long a command takes by the clock, and of the processors' time."""
    command = [sys.executable, "-c", RUN.format(module=MODULES[case[0]]), *case[1:]]
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    after, wall = os.times(), time.perf_counter() - start
    user = after.children_user - before.children_user
    return wall, user + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    print("| command | seconds | of them processor |\n|---|--:|--:|")
    for case in CASES:
        wall, cpu = map(min, zip(*(seconds(case) for _ in range(repeat)), strict=True))
        print(f"| {' '.join(case)} | {wall:.2f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
