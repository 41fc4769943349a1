"""A different LoRA for each row of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pidep.kernels import lora_bank as module
from pidep.kernels.launch_table import recording
from pidep.kernels.lora_bank import lora_bank
from pidep.kernels.low_rank import low_rank
from tests.kernels.tolerance import DTYPES, assert_near

PATHS = ["torch", "fused"]


def draw(
    dtype: torch.dtype, *, batch: int = 5, tokens: int = 33, experts: int = 4, rank: int = 8
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, tokens, 20), (experts, rank, 20), (experts, rank, 30), (batch, tokens, 30))
    x, a, b, base = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [x, a, b, torch.randint(experts, (batch,), generator=generator), base]


def exact(x: Tensor, a: Tensor, b: Tensor, expert: Tensor, base: Tensor) -> Tensor:
    rows = [
        x[row].double() @ a[expert[row]].double().t() @ b[expert[row]].double() + base[row].double()
        for row in range(len(x))
    ]
    return torch.stack(rows) if rows else base.double()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "rank"), [(5, 33, 8), (1, 1, 1), (3, 70, 40), (0, 4, 8), (4, 0, 8)]
)
def test_each_row_goes_through_its_own(
    path: str,
    dtype: torch.dtype,
    batch: int,
    tokens: int,
    rank: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if path == "fused":
        monkeypatch.setattr(module, "fusable", lambda *_: True)
    given = draw(dtype, batch=batch, tokens=tokens, rank=rank)
    found, want = lora_bank(*given), exact(*given)
    assert found.dtype == dtype
    assert_near(found, want, roundings=2)  # x A, and the result


def test_one_token_a_row_and_factors_that_are_apart_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, a, b, expert, base = draw(torch.float32)
    flat = x[:, 0]
    want = exact(x[:, :1], a, b, expert, base[:, :1])[:, 0]
    assert_near(lora_bank(flat, a[expert], b[expert], base=base[:, 0]), want)
    monkeypatch.setattr(module, "fusable", lambda *_: True)
    assert_near(lora_bank(flat, a, b, expert, base[:, 0]), want)


def test_with_gradients_it_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fusable", lambda *_: True)
    x, a, b, expert, base = draw(torch.float32)
    a.requires_grad_()
    lora_bank(x, a, b, expert, base).sum().backward()
    used = torch.bincount(expert, minlength=len(a)) > 0
    assert torch.equal(a.grad.abs().sum((1, 2)) > 0, used)


def test_a_base_that_learns_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fusable", lambda *_: True)
    *given, base = draw(torch.float32)
    lora_bank(*given, base.requires_grad_()).sum().backward()
    assert torch.equal(base.grad, torch.ones_like(base))


def test_more_rows_than_a_second_axis_of_a_grid_takes() -> None:
    x, a, b = (
        torch.empty(shape, device="meta") for shape in ((100_000, 1, 20), (4, 8, 20), (4, 8, 30))
    )
    with recording() as launches:
        low_rank(x, a, b, expert=torch.empty(100_000, dtype=torch.int64, device="meta"))
    assert [launch.grid for launch in launches] == [(100_000,)]


def test_a_bank_of_more_than_two_to_the_31_elements() -> None:
    """Experts 2³⁰ elements apart, so that only number times stride exceeds int32.

    Memory is mapped only where it is touched.
    """
    bank = torch.from_numpy(np.zeros(2**31 + 4096, np.float16)).as_strided(
        (3, 2, 24), (2**30 + 1024, 24, 1)
    )
    x, bank[2] = torch.randn(2, 3, 24).half(), torch.randn(2, 24).half()
    y, _, _ = low_rank(x, bank, bank, expert=torch.tensor([2, 0]))
    factor = bank[2].double()
    assert_near(y[0], x[0].double() @ factor.t() @ factor, roundings=2)
    assert not y[1].any()


def test_what_does_not_fit_is_refused_by_name() -> None:
    x, a, b, expert, _ = draw(torch.float32)
    for wrong in (
        (x, a[:, :, :9], b, expert),
        (x, a, b[:3], expert),
        (x, a, b),
        (x, a[0], b[0], expert),
        (x, a, b, expert[:4]),
    ):
        with pytest.raises(ValueError, match=r"lora_bank: x .*expected \[B, T, in\]"):
            lora_bank(*wrong)
