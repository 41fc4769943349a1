"""A backbone by its name."""

from __future__ import annotations

from pidep.backbones.backbone import Backbone
from pidep.backbones.encoder import MINILM, load_encoder
from pidep.backbones.mini import MINI, load_mini

__all__ = ["load_backbone"]


def load_backbone(name: str = MINILM) -> Backbone:
    """`minilm`, `pidep-mini` (text, images and both), a folder or a hub id of a text encoder; frozen.

    Raises:
        BackboneError: nothing loadable is there, its digest is wrong, or it is of a kind that is not served.
    """
    return load_mini() if name == MINI else load_encoder(name)
