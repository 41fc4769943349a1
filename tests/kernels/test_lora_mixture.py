"""A mixture of LoRA products on both paths, forward and every gradient, compared with float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pidep.kernels import lora_mixture as module
from pidep.kernels import low_rank
from pidep.kernels.lora_mixture import lora_mixture, reference
from tests.kernels.tolerance import DTYPES, assert_near

SHAPES = [(1, 5, 7, 3), (70, 96, 130, 8), (33, 64, 64, 40), (0, 8, 8, 4), (20, 16, 24, 128)]
PATHS = ["torch", "fused"]


def choose(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "fused":
        monkeypatch.setattr(module, "fusable", lambda *_: True)


def draw(tokens: int, inputs: int, outputs: int, rank: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, inputs), (rank, inputs), (outputs, rank), (tokens, outputs))
    x, a, b, base = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes
    )
    return [x, a, b, torch.rand(rank, generator=generator).requires_grad_(), base]


def exact(leaves: list[Tensor], gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The formula in float64, one expert's rank at a time."""
    x, a, b, weight, base = doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = base
    for r in range(len(a)):
        y = y + weight[r] * (x @ a[r])[..., None] * b[:, r]
    y.backward(gradient.double())
    return y.detach(), [leaf.grad for leaf in doubles]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_formula(
    path: str, dtype: torch.dtype, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(path, monkeypatch)
    leaves = draw(*shape, dtype)
    gradient = torch.randn(shape[0], shape[2], generator=torch.Generator().manual_seed(1)).to(dtype)
    want, gradients = exact(leaves, gradient)
    found = lora_mixture(*leaves)
    assert found.dtype == dtype
    found.backward(gradient)
    for mine, other in zip(
        [found, *(leaf.grad for leaf in leaves)], [want, *gradients], strict=True
    ):
        assert_near(mine, other, dtype, roundings=3)  # x A, its product with α s, and the result


@pytest.mark.parametrize("path", PATHS)
def test_batches_and_no_base(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(path, monkeypatch)
    x, a, b, weight, base = draw(24, 10, 12, 5, torch.float32)
    want = reference.lora_mixture(x, a, b, weight)
    assert_near(lora_mixture(x, a, b, weight), want)
    cube = x.view(2, 3, 4, 10)
    assert_near(
        lora_mixture(cube, a, b, weight, base.view(2, 3, 4, 12)).reshape(24, 12), want + base
    )
    transposed = x.detach().t().contiguous().t()
    assert_near(lora_mixture(transposed, a, b, weight), want)


def test_ranks_that_do_not_fit_use_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    choose("fused", monkeypatch)
    monkeypatch.setattr(module, "forward_pass", None)  # a call would raise here
    for rank in (0, low_rank.MAX_RANK + 1):
        x, a, b, weight, base = draw(6, 8, 9, rank, torch.float32)
        assert_near(
            lora_mixture(x, a, b, weight, base), reference.lora_mixture(x, a, b, weight, base)
        )


def test_sums_over_tokens_are_the_same_bits_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    choose("fused", monkeypatch)
    runs = []
    for _ in range(2):
        leaves = draw(200, 12, 9, 4, torch.float32)
        lora_mixture(*leaves).square().sum().backward()
        runs.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_alpha_alone_can_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = draw(20, 12, 9, 4, torch.float32)
    lora_mixture(*leaves).square().sum().backward()
    want = leaves[3].grad
    choose("fused", monkeypatch)
    x, a, b, weight, base = (leaf.detach() for leaf in leaves)
    lora_mixture(x, a, b, weight.requires_grad_(), base).square().sum().backward()
    assert_near(weight.grad, want)
    assert all(tensor.grad is None for tensor in (x, a, b, base))


def test_gradients_in_float64() -> None:
    leaves = [leaf.detach().double().requires_grad_() for leaf in draw(5, 4, 3, 6, torch.float32)]
    assert torch.autograd.gradcheck(lora_mixture, leaves)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, a, b, weight, _ = draw(1, 10, 12, 5, torch.float32)
        self.a, self.b, self.weight = (nn.Parameter(tensor.detach()) for tensor in (a, b, weight))

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        return lora_mixture(x, self.a, self.b, self.weight, base)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_compiled_it_is_the_same(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(path, monkeypatch)
    layer, x, base = Layer(), torch.randn(6, 10), torch.randn(6, 12)
    layer(x, base).square().sum().backward()
    want = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x, base).square().sum().backward()
    for parameter, other in zip(layer.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_operator_keeps_torchs_rules() -> None:
    x, a, b, weight, base = draw(6, 10, 12, 5, torch.float32)
    torch.library.opcheck(module.lora_mixture_op, (x, a, b, weight, base))
    torch.library.opcheck(module.lora_mixture_op, (x, a, b, weight, None))


def test_what_does_not_fit_is_refused_by_name() -> None:
    x, a, b, weight, base = draw(6, 10, 12, 5, torch.float32)
    for wrong in (
        (x[:, :9], a, b, weight),
        (x, a, b[:, :4], weight),
        (x, a, b, weight[:4]),
        (x, a[0], b, weight),
    ):
        with pytest.raises(
            ValueError,
            match=r"lora_mixture: x .* expected \[\.\.\., in\], \[R, in\], \[out, R\] and \[R\]",
        ):
            lora_mixture(*wrong)
    with pytest.raises(ValueError, match=r"base is \(6, 11\), expected \(6, 12\)"):
        lora_mixture(x, a, b, weight, base[:, :11])
