"""How many texts are cut at `max_length`, and which value fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import TaskError
from pidep.inputs.row import Input, as_row, text_of
from pidep.inputs.tokenize import Tokenize

__all__ = ["NO_TOKEN", "TextLengths", "lengths_of", "measure_lengths", "same_tokens"]


# Tokenizers drop control characters, U+FFFD and others; some have no token for unknown words.
NO_TOKEN = "has no token for the backbone; remove the row"
"""What is wrong with a text that the tokenizer drops as a whole."""


@dataclass(frozen=True)
class TextLengths:
    """Lengths of a task's texts in tokens, special tokens included."""

    max_length: int
    """The limit that they were compared with."""
    texts: int
    cut: int
    """Texts that are longer than `max_length`."""
    p95: int
    """95 % of the texts have at most so many tokens."""
    longest: int
    most: int
    """The backbone's limit."""

    @property
    def fitting(self) -> int:
        """The smallest `max_length` that cuts no text, as far as the backbone allows it."""
        return min(self.longest, self.most)

    def to_json(self) -> dict[str, Any]:
        """For `--json` and run folders."""
        return {**asdict(self), "fitting": self.fitting}

    def __str__(self) -> str:
        """One sentence: how many texts are cut, and which value cuts fewer."""
        if not self.cut:
            return (
                f"no text is cut: the longest of {self.texts:,} has {self.longest:,} tokens, and "
                f"max_length is {self.max_length:,}"
            )
        share = 100 * self.cut / self.texts
        shown = f"{share:.0f}" if share >= 10 else f"{share:.1g}"
        start = (
            f"{self.cut:,} of {self.texts:,} texts ({shown} %) are cut at "
            f"{self.max_length:,} tokens"
        )
        if self.max_length >= self.fitting:
            return f"{start}, the limit of the backbone"
        some = min(self.p95, self.most)
        fewer = f"{some} cuts 5 %, " if self.max_length < some < self.fitting else ""
        rest = "none" if self.fitting == self.longest else "the fewest that the backbone allows"
        return f"{start}; max_length {fewer}{self.fitting} cuts {rest}"


def measure_lengths(
    rows: Iterable[Input], tokenize: Tokenize, *, max_length: int, most: int
) -> TextLengths | None:
    """The lengths of the rows' texts; None where no row has a text.

    Candidates do not count: they are cut only at the backbone's limit, `most`.

    Raises:
        TaskError: a row has no image, and its text has no token.
    """
    whole = [as_row(row) for row in rows if text_of(row)]
    if not whole:
        return None
    counts = tokenize.lengths([row.text for row in whole])
    for row, count in zip(whole, counts, strict=True):
        if count <= tokenize.special_tokens and row.image is None:
            raise TaskError(f"the text {row.text[:40]!r} {NO_TOKEN}")
    return lengths_of(counts, max_length=max_length, most=most)


def same_tokens(
    labels: Mapping[str, str], tokenize: Tokenize, *, most: int
) -> tuple[str, str] | None:
    """Two labels whose texts a tokenizer cannot tell apart; None where there are none.

    Differences can be lost: capitals, accents, unknown words, or what lies behind the limit.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, text in labels.items():
        ids, _ = tokenize([text], max_length=most)
        other = seen.setdefault(tuple(ids[0].tolist()), name)
        if other != name:
            return other, name
    return None


def lengths_of(counts: npt.NDArray[np.int64], *, max_length: int, most: int) -> TextLengths:
    """The facts about token counts `[N]`, at least one."""
    return TextLengths(
        max_length=max_length,
        texts=len(counts),
        cut=int((counts > max_length).sum()),
        p95=int(np.quantile(counts, 0.95, method="higher")),
        longest=int(counts.max()),
        most=most,
    )
