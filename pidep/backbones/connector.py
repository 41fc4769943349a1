"""From a stem's feature maps to visual tokens: the only part of `pidep-mini` that was trained here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pidep.atomic_write import write_bytes, write_json
from pidep.errors import BackboneError

__all__ = ["SHIPPED", "Connector", "read_connector", "write_connector"]

SHIPPED = Path(__file__).parent / "mini_connector.safetensors"


class Connector(nn.Module):
    """A feature map and the one half-way at twice its sides, to one token for each place of the map."""

    def __init__(self, *, channels: int, channels_middle: int, width: int, num_tokens: int) -> None:
        super().__init__()
        features = channels + 4 * channels_middle
        self.num_tokens = num_tokens
        self.norm = nn.LayerNorm(features)
        self.project = nn.Linear(features, width)
        self.place = nn.Parameter(torch.zeros(num_tokens, width))
        self.out = nn.LayerNorm(width)

    def forward(
        self,
        last: Tensor,  # [B, C, H, W]
        middle: Tensor,  # [B, M, 2H, 2W]
    ) -> Tensor:  # [B, H * W, D]
        """Tokens row by row; four places of the half-way map join the one above them, so that small marks are seen."""
        return self.tokens(gathered(last, middle))

    def tokens(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """`gathered` features `[B, V, C + 4M]` to tokens `[B, V, D]`; of all places, or of those given."""
        place = self.place if places is None else self.place[places]
        out: Tensor = self.out(self.project(self.norm(features)) + place)
        return out


def gathered(last: Tensor, middle: Tensor) -> Tensor:
    """`[B, C, H, W]` and `[B, M, 2H, 2W]` to `[B, H * W, C + 4M]`."""
    return torch.cat([last, nn.functional.pixel_unshuffle(middle, 2)], 1).flatten(2).transpose(1, 2)


def write_connector(path: Path, connector: Connector, made: Mapping[str, Any]) -> str:
    """The connector as fp16 safetensors, and beside it a record with its digest and how it was made; gives the digest."""
    data = save({name: value.detach().half().contiguous() for name, value in sorted(connector.state_dict().items())})
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    write_bytes(path, data)
    write_json(path.with_suffix(".json"), {"digest": digest, **made})
    return digest


def read_connector(connector: Connector, path: Path = SHIPPED, *, expected: Mapping[str, str]) -> str:
    """Load a file into `connector`, frozen; gives its digest.

    Args:
        expected: what it was trained with (`text`, `stem`, `preprocess`: digests); a difference is refused.

    Raises:
        BackboneError: it is missing, damaged, of another shape, or was trained with other parts.
    """
    record = _record(path.with_suffix(".json"))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"{path}: not readable ({error.strerror}); run: make mini-backbone") from error
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    if digest != record.get("digest"):
        raise BackboneError(f"{path}: digest {digest}, expected {record.get('digest')}; reinstall pidep or run: make mini-backbone")
    for part, value in expected.items():
        if record.get(part) != value:
            raise BackboneError(f"{path}: trained with {part} {record.get(part)}, found {value}; run: make mini-backbone")
    try:
        tensors = load(data)
        connector.load_state_dict({name: value.float() for name, value in tensors.items()})
    except (RuntimeError, SafetensorError) as error:
        raise BackboneError(f"{path}: does not fit ({' '.join(str(error).split())[:200]}); run: make mini-backbone") from error
    connector.requires_grad_(False).eval()
    return digest


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: not readable ({' '.join(str(error).split())}); run: make mini-backbone") from error
    if not isinstance(record, dict):
        raise BackboneError(f"{path}: expected a JSON object, found {type(record).__name__}; run: make mini-backbone")
    return record
