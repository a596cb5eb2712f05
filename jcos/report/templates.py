"""The pages' templates: jinja2, which escapes every text on its way into a page."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

JSON: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":"), "default": list}
"""How data is written for the pages' scripts."""
FOLDER = Path(__file__).parent


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = JSON
    return environment


def fill(template: str, **values: Any) -> Markup:
    """Return a template of this folder with its values, as HTML."""
    return Markup(_environment().get_template(template).render(values))


def text_of(file: str) -> Markup:
    """Return a script or style sheet of this folder, which is ours and not escaped."""
    return Markup((FOLDER / file).read_text(encoding="utf-8"))


def finite(value: float | None) -> float | None:
    """Return the number, or None where there is none (None, nan, infinite)."""
    return float(value) if value is not None and math.isfinite(value) else None
