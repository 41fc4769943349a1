"""Which experts leave memory when another one needs room: those that were used longest ago."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import count

from pidep.runtime.bank import Resident

__all__ = ["Recency"]


class Recency:
    """When each name was last used. Any thread may say so; one thread asks."""

    def __init__(self) -> None:
        self._now = count(1)
        self._used: dict[str, int] = {}

    def use(self, names: Iterable[str]) -> None:
        """These names are used now."""
        # One dict write a name, which is atomic: batches do not wait for evictions.
        for name in names:
            self._used[name] = next(self._now)

    def forget(self, known: Collection[str]) -> None:
        """Drop every name that is not among the known ones."""
        for name in [name for name in self._used if name not in known]:
            self._used.pop(name, None)

    def victims(
        self,
        by_name: Mapping[str, Resident],
        *,
        keep: Collection[str],
        held: Collection[int],
        most: int,
    ) -> list[str] | None:
        """Names to evict, so that the slots of the others and `held` are `most` at most.

        Args:
            by_name: what is in memory.
            keep: names that stay.
            held: numbers of slots that stay, whoever has them.
            most: slots that may remain.

        Returns:
            The names, the least recently used first; None where even all of them are too few.
        """
        users: dict[int, int] = {}
        for resident in by_name.values():
            for slot in resident.slots:
                users[slot.number] = users.get(slot.number, 0) + 1
        remaining = len(users.keys() | set(held))
        found: list[str] = []
        order = sorted(by_name.keys() - set(keep), key=lambda name: self._used.get(name, 0))
        for name in order:
            if remaining <= most:
                break
            found.append(name)
            # Names that share a version or the parts of a mixture share slots.
            for slot in by_name[name].slots:
                users[slot.number] -= 1
                if users[slot.number] == 0 and slot.number not in held:
                    remaining -= 1
        return found if remaining <= most else None
