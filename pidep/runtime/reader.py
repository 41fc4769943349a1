"""Requests to graph inputs: words through the tokenizer, images through the vision graph, as in training. No torch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ImageError, PidepError, ServingError
from pidep.inputs.images import Preprocess
from pidep.inputs.tokenize import Tokenize
from pidep.runtime.session import open_session

__all__ = ["Question", "Reader"]

Array = npt.NDArray[Any]
_TEXT_ONLY = "this model reads text only, export an expert of pidep-mini to ask about images"
_KEPT_IMAGES = 256
"""Images whose visual tokens are kept, so that one image asked about by many experts passes the stem once."""


@dataclass(frozen=True)
class Question:
    """One row of a request."""

    text: str
    image: bytes = b""
    """An encoded image; none when empty."""
    where: str = "row 1"
    """Its place in its request, for messages."""


class Reader:
    """What stands before the graph; a backbone without a vision part refuses images."""

    def __init__(self, version_folder: Path, vision: Mapping[str, Any] | None, *, threads: int | None = None) -> None:
        self._tokenize = Tokenize((version_folder / "tokenizer.json").read_text(encoding="utf-8"))
        self._vision = None if vision is None else _Vision(version_folder, vision, threads=threads)

    def visual(self, questions: Sequence[Question]) -> list[Array | PidepError | None]:
        """Each row's visual tokens `[V, D]`, None where it has no image, or what is wrong with it."""
        if self._vision is not None:
            return self._vision.tokens(questions)
        return [ImageError(f"{asked.where}: has an image; {_TEXT_ONLY}") if asked.image else None for asked in questions]

    def feeds(self, questions: Sequence[Question], visual: Sequence[Array | None], *, max_length: int | Sequence[int]) -> dict[str, Array]:
        """The graph's inputs for rows that are all right."""
        ids, mask = self._tokenize([asked.text for asked in questions], max_length=max_length)
        feeds: dict[str, Array] = {"input_ids": ids, "attention_mask": mask}
        if self._vision is not None:
            feeds |= self._vision.beside(visual)
        return feeds


class _Vision:
    """Stem and connector as one graph, with the preprocessing that training had."""

    def __init__(self, version_folder: Path, record: Mapping[str, Any], *, threads: int | None) -> None:
        try:
            self.preprocess = Preprocess.of(record["preprocess"])
            self.shape = (int(record["num_tokens"]), int(record["width"]))
            expected, graph_digest = str(record["preprocess_digest"]), str(record["graph_digest"])
        except (KeyError, TypeError, ValueError, ImageError) as error:
            raise ServingError(f"{version_folder}: its vision record is malformed ({error}); export the model again") from error
        if self.preprocess.digest != expected:
            raise ServingError(f"{version_folder}: images were prepared otherwise in training ({expected[:19]}…); export the model again")
        self.session = open_session(version_folder / "vision.onnx", graph_digest, threads=threads)
        self._kept: OrderedDict[bytes, Array] = OrderedDict()

    def tokens(self, questions: Sequence[Question]) -> list[Array | PidepError | None]:
        keys = [hashlib.sha256(asked.image).digest() if asked.image else b"" for asked in questions]
        found: dict[bytes, Array | PidepError] = {key: self._kept[key] for key in keys if key in self._kept}
        fresh: dict[bytes, Array] = {}
        wrong: dict[int, PidepError] = {}
        for row, (key, asked) in enumerate(zip(keys, questions, strict=True)):
            if not asked.image:
                if not asked.text.strip():
                    wrong[row] = ServingError(f"{asked.where}: expected a text, an image or both, found neither")
            elif key not in found and key not in fresh:
                try:
                    fresh[key] = self.preprocess.one(asked.image, where=asked.where)
                except ImageError as error:
                    wrong[row] = error
        if fresh:
            (visual,) = self.session.run(["visual"], {"pixels": np.stack(list(fresh.values()))})
            found.update(zip(fresh, visual, strict=True))
        self._keep({key: value for key, value in found.items() if not isinstance(value, PidepError)})
        return [wrong[row] if row in wrong else found[key] if key else None for row, key in enumerate(keys)]

    def _keep(self, used: Mapping[bytes, Array]) -> None:
        for key, value in used.items():
            self._kept[key] = value
            self._kept.move_to_end(key)
        while len(self._kept) > _KEPT_IMAGES:
            self._kept.popitem(last=False)

    def beside(self, visual: Sequence[Array | None]) -> dict[str, Array]:
        """`visual` and `visual_mask`; no place for images where no row has one."""
        places = self.shape[0] if any(tokens is not None for tokens in visual) else 0
        tokens = np.zeros((len(visual), places, self.shape[1]), np.float32)
        mask = np.zeros((len(visual), places), np.int64)
        for row, found in enumerate(visual):
            if found is not None:
                tokens[row], mask[row] = found, 1
        return {"visual": tokens, "visual_mask": mask}
