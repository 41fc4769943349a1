"""What a bank or merged model that reads images records about its vision graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, TypeAlias

from pydantic import PlainSerializer, PlainValidator

from pidep.artifacts.record import Record
from pidep.errors import ImageError
from pidep.inputs.images import Preprocess

__all__ = ["PreprocessField", "VisionRecord"]


def _preprocess(value: Any) -> Preprocess:
    if isinstance(value, Preprocess):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("expected an object")
    try:
        return Preprocess.of(value)
    except ImageError as error:
        raise ValueError(str(error)) from error  # pydantic reports ValueError, with the place


PreprocessField: TypeAlias = Annotated[
    Preprocess, PlainValidator(_preprocess), PlainSerializer(asdict)
]
"""How an image becomes pixels, as a record holds it."""


class VisionRecord(Record):
    """`vision.onnx`: pixels in, visual tokens out."""

    graph_digest: str
    preprocess: PreprocessField
    """How an image becomes pixels, the same as in training."""
    preprocess_digest: str
    """Digest of `preprocess` in training. It covers the algorithm, too, which the fields do not."""
    num_tokens: int
    """V, visual tokens of an image."""
    width: int
    """D, width of a visual token."""
    relative_error: float = 0.0
    """Largest difference from PyTorch on random pixels, relative to the largest value."""
