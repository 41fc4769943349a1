"""A backbone by its name: one that embeds, or also one that generates."""

from __future__ import annotations

from pidep import plugins
from pidep.backbones.backbone import Backbone
from pidep.backbones.encoder import load_encoder
from pidep.backbones.load_encoder_decoder import is_encoder_decoder, load_encoder_decoder
from pidep.errors import BackboneError

__all__ = ["load_any_backbone", "load_backbone"]


def load_backbone(name: str = "minilm") -> Backbone:
    """`minilm`, `pidep-mini` (text, images and both), a folder or a hub id of a text encoder; frozen.

    Raises:
        BackboneError: nothing loadable is there, its digest is wrong, or it is of a kind that is not served.
    """
    found = load_any_backbone(name)
    if not found.embeds:
        raise BackboneError(
            f"backbone {name!r}: {type(found.model).__name__} scores and generates texts, and a backbone that embeds is needed"
        )
    return found


def load_any_backbone(name: str = "minilm") -> Backbone:
    """As `load_backbone`, or an encoder-decoder by folder or hub id (T5, BART, Florence-2, BLIP), which scores and generates texts."""
    if name in plugins.names("pidep.backbones"):
        found: Backbone = plugins.load("pidep.backbones", name)()
        return found
    return load_encoder_decoder(name) if is_encoder_decoder(name) else load_encoder(name)
