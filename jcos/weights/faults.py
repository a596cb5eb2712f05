"""Sentences that stay short, however many things are wrong."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

LONGEST = 600
"""Characters of a message; what is more goes to a file."""


def listed(start: str, phrases: Sequence[str]) -> str:
    """Return "start: phrase; phrase; …" as `brief`; a file has a line for each."""
    return brief(f"{start}: {'; '.join(phrases)}", "\n".join([f"{start}:", *phrases]))


def brief(message: str, whole: str | None = None) -> str:
    """Return a message; the middle of one that is too long is left out, and `whole` (by default
    the message) written to a file in the system's temporary folder, which the message names."""
    if len(message) <= LONGEST:
        return message
    try:
        number, name = tempfile.mkstemp(prefix="jcos-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{whole or message}\n")
    except OSError:
        return shorter(message, LONGEST - 1)
    return f"{shorter(message, LONGEST - len(name) - 12)} (all in {name})"


def shorter(text: str, length: int) -> str:
    """Return a text without its middle, if it is longer."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def readable(path: Path | str) -> str:
    """Return a path as text that can be written anywhere, bytes that are not UTF-8 as `\\xe9`."""
    return os.fsencode(path).decode(errors="backslashreplace")
