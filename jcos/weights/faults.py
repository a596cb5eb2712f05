"""Sentences that stay short, however many things are wrong."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

LONGEST = 600
"""Characters of a message; what is more goes to a file."""


def listed(start: str, phrases: Sequence[str]) -> str:
    """Return "start: phrase; phrase; …", as many of them as `LONGEST` characters hold.

    Where that is not all, the whole list is written to a file in the system's temporary folder,
    which the sentence names.
    """
    whole = f"{start}: {'; '.join(phrases)}"
    if len(whole) <= LONGEST:
        return whole
    file = _written(f"{start}:", phrases)
    room = LONGEST - len(start) - len(file) - len("; and 1000000 more, all of them in ")
    shown: list[str] = []
    for phrase in phrases:
        if shown and len(phrase) > room:
            break
        shown.append(shorter(phrase, max(room, 100)))
        room -= len(shown[-1]) + 2
    left = len(phrases) - len(shown)
    end = f"; and {left} more" if left else ""
    return f"{start}: {'; '.join(shown)}{end}{f', all of them in {file}' if file else ''}"


def brief(message: str) -> str:
    """Return a message, its middle left out and written to a file if it is too long."""
    if len(message) <= LONGEST:
        return message
    file = _written(message, ())
    return shorter(message, LONGEST - len(file) - 12) + (f" (all in {file})" if file else "")


def shorter(text: str, length: int) -> str:
    """Return a text without its middle, if it is longer."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def readable(path: Path | str) -> str:
    """Return a path as text that can be written anywhere, bytes that are not UTF-8 as `\\xe9`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _written(start: str, lines: Sequence[str]) -> str:
    """The name of a new file with these lines; nothing where none can be written."""
    content = "\n".join([start, *lines]) + "\n"
    try:
        number, name = tempfile.mkstemp(prefix="jcos-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
    except OSError:
        return ""
    return name
