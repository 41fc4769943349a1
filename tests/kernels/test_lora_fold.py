"""Folding a mixture of LoRAs into a weight is as precise as fp32 followed by rounding, in every
dtype.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pidep.kernels import lora_fold as module
from pidep.kernels.lora_fold import lora_fold, reference
from tests.kernels.tolerance import DTYPES, assert_near, error_of

SHAPES = [(7, 5, 3), (130, 200, 32), (1, 1, 1), (65, 129, 70), (0, 4, 2), (4, 6, 0)]
PATHS = ["torch", "fused"]


def choose(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "fused":
        monkeypatch.setattr(module, "fusable", lambda *_: True)


def draw(outputs: int, inputs: int, rank: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    w, a, b = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((outputs, inputs), (rank, inputs), (outputs, rank))
    )
    return [w, a, b, torch.rand(rank, generator=generator)]


def exact(w: Tensor, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return w.double() + (b.double() * weight.double()) @ a.double()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_sum(
    path: str, dtype: torch.dtype, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(path, monkeypatch)
    given = draw(*shape, dtype)
    before = given[0].clone()
    found = lora_fold(*given)
    assert found.dtype == dtype
    assert torch.equal(given[0], before)
    assert_near(found, exact(*given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_as_good_as_fp32_then_rounded(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU only. The interpreter truncates bf16, so `make gpu-check` tests a GPU's
    rounding.
    """
    monkeypatch.setattr(reference, "BLOCK", 1000)
    given = draw(130, 200, 32, dtype)
    want = exact(*given)
    nearest = want.to(dtype)
    found = lora_fold(*given)
    assert error_of(found, want) <= error_of(nearest, want) * 1.01
    assert float((found != nearest).float().mean()) < 1e-2
    naive = given[0] + (given[2] * given[3].to(dtype)) @ given[1]
    assert error_of(naive, want) > 1.3 * error_of(found, want)


@pytest.mark.parametrize("path", PATHS)
def test_in_place_and_transposed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(path, monkeypatch)
    w, a, b, weight = draw(65, 129, 16, torch.float32)
    want = exact(w, a, b, weight)
    turned = w.t().contiguous().t()  # the layout of Conv1D
    assert lora_fold(turned, a, b, weight, out=turned) is turned
    assert_near(turned, want)
    assert lora_fold(w, a, b, weight, out=w) is w
    assert_near(w, want)


def test_what_does_not_fit_is_refused_by_name() -> None:
    w, a, b, weight = draw(6, 7, 3, torch.float32)
    for wrong in (
        (w[:5], a, b, weight),
        (w, a[:, :6], b, weight),
        (w, a, b[:, :2], weight),
        (w, a, b, weight[:2]),
        (w[0], a, b, weight),
    ):
        with pytest.raises(
            ValueError,
            match=r"lora_fold: w .* expected \[out, in\], \[R, in\], \[out, R\] and \[R\]",
        ):
            lora_fold(*wrong)
    with pytest.raises(
        ValueError, match=r"out is torch.float64 \(6, 7\), expected w's torch.float32"
    ):
        lora_fold(w, a, b, weight, out=w.double())
