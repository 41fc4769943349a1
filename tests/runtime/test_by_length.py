"""Parts of a batch: they take the least time, and their outputs come back in the rows' places."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.runtime.by_length import parts_by_length, run_by_length

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=9)
RUN_TOKENS = 16


def cost(parts: list[Any], lengths: list[int]) -> int:
    return sum(RUN_TOKENS + len(part) * max(lengths[at] for at in part) for part in parts)


@given(LENGTHS)
def test_no_cut_of_the_sorted_rows_costs_less(lengths: list[int]) -> None:
    parts = parts_by_length(np.array(lengths), run_tokens=RUN_TOKENS)
    assert sorted(at for part in parts for at in part) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    every = []
    for cuts in range(2 ** (len(order) - 1)):
        ends = [at + 1 for at in range(len(order) - 1) if cuts >> at & 1]
        every.append([order[a:b] for a, b in pairwise([0, *ends, len(order)])])
    assert cost(parts, lengths) == min(cost(one, lengths) for one in every)


def feeds_of(lengths: list[int], visual: list[int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mask = np.array([[at < one for at in range(max(lengths))] for one in lengths], np.int64)
    seen = np.array([[at < one for at in range(max(visual))] for one in visual], np.int64)
    return {
        "input_ids": rng.integers(1, 99, mask.shape) * mask,
        "attention_mask": mask,
        "visual": rng.normal(size=(*seen.shape, 2)).astype(np.float32) * seen[..., None],
        "visual_mask": seen.reshape(len(lengths), -1),
    }


@pytest.mark.parametrize("visual", [[0, 0, 0, 0], [0, 2, 0, 2]])
def test_each_output_is_its_row_s(visual: list[int]) -> None:
    feeds = feeds_of([3, 90, 2, 80], visual)
    widths = []

    def run(part: dict[str, Any], rows: Any) -> Any:
        widths.append((part["input_ids"].shape, part["visual"].shape[1]))
        sums = part["input_ids"].sum(1) + part["visual"].sum((1, 2))
        return np.stack([sums, rows], 1)

    found = run_by_length(run, feeds, run_tokens=RUN_TOKENS)
    expected = feeds["input_ids"].sum(1) + feeds["visual"].sum((1, 2))
    np.testing.assert_array_equal(found, np.stack([expected, range(4)], 1))
    # Neither the long rows' padding nor the images' places reach the short ones.
    places = max(visual)
    assert widths == [((2, 3), 0), ((1, 80), places), ((1, 90), places)] or widths == [
        ((2, 3), 0),
        ((2, 90), places),
    ]


def test_a_gpu_runs_the_batch_as_a_whole() -> None:
    feeds = feeds_of([3, 90], [0, 0])
    found = run_by_length(lambda part, _: part["input_ids"], feeds, run_tokens=None)
    assert found is feeds["input_ids"] or found.shape == (2, 90)


def test_equal_rows_are_one_part() -> None:
    parts = parts_by_length(np.full(64, 20), run_tokens=RUN_TOKENS)
    assert [list(part) for part in parts] == [list(range(64))]
