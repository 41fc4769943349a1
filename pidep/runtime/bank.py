"""The bank: one graph for many experts, one expert per row of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.names import (
    BACKBONE,
    GRAPH,
    GRAPH_EMBEDDING,
    GRAPH_SLOTS,
    GRAPH_WEIGHTS,
    TOKENIZER,
)
from pidep.errors import ExpertError, PidepError, ServingError
from pidep.experts.bank import BankGroup, fill_row, pack, positions_before
from pidep.experts.folder import Expert
from pidep.experts.kind import bank_sites
from pidep.experts.mixed import MixedExpert, parts_of, weights_of
from pidep.inputs.row import Input, Row
from pidep.runtime.answer import Answer, Array, finite, softmax
from pidep.runtime.entry import require_files
from pidep.runtime.fit import check_served, groups_of
from pidep.runtime.input_reader import InputReader
from pidep.runtime.isolate import isolated
from pidep.runtime.ready_rows import ready_rows
from pidep.runtime.session import open_session

__all__ = ["Bank", "Residents"]

_PROBES = ("which expert answers?", "a")
"""Texts that a new expert must answer before it is served. Their numbers must be finite."""
_PROBE_BATCH = 32


@dataclass(frozen=True)
class Residents:
    """The experts that a batch can name. It is never changed: a swap builds the next one."""

    experts: dict[str, Expert | MixedExpert] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """Name to digest, computed once: a digest reads every tensor."""
    slots: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name to the slots of its parts, one for an expert; slot 0 is the bare backbone."""
    weights: dict[str, Array] = field(default_factory=dict)
    """Name to the share of each part at each site of the bank, `[K, S]` fp32."""
    slot_of: dict[str, int] = field(default_factory=dict)
    """Digest of an expert to its slot. Experts that are parts of several mixtures have one."""
    factors: dict[str, Array] = field(default_factory=dict)
    """Graph input to `[E, S, size, width]` fp32."""
    values: dict[str, Any] = field(default_factory=dict)
    """`factors` as OrtValues, on the device where the graph runs."""
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name to `digest` and `reason` of a version that cannot be served."""


class Bank:
    """Runs batches whose rows name different experts."""

    def __init__(self, version_folder: Path, *, threads: int | None = None) -> None:
        """Open a bank's version folder.

        Raises:
            ServingError: a file is missing, malformed or not the recorded one.
        """
        self.record = BankRecord.read(version_folder)
        self.store = self.record.store(version_folder)
        require_files(version_folder, self.record)
        self.reader = InputReader(
            version_folder,
            self.record.vision,
            tokenizer_digest=(self.record.files or {}).get(TOKENIZER),
            threads=threads,
        )
        graph = version_folder / GRAPH
        self.session = open_session(graph, self.record.graph_digest, threads=threads)
        on_gpu = "CUDAExecutionProvider" in self.session.get_providers()
        self.device = "cuda" if on_gpu else "cpu"
        self._groups = groups_of(self.record)
        half = {one.name for one in self.session.get_inputs() if one.type == "tensor(float16)"}
        self._dtypes = {
            group.input: np.float16 if group.input in half else np.float32 for group in self._groups
        }
        self._sites = bank_sites(self._groups)
        self._require_slots(graph)

    def build(
        self, experts: Mapping[str, Expert | MixedExpert], previous: Residents | None = None
    ) -> Residents:
        """The experts packed for the graph.

        Args:
            experts: served name to expert, or to a mixture whose parts are packed.
            previous: what is served now; the slots of unchanged experts are copied from it.

        Raises:
            ExpertError: an expert does not fit; `previous` is untouched.
        """
        previous = previous or Residents()
        slots: dict[str, tuple[int, ...]] = {}
        digests: dict[str, str] = {}
        packed: dict[str, Expert] = {}
        # Sorted, so that the same experts always get the same slots, and so the same graph inputs.
        for name in sorted(experts):
            digests[name], own = self._checked(name, experts[name], previous)
            packed.update(zip(own, parts_of(experts[name]), strict=True))
            slot_of = {digest: slot for slot, digest in enumerate(packed, 1)}
            slots[name] = tuple(slot_of[digest] for digest in own)
        factors = {group.input: self._packed(group, packed, previous) for group in self._groups}
        return Residents(
            experts=dict(experts),
            digests=digests,
            slots=slots,
            weights={name: weights_of(experts[name], self._sites) for name in slots},
            slot_of={digest: slot for slot, digest in enumerate(packed, 1)},
            factors=factors,
            values={
                # In the graph's own precision, which may be fp16.
                name: self._value(array.astype(self._dtypes[name], copy=False), self.device)
                for name, array in factors.items()
            },
        )

    def _checked(
        self, name: str, expert: Expert | MixedExpert, previous: Residents
    ) -> tuple[str, list[str]]:
        """Digest of what a name serves, and the digests of its parts."""
        # A check and a digest read every tensor: those of unchanged experts are not repeated.
        if previous.experts.get(name) is expert:
            known = {slot: digest for digest, slot in previous.slot_of.items()}
            return previous.digests[name], [known[slot] for slot in previous.slots[name]]
        check_served(self.record, expert)
        return expert.digest, [part.digest for part in parts_of(expert)]

    @staticmethod
    def _packed(group: BankGroup, experts: Mapping[str, Expert], previous: Residents) -> Array:
        """A group's input; digest to expert, in the order of their slots."""
        # Zeros first: a site that an expert lacks must add nothing.
        packed = pack(group, [None] * (len(experts) + 1))
        for slot, (digest, expert) in enumerate(experts.items(), 1):
            # Copying a slot is cheaper than packing it: no transpose, no scaling.
            if digest in previous.slot_of:
                packed[slot] = previous.factors[group.input][previous.slot_of[digest]]
            else:
                fill_row(packed[slot], group, expert)
        return packed

    def probe(self, residents: Residents, names: Sequence[str]) -> dict[str, PidepError]:
        """Name to error of those experts that cannot answer probe rows, by the graph itself."""
        asked = [(name, text) for name in names for text in _PROBES]
        found: dict[str, PidepError] = {}
        for start in range(0, len(asked), _PROBE_BATCH):
            part = asked[start : start + _PROBE_BATCH]
            answers = self.run(residents, [text for _, text in part], [name for name, _ in part])
            for (name, _), answer in zip(part, answers, strict=True):
                if isinstance(answer, PidepError):
                    found.setdefault(name, answer)
        return found

    def run(
        self, residents: Residents, rows: Sequence[Input], names: Sequence[str]
    ) -> list[Answer | PidepError]:
        """Answer each row with the expert that it names.

        Whatever is wrong with a row is an error of that row alone.
        """
        return isolated(
            lambda part: self._run(
                residents, [rows[at] for at in part], [names[at] for at in part]
            ),
            range(len(rows)),
        )

    def _run(
        self, residents: Residents, rows: Sequence[Input], names: Sequence[str]
    ) -> list[Answer | PidepError]:
        """As `run`. An exception of the graph is raised; it names no row."""
        asked = self._asked(residents, rows, names)
        fit = {at: row for at, row in enumerate(asked) if isinstance(row, Row)}
        found: dict[int, Answer | PidepError] = {
            at: row for at, row in enumerate(asked) if isinstance(row, PidepError)
        }
        good: dict[int, Array | None] = {}
        for at, visual in zip(fit, self.reader.visual(list(fit.values())), strict=True):
            # A damaged image costs its own row, not the requests that share the batch.
            if isinstance(visual, PidepError):
                found[at] = visual
            else:
                good[at] = visual
        if good:
            lengths = [self._max_length(residents, names[at]) for at in good]
            feeds = self.reader.feeds(
                [fit[at] for at in good], list(good.values()), max_length=lengths
            )
            embeddings = self._embeddings(residents, feeds, [names[at] for at in good])
            # Weights that overflow are reported by `finite`, not by warnings of numpy.
            with np.errstate(all="ignore"):
                for at, embedding in zip(good, embeddings, strict=True):
                    found[at] = self._answer(residents, names[at], embedding)
        return [found[at] for at in range(len(rows))]

    def _asked(
        self, residents: Residents, rows: Sequence[Input], names: Sequence[str]
    ) -> list[Row | PidepError]:
        """Each row with its text, or the error that refuses it."""
        experts = residents.experts
        templates = [_head(experts[name]).template if name in experts else None for name in names]
        known = {BACKBONE, *experts}
        return [
            row if name in known else _unknown(residents, name)
            for name, row in zip(names, ready_rows(rows, templates), strict=True)
        ]

    def _embeddings(
        self, residents: Residents, feeds: Mapping[str, Array], names: Sequence[str]
    ) -> Array:
        """The graph's embeddings `[B, D]` of rows that name these experts."""
        slots, weights = self._chosen(residents, names)
        # A request's inputs come from the CPU; ONNX Runtime copies them where the graph runs.
        values = {
            name: self._value(array, "cpu")
            for name, array in {**feeds, GRAPH_SLOTS: slots, GRAPH_WEIGHTS: weights}.items()
        }
        (embeddings,) = self.session.run_with_ort_values(
            [GRAPH_EMBEDDING], {**values, **residents.values}
        )
        found: Array = embeddings.numpy()
        return found

    def _chosen(
        self, residents: Residents, names: Sequence[str]
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """`slots` [G, K] and `weights` [G, K, S]; G is 1 where all rows name the same expert."""
        # One row of factors serves all rows of the batch then: nothing is gathered twice.
        rows = names[:1] if len(set(names)) == 1 else names
        # Slot 0 is zeros: an expert that changes nothing is the bare backbone.
        found = [residents.slots.get(name, (0,)) for name in rows]
        most = max(map(len, found))
        # Rows of fewer parts name slot 0 as well, with weight 0.
        slots = np.zeros((len(rows), most), np.int64)
        weights = np.zeros((len(rows), most, len(self._sites)), np.float32)
        for row, (name, own) in enumerate(zip(rows, found, strict=True)):
            slots[row, : len(own)] = own
            weights[row, : len(own)] = residents.weights.get(name, 1.0)
        return slots, weights

    def _max_length(self, residents: Residents, name: str) -> int:
        if name == BACKBONE:
            return self.record.max_positions
        expert = _head(residents.experts[name])
        # Virtual tokens take positions of the backbone's table, which has none beyond the last.
        part = parts_of(residents.experts[name])[0]
        room = self.record.max_positions - positions_before(part, self._groups)
        return min(expert.max_length, room)

    def _answer(self, residents: Residents, name: str, embedding: Array) -> Answer | PidepError:
        none = np.zeros(0, np.float32)
        if name == BACKBONE:
            return finite(Answer((), none, none, self.record.backbone_digest, embedding))
        expert, digest = _head(residents.experts[name]), residents.digests[name]
        # Its rows bring candidates, which the client embeds and compares (`Client.choose`).
        if not expert.labels:
            return finite(Answer((), none, none, digest, embedding))
        # Outside the graph: every expert has its own number of labels, and one graph serves all.
        logits = expert.logit_scale * (expert.label_embeddings @ embedding)
        return finite(Answer(expert.labels, logits, softmax(logits), digest, embedding))

    def _require_slots(self, graph: Path) -> None:
        """Refuse the graph of an older export, whose rows name one expert each."""
        if not {GRAPH_SLOTS, GRAPH_WEIGHTS} <= {one.name for one in self.session.get_inputs()}:
            raise ServingError(
                f"{graph}: takes no {GRAPH_SLOTS!r} and {GRAPH_WEIGHTS!r}, an older pidep made it; "
                "make it again with pidep export --form bank"
            )

    @staticmethod
    def _value(array: Array, device: str) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)


def _head(served: Expert | MixedExpert) -> Expert:
    """Labels, template and lengths of what is served under a name."""
    return served.head if isinstance(served, MixedExpert) else served


def _unknown(residents: Residents, name: str) -> ExpertError:
    if name in residents.refused:
        refused = residents.refused[name]
        return ExpertError(
            f"expert {name!r} is not served: its version {refused['digest'][:19]}… is refused: "
            f"{refused['reason']}"
        )
    known = ", ".join(list(residents.slots)[:10]) or "none"
    return ExpertError(f"unknown expert {name[:60]!r}; this server has: {known}")
