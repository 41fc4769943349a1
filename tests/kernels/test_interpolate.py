"""Interpolation on both paths, compared with the plain expression in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pidep.kernels import interpolate as module
from pidep.kernels.interpolate import GRAIN, ArenaIndex, interpolate, reference, spans_of
from pidep.kernels.interpolate.index import runs_of
from pidep.kernels.interpolate.reference import plain
from tests.kernels.tolerance import DTYPES, assert_near

SITES = [[1], [5, 1024, 3000], [1025, 1, 0, 2048], [0]]
SPLITS = [(1, 0), (0, 1), (1, 3), (4, 0), (0, 5), (3, 4)]
PATHS = ["torch", "fused"]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the fused path in the interpreter."""
    monkeypatch.setattr(module, "fusable", lambda *_: True)


def choose(path: str, request: pytest.FixtureRequest) -> None:
    if path == "fused":
        request.getfixturevalue("fused")


def draw(
    sizes: list[int], learned: int, frozen: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, ArenaIndex]:
    generator = torch.Generator().manual_seed(seed)
    index = ArenaIndex.of(sizes)
    own, helpers = (
        torch.randn(count, index.num_elements, generator=generator).to(dtype)
        for count in (learned, frozen)
    )
    logits = torch.randn(len(sizes), learned + frozen, generator=generator)
    return own.requires_grad_(), helpers, logits.requires_grad_(), index


def check(sizes: list[int], learned: int, frozen: int, dtype: torch.dtype) -> None:
    own, helpers, logits, index = draw(sizes, learned, frozen, dtype)
    own64, logits64 = (tensor.detach().double().requires_grad_() for tensor in (own, logits))
    want = plain(own64, helpers.double(), logits64, sizes)
    gradient = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    want.backward(gradient.double())
    found = interpolate(own, helpers, logits, index)
    assert found.dtype == dtype
    assert_near(found, want)
    found.backward(gradient)
    assert helpers.grad is None
    if learned:
        assert_near(own.grad, own64.grad)
    # dα = α (Σ g φ - …) is a difference of sums, so its error is relative to the sums.
    rows = torch.cat([own64.detach(), helpers.double()])
    scale = max(1.0, float((rows.abs() @ gradient.double().abs()).max()))
    assert float((logits.grad.double() - logits64.grad).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SITES, ids=str)
def test_it_equals_the_plain_expression(
    path: str, dtype: torch.dtype, sizes: list[int], request: pytest.FixtureRequest
) -> None:
    choose(path, request)
    few = (
        path == "fused" and dtype != torch.float32
    )  # the interpreter is slow, and a split into programs means the same in every dtype
    for learned, frozen in SPLITS[2:5:2] if few else SPLITS:
        check(sizes, learned, frozen, dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [2, 7, 16, 33, 64])
def test_any_number_of_experts(path: str, count: int, request: pytest.FixtureRequest) -> None:
    choose(path, request)
    check([1500, 10], count // 2, count - count // 2, torch.float32)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_long_sites_are_processed_block_by_block(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "BLOCK", 8 * GRAIN)
    monkeypatch.setattr(reference, "HUGE", 1 << 16)
    check([70 * GRAIN + 3, 40 * GRAIN], 2, 3, dtype)


def test_tiles_hold_one_site_each_and_cover_the_arena() -> None:
    for sizes in ([1], [0], [], [5 * GRAIN, 1, 0, 3000], [9000 * GRAIN, 7], [40_000 * GRAIN]):
        index = ArenaIndex.of(sizes)
        starts, sites, firsts = (
            index.tile_start.tolist(),
            index.tile_site.tolist(),
            index.site_tile.tolist(),
        )
        assert starts[0] == 0
        assert starts[-1] * GRAIN == index.num_elements
        assert all(0 < after - before <= 16 for before, after in pairwise(starts))
        assert sites == [
            site for site in range(len(sizes)) for _ in range(firsts[site], firsts[site + 1])
        ]
        runs = runs_of(index.tile_start, index.site_tile)
        assert [run.start for run in runs] == [span.start for span in index.spans]
        assert all(run.stop - run.start >= size for run, size in zip(runs, sizes, strict=True))


def test_spans_start_on_grains() -> None:
    assert spans_of([5, 1024, 0, 2000]) == [(0, 5), (1024, 2048), (2048, 2048), (2048, 4048)]
    with pytest.raises(ValueError, match="site sizes are numbers of elements, found -1"):
        ArenaIndex.of([3, -1])


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_every_time(path: str, request: pytest.FixtureRequest) -> None:
    choose(path, request)
    found = []
    for _ in range(2):
        own, helpers, logits, index = draw([5000, 20], 2, 3, torch.float32)
        mixed = interpolate(own, helpers, logits, index)
        mixed.square().sum().backward()
        found.append((mixed.detach(), own.grad, logits.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_huge_logits_are_a_choice_not_a_nan(path: str, request: pytest.FixtureRequest) -> None:
    choose(path, request)
    own, helpers, logits, index = draw([10], 1, 2, torch.float32)
    for values, chosen in (([1e4, 0.0, -1e4], own), ([-1e30, 1e30, 0.0], helpers[:1])):
        with torch.no_grad():
            logits[0] = torch.tensor(values)
        assert torch.equal(interpolate(own, helpers, logits, index), chosen[0])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6), chosen=st.integers(0, 5))
def test_one_hot_is_that_expert(seed: int, count: int, chosen: int) -> None:
    own, _, logits, index = draw([7, 1500], count, 0, torch.float32, seed)
    with torch.no_grad():
        logits.fill_(-1e4)[:, chosen % count] = 1e4
        assert torch.equal(interpolate(own, None, logits, index), own[chosen % count])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(5)), shift=st.floats(-5, 5))
