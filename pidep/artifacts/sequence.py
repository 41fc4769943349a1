"""What an entry of an encoder-decoder records about its two graphs."""

from __future__ import annotations

from pydantic import Field

from pidep.artifacts.record import Record

__all__ = ["SequenceRecord"]


class SequenceRecord(Record):
    """`encoder.onnx` and `decoder.onnx`, and the tokens that have a meaning for them."""

    encoder_digest: str
    decoder_digest: str
    encoder_quantised_products: int | None = Field(default=None, ge=1)
    """Matrix products of the encoder's graph in int8; None in other precisions."""
    decoder_quantised_products: int | None = Field(default=None, ge=1)
    """Those of the decoder's graph, the one of the vocabulary among them."""
    start: int
    """The token that decoding begins with."""
    end: int
    """The token that closes an answer."""
    pad: int
    frame: tuple[int, ...]
    """Tokens around a text, which are never part of an answer."""
    positions: int | None = Field(default=None, ge=1)
    """Tokens that encoder and decoder have room for; None where positions are relative."""
    image_token: int | None = None
    """Stands for one visual token at the beginning of a row; None where no image is read."""
    task_words: dict[str, str] | None = None
    """A word in angle brackets to the sentence that it stands for, with `{input}` for the rest of
    the text."""
