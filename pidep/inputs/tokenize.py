"""Texts to token ids. Training, export and the served model cut and pad texts only here.
No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from pidep.errors import BackboneError

__all__ = ["Tokenize"]

IntArray = npt.NDArray[np.int64]


class Tokenize:
    """Texts to token ids; thread-safe, because nothing changes between calls."""

    def __init__(self, tokenizer_json: str, *, padded_length: int | None = None) -> None:
        """Read a `tokenizer.json`.

        Args:
            padded_length: tokens of every row, for models that read padding as a part of the text;
                the longest row's when absent.
        """
        self._padded_length = padded_length
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise BackboneError(f"tokenizer: not a tokenizer.json ({error})") from error
        padding = self._tokenizer.padding or {}
        self._pad_id = int(padding.get("pad_id", self._pad_token_id()))
        self._tokenizer.no_padding()
        # Cutting and padding are done below: the tokenizer's own settings are shared state.
        self._tokenizer.no_truncation()
        self._special = self._tokenizer.num_special_tokens_to_add(False)
        self._suffix = self._count_suffix()

    def _pad_token_id(self) -> int:
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return int(found)
        return 0

    def _count_suffix(self) -> int:
        """Number of special tokens that close a text."""
        mask = self._tokenizer.encode("a").special_tokens_mask
        count = 0
        while count < len(mask) and mask[-1 - count]:
            count += 1
        return count

    def __call__(
        self, texts: Sequence[str], *, max_length: int | Sequence[int]
    ) -> tuple[IntArray, IntArray]:
        """`input_ids` and `attention_mask`, both `[B, T]` int64; T is the longest row's length.

        A row that is cut keeps its closing tokens.

        Raises:
            BackboneError: a text has no token at all.
        """
        # A limit for each row: a batch may name experts of different `max_length`.
        limits = [max_length] * len(texts) if isinstance(max_length, int) else list(max_length)
        rows = [
            self._cut(encoding.ids, limit)
            for encoding, limit in zip(
                self._tokenizer.encode_batch(list(texts)), limits, strict=True
            )
        ]
        for text, row in zip(texts, rows, strict=True):
            # A tokenizer without special tokens can drop every character. The mean over no token is
            # not a number, or depends on the neighbours in the batch.
            if not row:
                raise BackboneError(
                    f"text {text[:40]!a}: the tokenizer makes no token of it; give another text"
                )
        width = max((len(row) for row in rows), default=0)
        if self._padded_length is not None:
            width = max(width, self._padded_length)
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        if self._padded_length is not None:
            mask[:] = 1
        return ids, mask

    @property
    def special_tokens(self) -> int:
        """Tokens that every text gets; a text with no more than these has no content."""
        return int(self._special)

    def lengths(self, texts: Sequence[str]) -> IntArray:
        """Tokens of each text before it is cut, special tokens included: `[N]` int64."""
        # In parts: the encodings of a large data set would not fit into memory at once.
        parts = (texts[start : start + 1024] for start in range(0, len(texts), 1024))
        counts = [
            len(one.ids) for part in parts for one in self._tokenizer.encode_batch(list(part))
        ]
        return np.array(counts, dtype=np.int64)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        # Models read the closing token as the end of a text, so the cut is before it.
        return ids[: limit - self._suffix] + ids[len(ids) - self._suffix :]
