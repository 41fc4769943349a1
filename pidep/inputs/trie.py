"""The allowed next tokens of an answer that must be one of some candidates. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Trie"]


class Trie:
    """Token sequences with one closing token, as a tree of prefixes."""

    def __init__(self, sequences: Sequence[Sequence[int]], *, end: int) -> None:
        self._end = end
        self._root: dict[int, Any] = {}
        for sequence in sequences:
            node = self._root
            for token in sequence:
                node = node.setdefault(token, {})

    def after(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow a prefix.

        After a whole sequence only the closing token may follow; likewise after a prefix of no
        candidate, which a lost beam can have.

        >>> Trie([[5, 6, 2], [5, 7, 2]], end=2).after([5])
        [6, 7]
        """
        node = self._root
        for token in prefix:
            node = node.get(token, {})
        return list(node) or [self._end]
