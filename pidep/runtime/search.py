"""Greedy and beam search over a decoder that continues sequences. numpy only.

The beam search is transformers' with `early_stopping="never"`: at each step the best 2b
continuations of b beams, of which those among the first b that end are finished, and the best b
that do not go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pidep.inputs.trie import Trie
from pidep.runtime.answer import Array

__all__ = ["Step", "beam_search", "greedy_search", "log_softmax"]

Ints = npt.NDArray[np.int64]
Step = Callable[[Ints, Ints], Array]
"""Tokens `[n]` and which sequence each continues `[n]`, to logits of the next one `[n, V]`."""
_NEVER = -1e9
"""Score of a beam that must not win. transformers' value: sums with it are compared, too."""


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last axis, fp32."""
    shifted = logits.astype(np.float32) - logits.max(-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def greedy_search(
    step: Step, count: int, *, start: int, end: int, limits: Sequence[int]
) -> list[list[int]]:
    """The likeliest token at each step, for each of `count` rows; the closing token is the last.

    Args:
        limits: tokens of each row's answer at most.
    """
    found: list[list[int]] = [[] for _ in range(count)]
    tokens, same = np.full(count, start, np.int64), np.arange(count)
    for at in range(max(limits, default=0)):
        tokens = step(tokens, same).argmax(-1)
        for row, own in enumerate(found):
            if at < limits[row] and (not own or own[-1] != end):
                own.append(int(tokens[row]))
        if all(
            own[-1] == end or len(own) == limit for own, limit in zip(found, limits, strict=True)
        ):
            break
    return found


def beam_search(
    step: Step,
    count: int,
    *,
    start: int,
    end: int,
    beams: int,
    limit: int,
    penalty: float,
    tries: Sequence[Trie] | None = None,
) -> list[list[int]]:
    """The best answer to each of `count` rows; sequences of a row lie next to each other.

    Args:
        limit: tokens of an answer at most.
        penalty: a sum of log-probabilities is divided by length ** penalty.
        tries: of each row, where only some answers are allowed.
    """
    scores = np.zeros((count, beams), np.float32)
    scores[:, 1:] = _NEVER  # all beams begin alike, and must not all go the same way
    running = np.zeros((count, beams, 0), np.int64)
    done = _Finished(count, beams, limit, end)
    open_rows = np.ones((count, 1), bool)
    tokens, parents = np.full(count * beams, start, np.int64), np.arange(count * beams)
    for at in range(limit):
        logs = log_softmax(step(tokens, parents))
        if tries is not None:
            logs = _allowed(logs, running.reshape(count * beams, -1), tries, beams)
        # Two for each beam, so that b of them go on even where b end.
        best, at_beam, token = _best(logs.reshape(count, beams, -1) + scores[:, :, None], 2 * beams)
        longer = np.concatenate(
            [np.take_along_axis(running, at_beam[:, :, None], 1), token[:, :, None]], 2
        )
        ends = (token == end) | (at + 1 == limit)
        done.add(longer, best, ends=ends, is_open=open_rows, penalty=penalty)
        going = best + ends * np.float32(_NEVER)
        order = np.argsort(-going, 1, kind="stable")[:, :beams]
        scores = np.take_along_axis(going, order, 1)
        running = np.take_along_axis(longer, order[:, :, None], 1)
        tokens = running[:, :, -1].reshape(-1)
        from_beam = np.take_along_axis(at_beam, order, 1)
        parents = (from_beam + beams * np.arange(count)[:, None]).reshape(-1)
        # What a running beam could reach: a longer answer is divided by more.
        reach = limit if penalty > 0 else at + 1
        open_rows &= (scores[:, :1] / reach**penalty > done.worst).any(1, keepdims=True)
        if not open_rows.any() or ends.all():
            break
    return done.answers()


class _Finished:
    """The best b finished answers of each row."""

    def __init__(self, count: int, beams: int, limit: int, end: int) -> None:
        self._ids = np.full((count, beams, limit), end, np.int64)
        self._lengths = np.zeros((count, beams), np.int64)
        self._scores = np.full((count, beams), _NEVER, np.float32)
        self._is_done = np.zeros((count, beams), bool)

    @property
    def worst(self) -> Array:
        """Score that each beam must exceed, `[R, b]`."""
        return np.where(self._is_done, self._scores.min(1, keepdims=True), np.float32(_NEVER))

    def add(self, ids: Ints, best: Array, *, ends: Array, is_open: Array, penalty: float) -> None:
        """Keep the best of these and those before.

        Args:
            ids: continuations `[R, 2b, T]`, the best first.
            best: their sums of log-probabilities.
            ends: which of them end.
            is_open: rows that can still become better `[R, 1]`.
        """
        beams, length = self._scores.shape[1], ids.shape[2]
        fresh = ends & (np.arange(ids.shape[1]) < beams)
        scores = (best / np.float32(length**penalty)).astype(np.float32)
        scores = scores + (~is_open) * np.float32(_NEVER) + (~fresh) * np.float32(_NEVER)
        wide = np.full((*ids.shape[:2], self._ids.shape[2]), 0, np.int64)
        wide[:, :, :length] = ids
        merged = np.concatenate([self._scores, scores], 1)
        order = np.argsort(-merged, 1, kind="stable")[:, :beams]
        self._scores = np.take_along_axis(merged, order, 1)
        self._ids = np.take_along_axis(np.concatenate([self._ids, wide], 1), order[:, :, None], 1)
        lengths = np.concatenate([self._lengths, np.full(scores.shape, length)], 1)
        self._lengths = np.take_along_axis(lengths, order, 1)
        self._is_done = np.take_along_axis(np.concatenate([self._is_done, fresh], 1), order, 1)

    def answers(self) -> list[list[int]]:
        """The best of each row."""
        return [
            [int(one) for one in ids[0][: lengths[0]]]
            for ids, lengths in zip(self._ids, self._lengths, strict=True)
        ]


def _best(scores: Array, count: int) -> tuple[Array, Ints, Ints]:
    """The largest of `[R, b, V]`, in order: scores, beams and tokens, each `[R, count]`."""
    flat = scores.reshape(len(scores), -1)
    count = min(count, flat.shape[1])
    # First the largest in any order, because a whole sort of the vocabulary takes long.
    some = np.argpartition(-flat, count - 1, 1)[:, :count]
    some.sort(1)  # of equal scores, the smaller token first
    order = np.argsort(-np.take_along_axis(flat, some, 1), 1, kind="stable")
    chosen = np.take_along_axis(some, order, 1)
    return np.take_along_axis(flat, chosen, 1), chosen // scores.shape[2], chosen % scores.shape[2]


def _allowed(logs: Array, ids: Ints, tries: Sequence[Trie], beams: int) -> Array:
    """Log-probabilities of the tokens that may follow; -inf elsewhere."""
    found = np.full_like(logs, -np.inf)
    for at, own in enumerate(ids.tolist()):
        tokens = tries[at // beams].after(own)
        found[at, tokens] = logs[at, tokens]
    return found
