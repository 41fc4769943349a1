"""The tokens that may follow, where an answer must be one of some candidates. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Trie"]


class Trie:
    """Token sequences that each end with the same closing token, as a tree of prefixes."""

    def __init__(self, sequences: Sequence[Sequence[int]], *, end: int) -> None:
        self._end = end
        self._root: dict[int, Any] = {}
        for sequence in sequences:
            node = self._root
            for token in sequence:
                node = node.setdefault(token, {})

    def after(self, prefix: Sequence[int]) -> list[int]:
        """What may follow; only the closing token behind a whole sequence, or behind a prefix of none (a beam that is lost already).

        >>> Trie([[5, 6, 2], [5, 7, 2]], end=2).after([5])
        [6, 7]
        """
        node = self._root
        for token in prefix:
            node = node.get(token, {})
        return list(node) or [self._end]
