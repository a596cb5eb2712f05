"""Figures that matplotlib wrote as SVG, in the font and the colours of a page, light or dark."""

import re
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
COLOUR = re.compile("|".join(COLOURS), re.IGNORECASE)
STYLE = "svg { fill: var(--ink); } text { font-family: system-ui, sans-serif !important; }"
LARGER = 1.4


def styled(path: Path) -> bytes:
    """Return a figure with the looks of a page, `LARGER` than in print. A page shows it as a
    picture, in which nothing runs."""
    looks = (FOLDER / "colours.css").read_text(encoding="utf-8") + STYLE

    def larger(side: re.Match[str]) -> str:
        return f'{side[1]}="{LARGER * float(side[2]):g}{side[3]}"'

    def head(tag: re.Match[str]) -> str:
        sides = re.sub(r'\b(width|height)="([\d.]+)(p[tx])"', larger, tag[0])
        return f"{sides}<style>{looks}</style>"

    text = path.read_text(encoding="utf-8")
    text = COLOUR.sub(lambda colour: COLOURS[colour[0].lower()], text)
    return re.sub(r"<svg\b[^>]*[^/]>", head, text, count=1).encode()
