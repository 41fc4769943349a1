"""One graph of a bank: its own inputs among the experts' tensors, and its own sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.artifacts.names import GRAPH_EMBEDDING, GRAPH_SLOTS, GRAPH_WEIGHTS
from pidep.errors import ServingError
from pidep.experts.kind import BankGroup, bank_sites
from pidep.runtime.answer import Array
from pidep.runtime.engine import EngineSession

__all__ = ["BankGraph"]


class BankGraph:
    """Runs one graph with the experts that each row names."""

    def __init__(self, session: Any, groups: Sequence[BankGroup], *, path: Path) -> None:
        """A graph of a bank.

        Args:
            session: ONNX Runtime's, or that of an engine.
            groups: all of the bank's. A tower takes those of its own sites, maybe none.
            path: where it was read, for messages.

        Raises:
            ServingError: an older pidep made it, and its rows name one expert each.
        """
        self.session = session
        takes = {one.name: one.type for one in session.get_inputs()}
        own = [group for group in groups if group.input in takes]
        if (own or not groups) and not {GRAPH_SLOTS, GRAPH_WEIGHTS} <= takes.keys():
            raise ServingError(
                f"{path}: takes no {GRAPH_SLOTS!r} and {GRAPH_WEIGHTS!r}, an older pidep made it; "
                "make it again with pidep export --form bank"
            )
        self.half = frozenset(
            group.input for group in own if takes[group.input] == "tensor(float16)"
        )
        """Inputs of experts in fp16."""
        self._inputs = tuple(group.input for group in own)
        numbers = {site: number for number, site in enumerate(bank_sites(groups))}
        self._columns = [numbers[site] for site in bank_sites(own)]

    def embeddings(
        self,
        feeds: Mapping[str, Array],
        slots: npt.NDArray[np.int64],  # [G, K]
        weights: Array,  # [G, K, S] fp32, S all sites of the bank
        values: Mapping[str, Any],
    ) -> Array:
        """Unit rows `[B, D]` fp32.

        Args:
            feeds: what the rows themselves are, by input.
            values: graph input to the experts' memory `[E, S, size, width]`.
        """
        given = dict(feeds)
        if self._inputs:
            given |= {GRAPH_SLOTS: slots, GRAPH_WEIGHTS: weights[:, :, self._columns]}
        experts = {name: values[name] for name in self._inputs}
        if isinstance(self.session, EngineSession):
            return self.session.run([GRAPH_EMBEDDING], given, held=experts)[0]
        # A request's inputs come from the CPU; ONNX Runtime copies them where the graph runs.
        held = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cpu", 0)
            for name, array in given.items()
        }
        held |= experts
        (embeddings,) = self.session.run_with_ort_values([GRAPH_EMBEDDING], held)
        found: Array = embeddings.numpy()
        return found
