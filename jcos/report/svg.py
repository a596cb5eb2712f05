"""Figures that matplotlib wrote as SVG, in the font and the colours of a page, light or dark."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from jcos.report.templates import FOLDER

COLOURS = {
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    "#555555": "var(--quiet)",
    "#777777": "var(--quiet)",
    "#0072b2": "var(--s0)",
    "#d55e00": "var(--s1)",
    "#009e73": "var(--s2)",
    "#cc79a7": "var(--s3)",
    "#e69f00": "var(--s4)",
    "#56b4e9": "var(--s5)",
    "#b0b0b0": "var(--rule)",
}
"""Colours of the figures that a page sets, so that they suit its light and dark looks."""
_COLOUR = re.compile("|".join(COLOURS), re.IGNORECASE)
_PAINT = ("fill", "stroke", "stop-color", "style")
SVG = "http://www.w3.org/2000/svg"
STYLE = "svg { fill: var(--ink); } text { font-family: system-ui, sans-serif !important; }"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def styled(path: Path) -> tuple[bytes, float, float]:
    """Return a figure with the looks of a page, and its width and height in points. A page shows it
    as a picture, in which nothing runs.

    Raises ValueError where the file is no whole SVG, or does not say how large it is.
    """
    try:
        root = ET.fromstring(path.read_text(encoding="utf-8"))
    except ET.ParseError as error:
        raise ValueError(f"it is no whole SVG ({error})") from None
    if root.tag != f"{{{SVG}}}svg":
        raise ValueError("it is no SVG")
    width, height = _size(root)
    for element in root.iter():
        for name in _PAINT:
            if value := element.get(name):
                element.set(name, _COLOUR.sub(lambda match: COLOURS[match[0].lower()], value))
    style = ET.Element(f"{{{SVG}}}style")
    style.text = (FOLDER / "colours.css").read_text(encoding="utf-8") + STYLE
    root.insert(0, style)
    return ET.tostring(root), width, height


def _size(root: ET.Element) -> tuple[float, float]:
    """Return width and height, else those of the viewBox."""
    box = re.split(r"[\s,]+", root.get("viewBox", "").strip())[2:]
    for sides in ([root.get("width", ""), root.get("height", "")], box):
        try:
            width, height = (float(re.sub("p[tx]$", "", side)) for side in sides)
        except ValueError:  # none, or parts of the page
            continue
        return width, height
    raise ValueError("the SVG does not say how large it is")
