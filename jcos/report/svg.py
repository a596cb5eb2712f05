"""Figures that matplotlib wrote as SVG, made part of a page: its font, its colours, no script."""

import hashlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from markupsafe import Markup

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
DRAWN = {
    *("svg", "g", "defs", "use", "symbol", "clipPath", "path", "rect", "line", "circle", "ellipse"),
    *("polyline", "polygon", "text", "tspan", "image", "linearGradient", "stop", "title", "desc"),
}
"""Elements that draw. All others (scripts, styles, links, foreign content) are left out."""
COLOURS = {
    "#000000": "currentColor",
    "black": "currentColor",
    "#ffffff": "var(--paper)",
    "white": "var(--paper)",
    "#0072b2": "var(--s0)",
    "#d55e00": "var(--s1)",
    "#009e73": "var(--s2)",
    "#cc79a7": "var(--s3)",
    "#e69f00": "var(--s4)",
    "#56b4e9": "var(--s5)",
    "#555555": "var(--quiet)",
    "#777777": "var(--quiet)",
    "#b0b0b0": "var(--rule)",
}
"""Colours of the figures that a page sets, so that they suit its light and dark looks."""
_COLOUR = re.compile(rf"(?<![\w#])({'|'.join(COLOURS)})(?!\w)", re.IGNORECASE)
_NUMBER = re.compile(r"[\d.]+")
_FONT = re.compile(r"\bfont(?:-family)?\s*:[^;]*;?\s*")


def inline(path: Path, label: str) -> tuple[Markup, float | None, float | None]:
    """Return a figure as an `<svg>` element, and its width and height in points; None where it does
    not say.

    label: what it shows, for who does not see it. Raises ValueError where the file is no whole SVG.
    """
    content = path.read_bytes()
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise ValueError(f"it is no whole SVG ({error})") from None
    if root.tag != f"{SVG}svg":
        raise ValueError("it is no SVG")
    # A page shares ids among all figures.
    _clean(root, f"f{hashlib.sha256(content).hexdigest()[:8]}-")
    size = [root.attrib.pop(side, "").removesuffix("pt") for side in ("width", "height")]
    width, height = (float(side) if _NUMBER.fullmatch(side) else None for side in size)
    root.set("role", "img")
    root.set("aria-label", label)
    # What matplotlib's own style element says of everything in the figure.
    root.set("style", "stroke-linejoin:round;stroke-linecap:butt;fill:currentColor")
    ET.register_namespace("", SVG[1:-1])
    return Markup(ET.tostring(root, encoding="unicode")), width, height


def _clean(element: ET.Element, prefix: str) -> None:
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag.removeprefix(SVG) not in DRAWN:
            element.remove(child)
        else:
            _clean(child, prefix)
    for name, value in list(element.attrib.items()):
        if name in ("href", LINK):
            inside = value.startswith(("#", "data:image/png;base64,"))
            element.attrib.pop(name)
            if inside:
                element.set("href", f"#{prefix}{value[1:]}" if value[0] == "#" else value)
        elif name == "id":
            element.set(name, f"{prefix}{value}")
        elif name.startswith("on") or name == "class" or re.search(r"url\((?!#)", value):
            element.attrib.pop(name)
        else:
            value = re.sub(r"url\(#", f"url(#{prefix}", value)
            if name == "style":
                value = _FONT.sub(_size, value)
            if name in ("style", "fill", "stroke", "stop-color"):
                value = _COLOUR.sub(lambda match: COLOURS[match[0].lower()], value)
            element.set(name, value)


def _size(font: re.Match[str]) -> str:
    """Return what is kept of a font: its size, where this says it."""
    size = re.search(r"([\d.]+)px", font[0])
    return f"font-size:{size[1]}px;" if size else ""