def test_order_and_a_common_shift_of_the_logits_do_not_matter(
    seed: int, order: list[int], shift: float
) -> None:
    own, helpers, logits, index = draw([7, 1500], 2, 3, torch.float32, seed)
    with torch.no_grad():
        want = interpolate(own, helpers, logits, index)
        rows = torch.cat([own, helpers])[order]
        found = interpolate(
            rows[:4].contiguous(),
            rows[4:].contiguous(),
            (logits[:, order] + shift).contiguous(),
            index,
        )
    torch.testing.assert_close(found, want, atol=2e-6, rtol=2e-5)


def test_gradients_in_float64() -> None:
    own, helpers, logits, index = draw([3, 5], 2, 2, torch.float64)
    logits = logits.detach().double().requires_grad_()
    keep = torch.zeros(index.num_elements, dtype=torch.float64)
    for span in index.spans:
        keep[span.start : span.stop] = 1

    def few(part: Tensor, logits: Tensor) -> Tensor:
        rows = torch.zeros(2, index.num_elements, dtype=torch.float64).index_put(
            (torch.arange(2)[:, None], keep.nonzero()[:, 0]), part
        )
        return interpolate(rows, helpers, logits, index)[keep.bool()]

    assert torch.autograd.gradcheck(few, (own.detach()[:, keep.bool()].requires_grad_(), logits))


def test_out_is_written_and_only_without_gradients() -> None:
    own, helpers, logits, index = draw([2000, 9], 2, 2, torch.float32)
    out = torch.full((index.num_elements,), torch.nan)
    with torch.no_grad():
        assert interpolate(own, helpers, logits, index, out=out) is out
        assert torch.equal(out, interpolate(own, helpers, logits, index))
        for wrong in (out[:-1], out.double(), torch.empty(2 * len(out))[::2]):
            with pytest.raises(ValueError, match=r"out is .*, expected contiguous"):
                interpolate(own, helpers, logits, index, out=wrong)
    with pytest.raises(ValueError, match="out is for use without gradients"):
        interpolate(own, helpers, logits, index, out=out)


class Mixed(nn.Module):
    """What `torch.compile` and an exporter receive."""

    def __init__(self) -> None:
        super().__init__()
        own, helpers, logits, self.index = draw([2000, 9], 2, 2, torch.float32)
        self.own, self.logits = nn.Parameter(own.detach()), nn.Parameter(logits.detach())
        self.register_buffer("helpers", helpers)

    def forward(self, x: Tensor) -> Tensor:
        return x * interpolate(self.own, self.helpers, self.logits, self.index)


def gradients(mixed: nn.Module, of: Mixed, x: Tensor) -> list[Tensor]:
    of.zero_grad()
    y = mixed(x)
    y.square().sum().backward()
    return [y.detach(), of.own.grad.clone(), of.logits.grad.clone()]


@pytest.mark.slow
def test_compiled_and_exported_it_is_the_same() -> None:
    mixed, x = Mixed(), torch.randn(5120)[: Mixed().index.num_elements]
    eager = gradients(mixed, mixed, x)
    compiled = gradients(torch.compile(mixed, backend="aot_eager", fullgraph=True), mixed, x)
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other)
    exported = torch.export.export(mixed, (x,))
    assert any(node.target is torch.ops.pidep.interpolate.default for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), eager[0])


