"""Prompts to numbers of tokens, by the tokenizer that comes with a checkpoint."""

import dataclasses
import hashlib
import html
import re
import warnings
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from jcos.files import any_path, is_lfs_pointer

_PAD, _EOS = 0, 1
# Of a release, of a folder in diffusers' layout, of a tokenizer's own folder.
_PLACES = ("google/umt5-xxl/tokenizer.json", "tokenizer/tokenizer.json", "tokenizer.json")


def clean(prompt: str) -> str:
    """Return a prompt as the original cleans it: broken encodings and HTML entities (twice)
    repaired, every run of whitespace one space. Capitals stay."""
    import ftfy  # here, because the transformer alone runs where it is not installed

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """UMT5's tokenizer. Two of the same file are equal and hash alike, so that a model may carry
    one as a static field.

    digest: sha256 of the file.
    """

    digest: str
    _pieces: tokenizers.Tokenizer = dataclasses.field(repr=False, compare=False)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Load from a `tokenizer.json`, or from a checkpoint folder that has one.

        Raises ValueError where there is none, or it is not one of UMT5's kind.
        """
        path = any_path(path)
        known = [path, *(path / place for place in _PLACES)]
        file = next((p for p in known if p.is_file()), None)
        if file is None:
            raise ValueError(
                f"{path} has no tokenizer; a released folder has {_PLACES[0]} beside the weights, "
                f"one in diffusers' layout {_PLACES[1]}: fetch that file too"
            )
        if is_lfs_pointer(file):
            raise ValueError(f"{file} is a Git LFS pointer; fetch it with `git lfs pull`")
        data = file.read_bytes()
        try:
            pieces = tokenizers.Tokenizer.from_buffer(data)
        except ValueError as error:
            raise ValueError(f"{file} is not a tokenizer's file, or is damaged: {error}") from None
        if (pieces.token_to_id("<pad>"), pieces.token_to_id("</s>")) != (_PAD, _EOS):
            raise ValueError(f"{file} is not UMT5's: there, <pad> is token {_PAD} and </s> {_EOS}")
        pieces.no_truncation()
        pieces.no_padding()
        return cls(hashlib.sha256(data).hexdigest(), pieces)

    def __call__(
        self, prompt: str, length: int = 512
    ) -> tuple[Int[np.ndarray, " L"], Bool[np.ndarray, " L"]]:
        """Return numbers of a cleaned prompt's tokens, the end token behind them, then padding; and
        where there is no padding. An empty prompt is the end token alone.

        Warns (UserWarning) where a prompt is cut to `length` tokens, the end token included.
        """
        if length < 1:
            raise ValueError(f"length is {length}; a prompt has at least 1 token, its end")
        found = self._pieces.encode(clean(prompt), add_special_tokens=False).ids
        if len(found) >= length:
            warnings.warn(
                f"the prompt has {len(found) + 1} tokens; only the first {length - 1} and the end "
                "token are read",
                stacklevel=2,
            )
        kept = [*found[: length - 1], _EOS]
        ids = np.full(length, _PAD, np.int32)
        ids[: len(kept)] = kept
        return ids, np.arange(length) < len(kept)
