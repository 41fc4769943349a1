"""Backbones by name: packaged ones, folders and hub ids."""

from __future__ import annotations

from pidep import plugins
from pidep.backbones.backbone import Backbone
from pidep.backbones.encoder import load_encoder
from pidep.backbones.load_encoder_decoder import is_encoder_decoder, load_encoder_decoder
from pidep.errors import BackboneError

__all__ = ["load_any_backbone", "load_backbone"]


def load_backbone(name: str = "minilm") -> Backbone:
    """A frozen backbone that embeds: `minilm`, `pidep-mini`, a folder, or a hub id.

        Raises:
            BackboneError: nothing loadable is there, its digest is wrong, or it does not embed.
    """
    found = load_any_backbone(name)
    if not found.embeds:
        raise BackboneError(
            f"backbone {name!r}: {type(found.model).__name__} scores and generates texts, and a backbone that embeds is needed"
        )
    return found


def load_any_backbone(name: str = "minilm") -> Backbone:
    """A frozen backbone of any kind: as `load_backbone`, or an encoder-decoder.

        Encoder-decoders (T5, BART, Florence-2, BLIP) come from a folder or a hub id.
    """
    if name in plugins.names("pidep.backbones"):
        found: Backbone = plugins.load("pidep.backbones", name)()
        return found
    return load_encoder_decoder(name) if is_encoder_decoder(name) else load_encoder(name)
