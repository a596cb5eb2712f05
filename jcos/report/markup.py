"""Text that is HTML, text that has yet to be escaped, and the fragments of a template file."""

import html
import math
import re
from collections.abc import Iterable
from pathlib import Path
from string import Template

_FOLDER = Path(__file__).parent
_MARK = re.compile(r"^<!-- fragment: (\w+) -->\n", re.MULTILINE)


class Html(str):
    """A string that is HTML. Any other string is escaped on its way into a page."""


def escape(text: object) -> Html:
    """`text` as it has to stand in HTML, in attributes too; `Html` stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(escape(part) for part in parts))


class Fragments:
    """Pieces of a template file, each after `<!-- fragment: name -->`, with $placeholders."""

    def __init__(self, file: str) -> None:
        text = (_FOLDER / file).read_text(encoding="utf-8")
        _, *parts = _MARK.split(text)
        self._templates = {
            name: Template(body.rstrip("\n"))
            for name, body in zip(parts[::2], parts[1::2], strict=True)
        }

    def fill(self, name: str, /, **values: object) -> Html:
        """The fragment with its placeholders filled; a placeholder without a value is an error."""
        return Html(self._templates[name].substitute({key: escape(v) for key, v in values.items()}))


def read(file: str) -> str:
    """A text file of this folder."""
    return (_FOLDER / file).read_text(encoding="utf-8")


def finite(value: float | None) -> float | None:
    """The number, or None where there is none (None, nan, infinite)."""
    return float(value) if value is not None and math.isfinite(value) else None


def number(value: float | None, *, percent: bool = False, signed: bool = False) -> str:
    """A fraction or score for reading: `0.83`, `83%`, `+1.4`; a dash where there is none."""
    value = finite(value)
    if value is None:
        return "–"
    if signed:
        text = f"{value:+.1f}"
        text = "0.0" if text in ("+0.0", "-0.0") else text
    else:
        text = f"{100 * value:.0f}%" if percent else f"{value:.2f}"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None, **how: bool) -> str:
    """` [0.76, 0.89]`, or nothing where an end is missing."""
    if finite(low) is None or finite(high) is None:
        return ""
    return f" [{number(low, **how)}, {number(high, **how)}]"
