"""What the scripts share: options, Markdown tables, what their numbers hold for, and the
transformer of diffusers that two of them measure against."""

import argparse
import json
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers", "libtpu", "jax-cuda13-pjrt")


def options(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a script's docstring."""
    kind = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=text, formatter_class=kind)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Return a table whose first `left` columns are words, all others numbers."""
    rule = ["---"] * left + ["--:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, rule, *rows)) + "\n"


def interval(estimate: Any, sign: str = "") -> str:
    """Return an estimate with its interval. sign: `+` for differences."""
    mean, low, high = (f"{value:{sign}.3f}" for value in estimate[:3])
    return f"{mean} [{low}, {high}]"


def about(**machine: object) -> dict[str, Any]:
    """Return what numbers hold for: the machine, the date, the versions of what runs there."""
    versions = {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
    day = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    return machine | day | versions


def save(out: Path, table: str, about: Mapping[str, Any], rows: Iterable[Mapping]) -> None:
    """Write a table with what it holds for, and the rows as JSON, into a folder; print it."""
    table += "\n" + ", ".join(f"{name} {value}" for name, value in about.items()) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table, encoding="utf-8")
    text = json.dumps({"machine": about, "rows": list(rows)}, indent=1) + "\n"
    (out / "table.json").write_text(text, encoding="utf-8")
    print(table)


def diffusers_transformer(cfg: Any) -> Any:
    """Return a transformer of diffusers with the sizes of a `DiTConfig`; ImportError without it."""
    wan = import_module("diffusers.models.transformers.transformer_wan")
    same = ("in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim", "eps")
    sizes = {"num_layers": cfg.layers} | {name: getattr(cfg, name) for name in same}
    return wan.WanTransformer3DModel(cfg.patch, cfg.heads, cfg.head_dim, **sizes).eval()


def rewrite(page: Path, script: str, name: str, text: str) -> None:
    """Put a text between its marks in a page of docs/."""
    start, end = f"<!-- {name}: scripts/{script}.py -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.read_text(encoding="utf-8").split(start)
    page.write_text(before + start + text + end + rest.split(end)[1], encoding="utf-8")
