"""A batch run in parts of similar lengths, so that short rows do not pay for the longest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.runtime.answer import Array

__all__ = ["parts_by_length", "run_by_length", "tokens_of_a_run"]

IntArray = npt.NDArray[np.int64]

_TOKENS = {"input_ids": "attention_mask", "visual": "visual_mask"}
"""Graph input `[B, T, …]` to the input `[B, T]` that says which of its places are used."""

_TOKENS_PER_THREAD = 8
"""Tokens in whose time a thread does what a run costs besides its tokens: measured with
MiniLM, 8 to 12."""


def tokens_of_a_run(session: Any) -> int | None:
    """`run_tokens` of an ONNX Runtime session; None where it runs on a GPU.

    A GPU answers a small batch in nearly the time of a large one, so parts would gain nothing.
    """
    if session.get_providers() != ["CPUExecutionProvider"]:
        return None
    return int(session.get_session_options().intra_op_num_threads) * _TOKENS_PER_THREAD


def run_by_length(
    run: Callable[[dict[str, Array], IntArray], Array],
    feeds: Mapping[str, Array],
    *,
    run_tokens: int | None,
) -> Array:
    """The graph's output `[B, …]` for a batch, run part by part.

    Args:
        run: runs the graph on the inputs of a part; also gets the numbers of its rows.
        feeds: inputs of the whole batch, each row padded at its end to the longest one.
        run_tokens: as `parts_by_length` takes it; None runs the batch as a whole.
    """
    lengths = sum(feeds[mask].sum(1) for mask in _TOKENS.values() if mask in feeds)
    parts = [np.arange(len(lengths))]
    if run_tokens is not None:
        parts = parts_by_length(lengths, run_tokens=run_tokens)
    if len(parts) == 1:
        return run(dict(feeds), parts[0])
    outputs = [run(_of_rows(feeds, rows), rows) for rows in parts]
    found = np.empty((len(lengths), *outputs[0].shape[1:]), outputs[0].dtype)
    for rows, output in zip(parts, outputs, strict=True):
        found[rows] = output
    return found


def parts_by_length(lengths: IntArray, *, run_tokens: int) -> list[IntArray]:
    """The numbers of the rows in each part, so that all runs together take the least time.

    Args:
        lengths: tokens of each row, `[B]`.
        run_tokens: tokens in whose time the graph does what it does once a run, whatever its rows.

    >>> parts_by_length(np.array([5, 90, 6]), run_tokens=16)
    [array([0, 2]), array([1])]
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    count = len(order)
    # least[n]: the cost of the n shortest rows; the last part of them begins at begin[n].
    least, begin = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    starts = np.arange(count)
    for end in range(1, count + 1):
        cost = least[:end] + run_tokens + (end - starts[:end]) * ordered[end - 1]
        begin[end] = cost.argmin()
        least[end] = cost[begin[end]]
    parts, end = [], count
    while end:
        parts.append(np.sort(order[begin[end] : end]))
        end = int(begin[end])
    return parts[::-1]


def _of_rows(feeds: Mapping[str, Array], rows: IntArray) -> dict[str, Array]:
    """The inputs of some rows, without the places that none of them uses."""
    found = {name: array[rows] for name, array in feeds.items()}
    for name, mask in _TOKENS.items():
        if mask in found:
            used = int(found[mask].sum(1).max(initial=0))
            found |= {one: np.ascontiguousarray(found[one][:, :used]) for one in (name, mask)}
    return found
