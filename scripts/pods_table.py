"""The table of docs/pods.md: every released model on common machines, planned as `jcos plan` does.

    python scripts/pods_table.py                 # plans what is missing, then writes the table
    python scripts/pods_table.py --minutes 5     # stops starting compilations after five minutes

Every plan is kept as a file under --work as soon as it is made, so that a stopped call goes on
where it was. A compilation takes seconds for a GPU, a minute or two for a TPU slice on two cores.
Needs the extras `tpu` and `gpu`, and neither device.
"""

import argparse
import dataclasses
import json
import os
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jcos.files import local_path
from jcos.plan import costs, forecast
from jcos.plan.costs import Job
from jcos.plan.forecast import Forecast
from jcos.plan.machines import GIB, machine
from jcos.variants import VARIANTS
from pages import rewrite

PAGE = Path(__file__).resolve().parent.parent / "docs" / "pods.md"

SIZES = {"480p": (81, 480, 832), "720p": (81, 720, 1280), "704p": (121, 704, 1280)}
VIDEOS = (
    ("wan2.2-i2v-a14b", "480p"),
    ("wan2.2-i2v-a14b", "720p"),
    ("wan2.2-ti2v-5b", "704p"),
    ("wan2.1-t2v-1.3b", "480p"),
    ("wan2.2-t2v-a14b", "720p"),
    ("wan2.1-t2v-14b", "720p"),
)
GPUS = ("gpu:h100:1", "gpu:h200:1", "gpu:h100:8", "gpu:h200:8")
SLICES = ("v5e:2x4", "v5p:2x2x1", "v6e:2x4", "v5p:2x2x4", "v5e:4x4", "v6e:4x4")


def plan(name: str, size: str, slice_: str) -> dict[str, Any]:
    """One row: the most promising mesh, or, where the compiler refuses it, the next ones."""
    frames, height, width = SIZES[size]
    job, target = Job(VARIANTS[name](), frames, height, width), machine(slice_)
    tried = []
    for sizes in forecast.meshes(job, target)[:3]:
        tried += forecast.options(job, target, [sizes])
        if not tried[-1].trouble:
            break
    compiler = {"gpu": "jax-cuda13-pjrt", "tpu": "libtpu"}[target.platform]
    versions = {name: metadata.version(name) for name in ("jcos", "jax", compiler)}
    made = {"size": size, "date": datetime.now(UTC).date().isoformat(), "versions": versions}
    return Forecast(job, target, tuple(tried)).to_json() | made


def row(found: dict[str, Any]) -> str:
    """A plan as a line of the table."""
    running = (o for o in found["options"] if not o["trouble"])
    best = next((o for o in running if o["sizes"] == found["recommended"]), None)
    where = f"| {found['model']} {found['size']} | {found['machine']} "
    if best is None:
        return f"{where}| – | does not fit | | | | |"
    held = best["memory"]
    parts = (held["arguments"], held["temporaries"] + held["outputs"])
    sizes = " + ".join(f"{part / GIB:.1f}" for part in parts)
    share = best["total_bytes"] / found["chip"]["memory"]
    minutes = best["expected_seconds_per_video"] / 60
    return (
        f"{where}| {best['mesh']} | {sizes} ({share:.0%}) | {best['link_bytes'] / 1e9:.1f} "
        f"| {best['roofline_seconds_per_step']:.2f} ({best['limit']}) "
        f"| {best['expected_seconds_per_step']:.2f} | {minutes:.1f} |"
    )


def table(plans: list[dict[str, Any]]) -> str:
    dates = sorted(found["date"] for found in plans)
    versions = {f"{n} {v}" for found in plans for n, v in found["versions"].items()}
    head = (
        "| video | machine | mesh | GiB per device: weights + work (of memory) | GB sent per step "
        "| roofline s/step (limit) | expected s/step | min/video |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|", *map(row, plans)]
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    note = f"*`python scripts/pods_table.py`, {when}, {', '.join(sorted(versions))}.*"
    return "\n".join((*rows, "", note, ""))


def curves() -> str:
    """How one video's cost grows with its frames and its size; formulas alone."""
    head = (
        "| A14B | tokens | TFLOP per pass | of it self-attention | H200: s/step at the peak "
        "| working GiB | clean estimates GiB | token energies GiB |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    target, steps = machine("gpu:h200:1"), 50
    config = VARIANTS["wan2.2-i2v-a14b"]()
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=steps))
    for height, width in ((480, 832), (720, 1280)):
        for frames in (5, 21, 41, 81, 121, 161):
            job = Job(config, frames, height, width)
            parts = costs.forward_flops(config.dit, job.tokens)
            whole, held = sum(parts.values()), costs.memory(job, {}, target.chip.copies)
            energies = 4 * steps * config.dit.layers * job.tokens
            rows.append(
                f"| {frames} × {width}x{height} | {job.tokens:,} | {whole / 1e12:,.0f} "
                f"| {parts['self-attention'] / whole:.0%} "
                f"| {forecast.calculated(job, target, {}).seconds.roofline:.2f} "
                f"| {held.temporaries / GIB:.1f} | {held.outputs / GIB:.2f} "
                f"| {energies / GIB:.2f} |"
            )
    return "\n".join((*rows, ""))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=local_path, default=Path("out/pods"))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--only", default="", help="machines whose name has this in it")
    arguments = parser.parse_args()
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    arguments.work.mkdir(parents=True, exist_ok=True)
    start, plans = time.monotonic(), []
    # Slice by slice for the video that most people make, then the next one.
    for name, size in VIDEOS:
        for slice_ in (*GPUS, *SLICES):
            file = arguments.work / f"{name}-{size}-{slice_.replace(':', '-')}.json"
            late = time.monotonic() - start > 60 * arguments.minutes
            if not file.exists() and not late and arguments.only in slice_:
                text = json.dumps(plan(name, size, slice_), indent=1)
                beside = file.with_suffix(".part")
                beside.write_text(text)
                beside.replace(file)
                print(row(json.loads(text)), flush=True)
            if file.exists():
                plans.append(json.loads(file.read_text()))
    for part, text in {"machines": table(plans), "curves": curves()}.items():
        rewrite(PAGE, "pods_table", part, text)
    total = len(VIDEOS) * len((*GPUS, *SLICES))
    print(f"{len(plans)} of {total} plans are in {PAGE}")


if __name__ == "__main__":
    main()
