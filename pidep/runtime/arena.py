"""The experts' tensors in memory: slots of one array for each input of a bank's graph.

A slot is written while nobody reads it, and free again when the last batch that can read it is
over. So a swap writes one slot, however many experts are resident.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias
from weakref import WeakValueDictionary, finalize

import numpy as np

from pidep.errors import ExpertError, ServingError
from pidep.experts.bank import BankGroup, fill_row
from pidep.experts.folder import Expert
from pidep.runtime.answer import Array
from pidep.runtime.slot_memory import CudaMemory, DType, EngineMemory, HostMemory, SlotMemory

__all__ = ["Arena", "NoRoomError", "Place", "Slot"]

Place: TypeAlias = Literal["cpu", "cuda", "engine"]
"""Where a graph reads the experts: ONNX Runtime on either device, or TensorRT's engine."""
_FIRST_SLOTS = 8
_MEMORY: Mapping[Place, Callable[..., SlotMemory]] = {
    "cpu": HostMemory,
    "cuda": CudaMemory,
    "engine": EngineMemory,
}


class NoRoomError(ExpertError):
    """Every slot that the bound in bytes permits is held."""


class Slot:
    """A place in the arena, held as long as somebody refers to this object.

    Residents hold the slots of their experts, and a batch holds its residents while it runs.
    """

    def __init__(self, number: int) -> None:
        self.number = number


class Arena:
    """Slots for experts. Slot 0 holds zeros for good: the bare backbone."""

    def __init__(
        self,
        groups: Sequence[BankGroup],
        *,
        dtypes: Mapping[str, DType],
        place: Place = "cpu",
        max_bytes: int | None = None,
        max_slots: int | None = None,
    ) -> None:
        """An arena with room for a few experts; it doubles when it is full.

        Args:
            groups: the inputs of the graph that hold experts.
            dtypes: of each input, by its name.
            place: where the graph reads them.
            max_bytes: of all experts together. Memory for them is allocated at once, and never
                more; without it there is no bound.
            max_slots: the most that the graph takes, slot 0 included; as `max_bytes`.

        Raises:
            ServingError: `max_bytes` holds not one expert.
        """
        self._groups = groups
        self._lock = threading.Lock()
        self._free: deque[int] = deque()
        self._next = 1
        self._slot_of: WeakValueDictionary[str, Slot] = WeakValueDictionary()
        shapes = {group.input: (len(group.sites), group.size, group.width) for group in groups}
        self.bytes_per_slot = sum(
            int(np.prod(shape)) * np.dtype(dtypes[name]).itemsize for name, shape in shapes.items()
        )
        """Bytes of one expert, padded to the bank's sizes."""
        bounds = [] if max_bytes is None else [max_bytes // self.bytes_per_slot]
        bounds += [] if max_slots is None else [max_slots - 1]
        self.most = min(bounds, default=None)
        """Experts that it may hold; None without a bound."""
        if self.most == 0:
            raise ServingError(
                f"{max_bytes} bytes for experts: one takes {self.bytes_per_slot} in this bank; "
                "permit more"
            )
        # Under a bound all at once: an arena that grows needs three times its size for a moment.
        slots = _FIRST_SLOTS if self.most is None else 1 + self.most
        self._memory = _MEMORY[place](shapes, dtypes, slots=slots)

    @property
    def capacity(self) -> int:
        """Slots that it has room for, slot 0 included."""
        return self._memory.slots

    @property
    def used(self) -> int:
        """Slots that are held, without slot 0."""
        return self._next - 1 - len(self._free)

    def values(self) -> dict[str, Any]:
        """Graph input to OrtValue `[E, S, size, width]`, with every slot that is held now.

        The values share the arena's memory, and later swaps write into other slots of them.
        """
        with self._lock:
            return dict(self._memory.values)

    def slot_of(self, expert: Expert, digest: str) -> Slot:
        """The slot that holds an expert; experts of one digest share one.

        Raises:
            NoRoomError: every slot under the bound is held.
            ExpertError: the expert does not fit; no slot was taken.
        """
        with self._lock:
            found = self._slot_of.get(digest)
            if found is not None:
                return found
            number = self._taken()
            try:
                self._write(number, expert)
            except BaseException:
                self._free.append(number)
                raise
            slot = self._slot_of[digest] = Slot(number)
            # Not `__del__`: that runs while weak references can still revive the object. A deque's
            # append is atomic, so this may run on any thread, also inside this function.
            finalize(slot, self._free.append, number).atexit = False
            return slot

    def _taken(self) -> int:
        try:
            return self._free.popleft()
        except IndexError:
            if self._next == self.capacity:
                if self.most is not None:
                    raise NoRoomError(
                        f"{self.most} experts are in memory, which is the bound; permit more "
                        "bytes, or export with more `experts` in the recipe's profile"
                    ) from None
                self._memory.grow()
            self._next += 1
            return self._next - 1

    def _write(self, number: int, expert: Expert) -> None:
        rows: dict[str, Array] = {}
        for group in self._groups:
            # The last expert's numbers must not stay where this one has none.
            rows[group.input] = np.zeros((len(group.sites), group.size, group.width), np.float32)
            fill_row(rows[group.input], group, expert)
        self._memory.write(number, rows)
