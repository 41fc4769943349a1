"""What an entry of a backbone of two towers records about its graphs."""

from __future__ import annotations

from pidep.artifacts.record import Record
from pidep.artifacts.vision import PreprocessField

__all__ = ["TowersRecord"]


class TowersRecord(Record):
    """`model.onnx`: token ids in, unit vectors out. `image.onnx`: pixels in, unit vectors out."""

    image_graph_digest: str
    preprocess: PreprocessField
    """How an image becomes pixels, the same as in training."""
    preprocess_digest: str
    """Digest of `preprocess` in training. It covers the algorithm, too, which the fields do not."""
    padded_length: int | None = None
    """Tokens that every text is padded to, where padding is read as a part of the text."""
