"""The experts' tensors in memory: slots of one array for each input of a bank's graph.

A slot is written while nobody reads it, and free again when the last batch that can read it is
over. So a swap writes one slot, however many experts are resident.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from weakref import WeakValueDictionary, finalize

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.experts.bank import BankGroup, fill_row
from pidep.experts.folder import Expert
from pidep.runtime.answer import Array

__all__ = ["Arena", "Slot"]

_FIRST_SLOTS = 8
DType: TypeAlias = type[np.float32] | type[np.float16]


class Slot:
    """A place in the arena, held as long as somebody refers to this object.

    Residents hold the slots of their experts, and a batch holds its residents while it runs.
    """

    def __init__(self, number: int) -> None:
        self.number = number


class Arena:
    """Slots for experts. Slot 0 holds zeros for good: the bare backbone."""

    def __init__(
        self, groups: Sequence[BankGroup], *, dtypes: Mapping[str, DType], device: str = "cpu"
    ) -> None:
        """An arena with room for a few experts; it doubles when it is full.

        Args:
            groups: the inputs of the graph that hold experts.
            dtypes: of each input, by its name.
            device: where the graph runs.
        """
        self._groups, self._device = groups, device
        self._lock = threading.Lock()
        self._free: deque[int] = deque()
        self._next = 1
        self._slot_of: WeakValueDictionary[str, Slot] = WeakValueDictionary()
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for group in groups:
            shape = (_FIRST_SLOTS, len(group.sites), group.size, group.width)
            # Zeros that nobody has written take no memory yet.
            self._arrays[group.input] = np.zeros(shape, dtypes[group.input])
        self._values: dict[str, Any] | None = self._as_values()

    @property
    def capacity(self) -> int:
        """Slots that it has room for, slot 0 included."""
        return min((len(array) for array in self._arrays.values()), default=_FIRST_SLOTS)

    @property
    def used(self) -> int:
        """Slots that are held, without slot 0."""
        return self._next - 1 - len(self._free)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one expert, padded to the bank's sizes."""
        return sum(array[0].nbytes for array in self._arrays.values())

    def values(self) -> dict[str, Any]:
        """Graph input to OrtValue `[E, S, size, width]`, with every slot that is held now.

        On the CPU the values share the arena's memory, and later swaps write into other slots of
        them. A device gets a copy of its own whenever something was written.
        """
        with self._lock:
            if self._values is None:
                self._values = self._as_values()
            return dict(self._values)

    def slot_of(self, expert: Expert, digest: str) -> Slot:
        """The slot that holds an expert; experts of one digest share one.

        Raises:
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
                self._grow()
            self._next += 1
            return self._next - 1

    def _write(self, number: int, expert: Expert) -> None:
        for group in self._groups:
            row = self._arrays[group.input][number]
            # The last expert's numbers must not stay where this one has none.
            packed: Array = np.zeros(row.shape, np.float32)
            fill_row(packed, group, expert)
            with np.errstate(over="ignore"):  # the probe reports what fp16 does not hold
                row[...] = packed
        if self._device != "cpu":
            self._values = None

    def _grow(self) -> None:
        """Twice the slots, in new arrays: running batches go on reading the old ones."""
        for name, array in self._arrays.items():
            larger = np.zeros((2 * len(array), *array.shape[1:]), array.dtype)
            larger[: len(array)] = array
            self._arrays[name] = larger
        self._values = self._as_values()

    def _as_values(self) -> dict[str, Any]:
        return {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            for name, array in self._arrays.items()
        }
