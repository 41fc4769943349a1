"""Rows to graph inputs: words through the tokenizer, images through the vision graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pidep.artifacts.vision import VisionRecord
from pidep.errors import ImageError, PidepError
from pidep.inputs.row import Input, as_row, text_of
from pidep.inputs.tokenize import Tokenize
from pidep.runtime.answer import Array
from pidep.runtime.entry import tokenizer_json
from pidep.runtime.vision import VisionReader

__all__ = ["InputReader"]

_TEXT_ONLY = "this model reads text only, export an expert of pidep-mini to ask about images"


class InputReader:
    """Makes the inputs of a bank's or merged model's graph."""

    def __init__(
        self,
        version_folder: Path,
        vision: VisionRecord | None,
        *,
        tokenizer_digest: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open the tokenizer and, where the record has one, the vision graph.

        Args:
            tokenizer_digest: the recorded one; None in entries that do not record it.

        Raises:
            ServingError: a file is missing or not the recorded one.
        """
        # The tokenizer of training, from the entry itself: a shared one could change under the
        # graph.
        self.tokenize = Tokenize(tokenizer_json(version_folder, tokenizer_digest))
        self.vision: VisionReader | None = None
        if vision is not None:
            self.vision = VisionReader(version_folder, vision, threads=threads)

    def visual(self, rows: Sequence[Input]) -> list[Array | PidepError | None]:
        """Each row's visual tokens `[V, D]`, None without an image, or the error of the image."""
        if self.vision is not None:
            return self.vision.tokens(rows)
        return [
            ImageError(f"{row.where or f'row {number}'}: has an image; {_TEXT_ONLY}")
            # Refused, not ignored: an answer to the text alone would look like an answer about the
            # image.
            if row.image is not None
            else None
            for number, row in enumerate(map(as_row, rows), 1)
        ]

    def feeds(
        self,
        rows: Sequence[Input],
        visuals: Sequence[Array | None],
        *,
        max_length: int | Sequence[int],
    ) -> dict[str, Array]:
        """The graph's inputs by name, for rows without errors.

        Args:
            visuals: as `visual` gives them.
            max_length: tokens a text is cut to, for all rows or for each.
        """
        ids, mask = self.tokenize([text_of(row) for row in rows], max_length=max_length)
        feeds: dict[str, Array] = {"input_ids": ids, "attention_mask": mask}
        if self.vision is not None:
            feeds |= self.vision.beside(visuals)
        return feeds