@pytest.mark.slow
def test_the_operators_keep_torchs_rules() -> None:
    own, helpers, logits, index = draw([2000, 9], 2, 2, torch.float32)
    where = (index.tile_start, index.tile_site, index.site_tile)
    torch.library.opcheck(module.interpolate_op, (own, helpers, logits, *where))
    arguments = (
        torch.randn(index.num_elements),
        own.detach(),
        helpers,
        logits.detach(),
        *where,
        True,
    )
    torch.library.opcheck(module.interpolate_backward_op, arguments)


def test_what_does_not_fit_is_refused_by_name() -> None:
    own, helpers, logits, index = draw([2000, 9], 2, 2, torch.float32)
    with pytest.raises(ValueError, match=r"learned is \(2, 9\), the index needs \[experts, 3072\]"):
        interpolate(own[:, :9], helpers, logits, index)
    with pytest.raises(ValueError, match=r"frozen is torch\.int64"):
        interpolate(own, helpers.long(), logits, index)
    with pytest.raises(
        ValueError,
        match=(
            r"alpha_logits is \(2, 3\), expected one row a site and one column an expert, \(2, 4\)"
        ),
    ):
        interpolate(own, helpers, logits[:, :3], index)
    with pytest.raises(ValueError, match="frozen experts are not given a gradient"):
        interpolate(own, helpers.requires_grad_(), logits, index)
    with pytest.raises(ValueError, match="of at least one expert"):
        interpolate(own[:0], helpers[:0], logits[:, :0], index)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_offsets_past_int32(path: str, request: pytest.FixtureRequest) -> None:
    """The last grains of rows whose elements have numbers above 2³¹.

    Memory is mapped only where it is touched.
    """
    choose(path, request)
    size, count = 2**30 + GRAIN, 3
    rows = torch.from_numpy(np.zeros((count, size), np.float16))  # zero pages that take no memory
    rows[:, -GRAIN:] = torch.randn(count, GRAIN).half()
    logits = torch.randn(1, count)
    last = torch.tensor([size // GRAIN - 1, size // GRAIN], dtype=torch.int32)
    site, tiles = torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    want = (torch.softmax(logits[0].double(), 0)[:, None] * rows[:, -GRAIN:].double()).sum(0)
    if path == "fused":
        from pidep.kernels.interpolate import fused as kernels

        found = torch.from_numpy(np.zeros(size, np.float16))
        kernels.forward(rows[:0], rows, logits, last, site, found)
        g = torch.from_numpy(np.zeros(size, np.float16))
        g[-GRAIN:] = 1
        _, d_logits = kernels.backward(g, rows[:0], rows, logits, last, site, tiles, write=False)
        shares = rows[:, -GRAIN:].double().sum(1)
        alpha = torch.softmax(logits[0].double(), 0)
        torch.testing.assert_close(
            d_logits[0].double(), alpha * (shares - (alpha * shares).sum()), rtol=1e-3, atol=1e-3
        )
        assert_near(found[-GRAIN:], want)
    else:
        runs = runs_of(last, tiles)
        assert runs == [(size - GRAIN, size)]
        out = torch.from_numpy(np.zeros(size, np.float16))
        reference.forward(rows[:0], rows, logits, last, tiles, out)
        assert_near(out[-GRAIN:], want)


@pytest.mark.slow
def test_gradients_of_learned_rows_past_int32() -> None:
    from pidep.kernels.interpolate import fused as kernels

    size = 2**30 + 2 * GRAIN
    rows, g = (torch.from_numpy(np.zeros(shape, np.float16)) for shape in ((2, size), size))
    rows[:, -GRAIN:], g[-GRAIN:] = torch.tensor([[1.0], [3.0]]), 1
    index = (
        torch.tensor(values, dtype=torch.int32)
        for values in ([size // GRAIN - 1, size // GRAIN], [0], [0, 1])
    )
    d_learned, d_logits = kernels.backward(g, rows, rows[:0], torch.zeros(1, 2), *index, write=True)
    assert (d_learned[:, -GRAIN:] == 0.5).all()
    assert d_logits.tolist() == [[-GRAIN / 2, GRAIN / 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_torch_allocates_on_the_device_of_its_arguments(dtype: torch.dtype) -> None:
    """Old GPUs use this path too. A tensor made without a device would be on the CPU there. In this
    test, it would be on the meta device.
    """
    own, helpers, logits, index = draw([5, 1030], 1, 2, dtype)
    with torch.device("meta"):
        found = interpolate(own, helpers, logits, index)
        found.sum().backward()
    assert {one.device.type for one in (found, own.grad, logits.grad)} == {"cpu"}


def test_without_a_learned_expert_gradients_are_empty() -> None:
    own, helpers, logits, index = draw([5, 1030], 0, 2, torch.float32)
    interpolate(own, helpers, logits, index).sum().backward()
    assert own.grad.shape == (0, index.num_elements)
