"""The pages' templates: jinja2, which escapes every text on its way into a page."""

import base64
import hashlib
import math
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

JSON: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":"), "default": list}
"""How data is written for the pages' scripts."""
FOLDER = Path(__file__).parent


PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.policies["json.dumps_kwargs"] = JSON


def fill(template: str, **values: Any) -> Markup:
    """Return a template of this folder with its values, as HTML."""
    return Markup(PAGES.get_template(template).render(values))


def page(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Return a page with these scripts of this folder as one function, which leaves nothing behind.
    It may load pictures and films of its own, and run this very script."""
    parts = [(FOLDER / name).read_text(encoding="utf-8") for name in scripts]
    code = "".join(['"use strict";\n(() => {\n', *parts, "})();\n"])
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return fill(template, script=Markup(code), digest=digest, **values)


def inside(name: str, content: bytes) -> str:
    """Return a picture as an address: the page itself holds it."""
    kind = mimetypes.guess_type(name, strict=False)[0]  # webp is no standard type yet
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def finite(value: float | None) -> float | None:
    """Return the number, or None where there is none (None, nan, infinite)."""
    return float(value) if value is not None and math.isfinite(value) else None
