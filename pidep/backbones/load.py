"""Backbones by name: packaged ones, folders and hub ids."""

from __future__ import annotations

import os
from weakref import WeakValueDictionary

from pidep import plugins
from pidep.backbones.backbone import Backbone
from pidep.backbones.device import put_on
from pidep.backbones.encoder import load_encoder
from pidep.backbones.load_encoder_decoder import is_encoder_decoder, load_encoder_decoder
from pidep.backbones.load_two_towers import is_two_towers, load_two_towers
from pidep.errors import BackboneError

__all__ = ["load_any_backbone", "load_backbone", "recorded_name", "remember_backbone"]

# Weak: a backbone is found by its name for as long as the caller keeps it, and no longer.
_IN_MEMORY: WeakValueDictionary[str, Backbone] = WeakValueDictionary()


def remember_backbone(backbone: Backbone) -> None:
    """Let `load_any_backbone` find a backbone that was made in memory, in this process.

    Experts know their backbone by name, so export finds the backbone of theirs this way.

    Raises:
        BackboneError: the name belongs to an installed backbone.
    """
    if backbone.name in plugins.names("pidep.backbones"):
        raise BackboneError(f"backbone {backbone.name!r}: the name is taken; choose another")
    _IN_MEMORY[backbone.name] = backbone


def load_backbone(name: str = "minilm", *, device: str = "cpu") -> Backbone:
    """A frozen backbone that embeds: `minilm`, `pidep-mini`, a folder, or a hub id.

    Folders and hub ids hold text encoders, CLIP or SigLIP.

    Raises:
        BackboneError: nothing loadable is there, its digest is wrong, or it does not embed.
    """
    found = load_any_backbone(name, device=device)
    if not found.embeds:
        raise BackboneError(
            f"backbone {name!r}: {type(found.model).__name__} scores and generates texts, and a "
            "backbone that embeds is needed"
        )
    return found


def recorded_name(name: str) -> str:
    """The name that experts keep: the absolute path of a folder, any other name as it is."""
    # A relative path would lead elsewhere from another working directory.
    taken = name in _IN_MEMORY or name in plugins.names("pidep.backbones")
    return os.path.abspath(name) if not taken and os.path.isdir(name) else name


def load_any_backbone(name: str = "minilm", *, device: str = "cpu") -> Backbone:
    """A frozen backbone of any kind: as `load_backbone`, or an encoder-decoder.

    Encoder-decoders (T5, BART, Florence-2, BLIP) come from a folder or a hub id.

    Args:
        device: where it runs, as `put_on` takes it.
    """
    return put_on(_loaded(name), device)


def _loaded(name: str) -> Backbone:
    if name in _IN_MEMORY:
        return _IN_MEMORY[name]
    # Registered names come first, so that a folder of the same name cannot shadow a packaged
    # backbone.
    if name in plugins.names("pidep.backbones"):
        found: Backbone = plugins.load("pidep.backbones", name)()
        return found
    name = recorded_name(name)
    if is_encoder_decoder(name):
        return load_encoder_decoder(name)
    return load_two_towers(name) if is_two_towers(name) else load_encoder(name)
