"""Times the choices of the kernels' launch table on this GPU and keeps the best: `make
tune-launches`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from pidep.kernels.interpolate import ArenaIndex, interpolate
from pidep.kernels.launch_table import Settings, tune
from pidep.kernels.lora_fold import lora_fold
from pidep.kernels.lora_mixture import lora_mixture
from pidep.kernels.paths import report

__all__ = ["tune_all"]

Work = Callable[[], object]


def tune_all(
    device: str = "cuda", *, say: Callable[[str], None] = lambda _: None
) -> dict[str, Settings]:
    """Time all choices of all kernels in fp32 and bf16, keep the best in the launch table, return
    them.
    """
    found: dict[str, Settings] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for kernel, work in _works(dtype, device).items():
            name = f"{kernel}, {str(dtype).removeprefix('torch.')}"
            found[name] = tune(kernel, dtype, work, _milliseconds)
            say(f"{name}: {found[name]}")
    return found


def _works(dtype: torch.dtype, device: str) -> dict[str, Work]:
    """The work that each kernel is tuned on.

    16M elements and four experts; 4096 tokens of width 1024; a weight of 4096 × 4096.
    """

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    from pidep.kernels.low_rank import outer

    index = ArenaIndex.of([2**24], device=device)
    rows, logits, gradient = (
        draw(4, 2**24).requires_grad_(),
        torch.randn(1, 4, device=device),
        draw(2**24),
    )
    mixed = interpolate(rows, None, logits, index)
    frozen = rows.detach()

    def backward() -> None:
        rows.grad = None
        mixed.backward(gradient, retain_graph=True)  # type: ignore[no-untyped-call]

    x, hidden, weight, w = (
        draw(4096, 1024),
        draw(4096, 32),
        torch.rand(32, device=device),
        draw(4096, 4096),
    )
    narrow, wide = (draw(32, 1024), draw(1024, 32)), (draw(32, 4096), draw(4096, 32))
    return {
        "interpolate_forward": lambda: interpolate(frozen[:0], frozen, logits, index),
        "interpolate_backward": backward,
        "lora_fold": lambda: lora_fold(w, *wide, weight, out=w),
        "low_rank": lambda: lora_mixture(x, *narrow, weight),
        "low_rank_outer": lambda: outer(hidden, x),
    }


def _milliseconds(work: Work) -> float:
    """The median; caches are flushed between calls."""
    from triton.testing import do_bench

    return float(do_bench(work, warmup=10, rep=40, return_mode="median"))


def main() -> None:
    """Tune, and print the settings that were kept."""
    here = report()
    if here.path != "fused":
        sys.exit(
            f"tune-launches: the kernels run in plain torch here ({here.why}); run it on a machine "
            "with an NVIDIA GPU"
        )
    tune_all(say=print)


if __name__ == "__main__":
    main()
