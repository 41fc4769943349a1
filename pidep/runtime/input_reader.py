"""Rows to graph inputs: words through the tokenizer, images through the vision graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pidep.artifacts.names import TOKENIZER
from pidep.artifacts.vision import VisionRecord
from pidep.errors import ExpertError, ImageError, PidepError, ServingError
from pidep.files.bounded_read import MAX_JSON_BYTES, read_file
from pidep.inputs.row import Input, as_row, text_of
from pidep.inputs.tokenize import Tokenize
from pidep.runtime.answer import Array
from pidep.runtime.vision import VisionReader

__all__ = ["InputReader"]

_TEXT_ONLY = "this model reads text only, export an expert of pidep-mini to ask about images"


class InputReader:
    """Makes the inputs of a bank's or merged model's graph."""

    def __init__(
        self, version_folder: Path, vision: VisionRecord | None, *, threads: int | None = None
    ) -> None:
        """Open the tokenizer and, where the record has one, the vision graph.

        Raises:
            ServingError: a file is missing or not the recorded one.
        """
        # The tokenizer of training, from the entry itself: a shared one could change under the
        # graph.
        self._tokenize = _tokenizer(version_folder / TOKENIZER)
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
        ids, mask = self._tokenize([text_of(row) for row in rows], max_length=max_length)
        feeds: dict[str, Array] = {"input_ids": ids, "attention_mask": mask}
        if self.vision is not None:
            feeds |= self.vision.beside(visuals)
        return feeds


def _tokenizer(path: Path) -> Tokenize:
    try:
        return Tokenize(read_file(path, limit=MAX_JSON_BYTES).decode("utf-8"))
    except FileNotFoundError as error:
        raise ServingError(f"{path}: no such file; export the model again") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"{path}: not readable ({error}); export the model again") from error
    except ExpertError as error:
        raise ServingError(f"{error}, or export the model again") from error
