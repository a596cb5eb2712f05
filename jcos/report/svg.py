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
_COLOUR = re.compile(rf'(?<=: |=")({"|".join(COLOURS)})(?!\w)')
_TAG = re.compile(r"<svg\b[^>]*>")
STYLE = "svg { fill: var(--ink); } text { font-family: system-ui, sans-serif !important; }"


def styled(path: Path) -> tuple[bytes, float, float]:
    """Return a figure with the looks of a page, and its width and height in points. A page shows it
    as a picture, in which nothing runs.

    Raises ValueError where the file is no whole SVG, or does not say how large it is.
    """
    text = path.read_text(encoding="utf-8")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(f"it is no whole SVG ({error})") from None
    if root.tag != "{http://www.w3.org/2000/svg}svg":
        raise ValueError("it is no SVG")
    box = root.get("viewBox", "").split()[2:]  # of a figure that says nothing else
    try:
        width, height = (
            float(root.get(side, size).removesuffix("pt"))
            for side, size in zip(("width", "height"), box, strict=True)
        )
    except ValueError:
        raise ValueError("the SVG does not say how large it is") from None
    looks = (FOLDER / "colours.css").read_text(encoding="utf-8")
    text = _COLOUR.sub(lambda match: COLOURS[match[0].lower()], text)
    text = _TAG.sub(lambda tag: f"{tag[0]}<style>{looks}{STYLE}</style>", text, count=1)
    return text.encode(), width, height
