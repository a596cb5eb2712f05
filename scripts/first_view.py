"""How long a page takes until its first view: prints a Markdown table.

python scripts/first_view.py out/demo out/steps     # pages of folders that are there
python scripts/first_view.py --large 500            # and of a folder of that many MB, made for it

Needs the extra `browser` and a Chromium (as `tests/browser`). Each page is opened five times in a
new window; the median counts. Shown is when the pictures of the plane are drawn, which is the
page's own mark; of pages without a plane it is the first paint.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jcos import files
from jcos.files import local_path
from jcos.media import formats
from jcos.report import explorer

Browser: TypeAlias = Any  # of playwright, which only the extra `browser` has
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
TIMES = 5
TIMINGS = """() => {
  const [page] = performance.getEntriesByType("navigation");
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  const [shown] = performance.getEntriesByName("shown");
  return [page.domInteractive, paint?.startTime, shown?.startTime];
}"""
STEPS, FRAMES, SIZE = (0, 5, 10, 20, 39), 81, (480, 832)


class View(NamedTuple):
    """Milliseconds from asking for a page: read, first paint, pictures shown."""

    read: float
    paint: float
    shown: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=local_path, help="folders with an index.html")
    parser.add_argument("--large", type=float, default=0, metavar="MB", help="make such a folder")
    arguments = parser.parse_args()
    sync_playwright = import_module("playwright.sync_api").sync_playwright
    print(f"{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folders = list(arguments.folders)
        if arguments.large:
            folders.append(large(Path(scratch) / "large", arguments.large))
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        print("| results | folder | page | read | first paint | pictures shown |")
        print("|---|---|---|---|---|---|")
        for folder in folders:
            page = folder / explorer.PAGE
            sizes = [sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())]
            sizes.append(page.stat().st_size)
            view = first_view(browser, page)
            cells = [*(f"{size / 1e6:.1f} MB" for size in sizes), *(f"{t:.0f} ms" for t in view)]
            print(f"| {folder.name} | {' | '.join(cells)} |", flush=True)
        browser.close()


def first_view(browser: Browser, page: Path) -> View:
    """The medians of several visits."""
    seen = [visit(browser, page) for _ in range(TIMES)]
    return View(*(statistics.median(times) for times in zip(*seen, strict=True)))


def visit(browser: Browser, page: Path) -> View:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab: Any = context.new_page()
    tab.goto(page.resolve().as_uri())
    plane = tab.locator("#plane").count()
    for _ in range(600):
        read, paint, shown = tab.evaluate(TIMINGS)
        if paint is not None and (shown is not None or not plane):
            break
        tab.wait_for_timeout(50)
    else:
        raise TimeoutError(f"{page} was not shown within half a minute")
    context.close()
    return View(read, paint, paint if shown is None else max(shown, paint))


def large(folder: Path, megabytes: float) -> Path:
    """Results as `jcos generate` leaves them: as many seeds as are needed, all with the same film,
    which is as hard to compress as a real one."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    blocks = rng.integers(0, 200, (FRAMES, height // 16, width // 16, 3), np.uint8)
    video = formats.upscale(blocks, 16) + rng.integers(0, 56, (FRAMES, *SIZE, 3), np.uint8)
    folder.mkdir()
    film = folder / "seed-0.mp4"
    formats.write_mp4(film, video)
    seeds = range(int(np.ceil(megabytes * 1e6 / film.stat().st_size / (1 + len(STEPS)))))
    for seed in seeds:
        names = [formats.X0_FILM.format(seed=seed, step=step) for step in STEPS]
        for name in [*names, f"seed-{seed}.mp4"][: None if seed else -1]:
            shutil.copy(film, folder / name)
    sampling = {"steps": 40, "shift": 5.0, "solver": "unipc", "grid": "unipc", "guidance": [3.5]}
    run = {
        "command": "python scripts/first_view.py --large",
        "checkpoint": "none",
        "prompt": "coloured blocks",
        "size": {"height": height, "width": width, "frames": FRAMES, "fps": 16},
        "sampling": sampling | {"boundary": None},
        "seeds": list(seeds),
        "x0": list(STEPS),
    }
    files.write(folder / "run.json", json.dumps(run))
    start = time.monotonic()
    explorer.make(folder)
    print(f"The page of {len(seeds)} seeds was made in {time.monotonic() - start:.0f} s.\n")
    return folder


if __name__ == "__main__":
    main()
