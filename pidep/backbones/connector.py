"""From a stem's feature maps to visual tokens. Only this part of `pidep-mini` was trained here."""

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

from pidep.errors import BackboneError
from pidep.files.atomic_write import write_bytes, write_json

__all__ = ["Connector", "Past", "as_kept", "read_connector", "write_connector"]

_POINTS, _LARGEST = "past.points", "past.points.largest"


class Connector(nn.Module):
    """Tokens for the places of a stem's last map, and a vector that bypasses the transformer."""

    def __init__(
        self,
        *,
        channels: int,
        channels_middle: int,
        channels_summary: int,
        width: int,
        num_tokens: int,
        axes: int,
        points: int = 0,
    ) -> None:
        super().__init__()
        features = channels + 4 * channels_middle
        self.num_tokens = num_tokens
        self.norm = nn.LayerNorm(features)
        self.project = nn.Linear(features, width)
        self.place = nn.Parameter(torch.zeros(num_tokens, width))
        self.out = nn.LayerNorm(width)
        self.past = Past(features=channels_summary, axes=axes, points=points, width=width)

    def forward(
        self,
        last: Tensor,  # [B, C, H, W]
        middle: Tensor,  # [B, M, 2H, 2W]
        summary: Tensor,  # [B, F]
    ) -> Tensor:  # [B, H * W + 1, D]
        """Tokens row by row, then the vector of `Past`.

        Each token also sees the four places of the finer map above it, so that small marks count.
        """
        return torch.cat([self.tokens(gathered(last, middle)), self.past(summary).unsqueeze(1)], 1)

    def tokens(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """`gathered` features `[B, V, C + 4M]` to tokens `[B, V, D]`.

        `places` are all places when absent.
        """
        place = self.place if places is None else self.place[places]
        out: Tensor = self.out(self.project(self.norm(features)) + place)
        return out


class Past(nn.Module):
    """Kernel ridge regression from an image's summary `[B, F]` to a text embedding `[B, D]`.

    The vector bypasses the transformer. The summary is standardised and projected on Q axes.
    Gaussians around the N points of the training icons weigh N vectors. Nearly all icons get one
    length. A picture far from every training icon gets less: its direction means little.
    """

    mean: Tensor
    deviation: Tensor
    axes: Tensor
    points: Tensor
    vectors: Tensor
    sharpness: Tensor
    size: Tensor
    enough: Tensor

    def __init__(self, *, features: int, axes: int, points: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("axes", torch.zeros(features, axes))
        self.register_buffer("points", torch.zeros(points, axes))
        self.register_buffer("vectors", torch.zeros(points, width))
        self.register_buffer("sharpness", torch.zeros(()))
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("enough", torch.ones(()))

    def turned(self, summary: Tensor) -> Tensor:  # [B, Q]
        """The summary on the axes, standardised by the training icons, outliers clipped."""
        out: Tensor = self.standard(summary) @ self.axes
        return out

    def standard(self, summary: Tensor) -> Tensor:  # [B, F]
        """The summary standardised by the training icons, outliers clipped."""
        # A picture unlike any icon has features far outside; unclipped, they would decide the
        # distance alone.
        return ((summary - self.mean) / self.deviation).clamp(-5.0, 5.0)

    def near(self, turned: Tensor) -> Tensor:  # [B, N]
        """Nearness to each point; 1 at the point itself."""
        # ‖a - b‖² written out: one matrix product, and no tensor [B, N, Q] of differences.
        lengths = turned.square().sum(1, keepdim=True) + self.points.square().sum(1)
        return torch.exp(-self.sharpness * (lengths - 2.0 * turned @ self.points.T).clamp(min=0.0))

    def forward(self, summary: Tensor) -> Tensor:
        """The regression's vector `[B, D]`.

        Its length is `size` where the nearest point is at least `enough` near, and falls with the
        square of the nearness below.
        """
        if not len(self.points):  # not fitted yet
            return summary.new_zeros(len(summary), self.vectors.shape[1])
        near = self.near(self.turned(summary))
        known = (near.amax(1, keepdim=True) / self.enough).clamp(max=1.0)
        return self.size * known.square() * nn.functional.normalize(near @ self.vectors, dim=1)


def gathered(last: Tensor, middle: Tensor) -> Tensor:
    """`[B, C, H, W]` and `[B, M, 2H, 2W]` to `[B, H * W, C + 4M]`."""
    return torch.cat([last, nn.functional.pixel_unshuffle(middle, 2)], 1).flatten(2).transpose(1, 2)


def write_connector(path: Path, connector: Connector, made: Mapping[str, Any]) -> str:
    """Write the connector, and a record with its digest and training; gives the digest.

    Weights are fp16 safetensors; the many points are int8.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in sorted(connector.state_dict().items()):
        if name == _POINTS and len(value):
            tensors[name], tensors[_LARGEST] = _eight_bits(value)
        else:
            tensors[name] = value.detach().half().contiguous()
    data = save(tensors)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    write_bytes(path, data)
    write_json(path.with_suffix(".json"), {"digest": digest, **made})
    return digest


def read_connector(connector: Connector, path: Path, *, expected: Mapping[str, str]) -> str:
    """Load a file into `connector`, frozen; gives its digest.

    Args:
        expected: digests of the parts it was trained with (`text`, `stem`, `preprocess`).

    Raises:
        BackboneError: it is missing, damaged, of another shape, or was trained with other parts.
    """
    record = _record(path.with_suffix(".json"))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackboneError(
            f"{path}: not readable ({error.strerror}); run: make mini-backbone"
        ) from error
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    if digest != record.get("digest"):
        raise BackboneError(
            f"{path}: digest {digest}, expected {record.get('digest')}; reinstall pidep or run: "
            "make mini-backbone"
        )
    for part, value in expected.items():
        # The connector translates between exactly these parts; with another stem its vectors mean
        # nothing.
        if record.get(part) != value:
            raise BackboneError(
                f"{path}: trained with {part} {record.get(part)}, found {value}; run: make "
                "mini-backbone"
            )
    try:
        tensors = _floats(load(data))
        count = len(tensors.get(_POINTS, ()))  # The file says how many points there are.
        past = connector.past
        past.points, past.vectors = (
            torch.zeros(count, old.shape[1]) for old in (past.points, past.vectors)
        )
        connector.load_state_dict(tensors)
    except (RuntimeError, SafetensorError) as error:
        raise BackboneError(
            f"{path}: does not fit ({' '.join(str(error).split())[:200]}); run: make mini-backbone"
        ) from error
    connector.requires_grad_(False).eval()
    return digest


def _eight_bits(points: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, Q]` as int8, and the largest value of each column as fp16.

    127 stands for the largest value.
    """
    largest = points.abs().amax(0).half()
    return (points / largest.float() * 127.0).round().clamp(-127.0, 127.0).to(
        torch.int8
    ).contiguous(), largest


def as_kept(points: Tensor) -> Tensor:
    """Points as a file gives them back.

    Vectors must be fitted around these, not around the originals.
    """
    eight, largest = _eight_bits(points)
    return eight.float() * (largest.float() / 127.0)


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {name: value.float() for name, value in tensors.items() if name != _LARGEST}
    if _LARGEST in tensors and _POINTS in out:
        out[_POINTS] *= tensors[_LARGEST].float() / 127.0
    return out


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"{path}: not readable ({' '.join(str(error).split())}); run: make mini-backbone"
        ) from error
    if not isinstance(record, dict):
        raise BackboneError(
            f"{path}: expected a JSON object, found {type(record).__name__}; run: make "
            "mini-backbone"
        )
    return record
