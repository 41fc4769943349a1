"""The bank: one graph for many experts, one expert per row of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.names import (
    BACKBONE,
    ENGINE,
    GRAPH,
    GRAPH_SLOTS,
    GRAPH_WEIGHTS,
    TOKENIZER,
)
from pidep.errors import ExpertError, PidepError
from pidep.experts.bank import positions_before
from pidep.experts.folder import Expert
from pidep.experts.kind import bank_sites
from pidep.experts.mixed import MixedExpert, Served, head_of, parts_of, weights_of
from pidep.inputs.row import Input, Row
from pidep.runtime.answer import Answer, Array, finite, label_logits, softmax
from pidep.runtime.arena import Arena, Place, Slot
from pidep.runtime.bank_graph import BankGraph
from pidep.runtime.by_length import run_by_length, tokens_of_a_run
from pidep.runtime.engine import EngineSession
from pidep.runtime.entry import require_files
from pidep.runtime.fit import check_served, groups_of
from pidep.runtime.input_reader import InputReader
from pidep.runtime.isolate import isolated
from pidep.runtime.ready_rows import ready_rows
from pidep.runtime.sequences import Answering, Sequences
from pidep.runtime.session import open_session
from pidep.runtime.towers import TowerName, TowerReader, open_towers, tower_rows

__all__ = ["Bank", "Resident", "Residents"]

_PROBED = ("which expert answers?", "a")
_PROBES = tuple(Row(text, candidates=_PROBED) for text in _PROBED)
"""Rows that a new expert must answer before it is served. Their numbers must be finite. What embeds
reads no candidates; an encoder-decoder scores them.
"""
_PROBE_BATCH = 32
_IDLE = 5e-7
"""Of an element of a unit vector: what rounding alone does. Rows of one batch run the same
operations, in fp16 and int8, too, so zeros added to them change nothing.
"""


@dataclass(frozen=True)
class Resident:
    """What a name means, in the arena. Whoever holds it keeps its slots from being written."""

    head: Expert
    """Labels, template and lengths. The tensors are in the arena and nowhere else."""
    digest: str
    """Computed once: a digest reads every tensor."""
    slots: tuple[Slot, ...]
    """Of its parts, one for an expert."""
    weights: Array
    """The share of each part at each site of the bank, `[K, S]` fp32."""
    max_length: int
    """Tokens that a text is cut at: the expert's, and no more than there are positions for."""


@dataclass(frozen=True)
class Residents:
    """The experts that a batch can name. It is never changed: a swap builds the next one."""

    by_name: Mapping[str, Resident] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """Graph input to the memory of its experts, `[E, S, size, width]`, where the graph runs: an
    OrtValue, or the `DeviceArray` of an engine."""
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Name to `digest` and `reason` of a version that cannot be served."""
    cold: Mapping[str, str] = field(default_factory=dict)
    """Name to digest of what is served and not in memory: its first row waits until it is."""

    @cached_property
    def digests(self) -> dict[str, str]:
        """Name to the digest of what is served, in memory or not."""
        return {**self.cold, **{name: one.digest for name, one in self.by_name.items()}}


class Bank:
    """Runs batches whose rows name different experts."""

    def __init__(
        self,
        version_folder: Path,
        *,
        threads: int | None = None,
        resident_bytes: int | None = None,
        use_engine: bool = True,
    ) -> None:
        """Open a bank's version folder.

        Args:
            threads: of ONNX Runtime; its own choice when absent.
            resident_bytes: most bytes of experts in memory; no bound when absent.
            use_engine: False runs the graph of an entry that has a TensorRT engine.

        Raises:
            ServingError: a file is missing, malformed or not the recorded one, or the bound is too
                small for one expert.
        """
        self.record = BankRecord.read(version_folder)
        self.store = self.record.store(version_folder)
        require_files(version_folder, self.record)
        self.groups = groups_of(self.record)
        """The inputs of the graphs that hold experts."""
        self._sites = bank_sites(self.groups)
        self.session: Any
        self.reader: InputReader | TowerReader
        self._probes: list[Input] = list(_PROBES)
        self._sequences: Sequences | None = None
        self._run_tokens: int | None = None
        max_slots = None
        if use_engine and self.record.engine is not None:
            self._open_engine(version_folder)
            max_slots = self.record.engine.profile["experts"][-1]
        else:
            self._open(version_folder, threads)
        half = self._half
        self.arena = Arena(
            self.groups,
            dtypes={
                group.input: np.float16 if group.input in half else np.float32
                for group in self.groups
            },
            place=self.place_of_experts,
            max_bytes=resident_bytes,
            max_slots=max_slots,
        )
        self._bare: list[Answer | PidepError] | None = None
        """The bare backbone's answers to the probe rows."""

    @property
    def place_of_experts(self) -> Place:
        """Where the graph reads the experts' tensors."""
        if isinstance(self.session, EngineSession):
            return "engine"
        on_gpu = "CUDAExecutionProvider" in self.session.get_providers()
        return "cuda" if on_gpu else "cpu"

    def _open_engine(self, version_folder: Path) -> None:
        """Open the engine that was compiled from the graph, and what makes its inputs."""
        record = self.record
        assert record.engine is not None
        held = [group.input for group in self.groups]
        self.session = EngineSession(version_folder / ENGINE, record.engine, held=held)
        digest = (record.files or {}).get(TOKENIZER)
        self.reader = InputReader(version_folder, record.vision, tokenizer_digest=digest)
        graph = BankGraph(self.session, self.groups, path=version_folder / ENGINE)
        self.graphs, self._half = {"text": graph}, set(graph.half)

    def _open(self, version_folder: Path, threads: int | None) -> None:
        """Open the graphs, and what makes their inputs."""
        record, path = self.record, version_folder / GRAPH
        tokenizer_digest = (record.files or {}).get(TOKENIZER)
        if record.towers is None:
            self.reader = InputReader(
                version_folder, record.vision, tokenizer_digest=tokenizer_digest, threads=threads
            )
            if record.sequence is not None:
                self._sequences = Sequences(
                    version_folder, record.sequence, self.reader, threads=threads
                )
                self.session, self.graphs = self._sequences.session, {}
                types = self._sequences.inputs
                self._half = {name for name, one in types.items() if one == "tensor(float16)"}
                return
            one = open_session(path, record.graph_digest, threads=threads)
            sessions: dict[TowerName, Any] = {"text": one}
        else:
            self.reader = TowerReader(
                version_folder, record.towers, tokenizer_digest=tokenizer_digest
            )
            sessions = open_towers(
                version_folder, record.towers, record.graph_digest, threads=threads
            )
            # An expert of the image tower alone changes no text.
            self._probes = list(tower_rows(_PROBED[0]))
        self.session = sessions["text"]
        self._run_tokens = tokens_of_a_run(self.session)
        self.graphs = {
            name: BankGraph(session, self.groups, path=path) for name, session in sessions.items()
        }
        """Tower to its graph; a bank of one graph calls it `text`."""
        self._half = {name for graph in self.graphs.values() for name in graph.half}

    def place(self, served: Served, *, digest: str | None = None) -> Resident:
        """An expert or a mixture in free slots of the arena; nobody is served it yet.

        Args:
            digest: of `served`, where it was read from the store, and so verified.

        Raises:
            NoRoomError: the bound in bytes leaves no slot for it.
            ExpertError: it does not fit; no slot is taken.
        """
        check_served(self.record, served, is_valid=digest is not None)
        digest = digest or served.digest
        parts = parts_of(served)
        names = [part.digest for part in parts] if isinstance(served, MixedExpert) else [digest]
        head = head_of(served)
        # Virtual tokens take positions of the backbone's table, which has none beyond the last.
        room = self.record.max_positions - positions_before(parts[0], self.groups)
        return Resident(
            replace(head, sites={}),
            digest,
            tuple(map(self.arena.slot_of, parts, names)),
            weights_of(served, self._sites),
            min(head.max_length, room),
        )

    def serving(self, by_name: Mapping[str, Resident]) -> Residents:
        """These residents under their names. The cost does not depend on their tensors."""
        return Residents(dict(by_name), self.arena.values())

    def build(self, experts: Mapping[str, Served]) -> Residents:
        """The experts placed and served. Those that are resident keep their slots.

        Args:
            experts: served name to expert, or to a mixture whose parts are placed.

        Raises:
            ExpertError: an expert does not fit.
        """
        return self.serving({name: self.place(served) for name, served in experts.items()})

    def probe(self, residents: Residents, names: Sequence[str]) -> dict[str, PidepError]:
        """Name to error of those experts that must not be served, by the graph itself.

        An expert must answer the probe rows, and otherwise than the bare backbone does: an expert
        whose tensors reach nothing gives no error anywhere.
        """
        if self._bare is None:
            # Once: it does not depend on the residents.
            self._bare = self.run(residents, self._probes, [BACKBONE] * len(self._probes))
        found: dict[str, PidepError] = {}
        count = len(self._probes)
        step = _PROBE_BATCH // count
        for start in range(0, len(names), step):
            some = names[start : start + step]
            rows = [(name, row) for name in some for row in self._probes]
            answers = self.run(residents, [row for _, row in rows], [name for name, _ in rows])
            for at, name in enumerate(some):
                own = answers[at * count : (at + 1) * count]
                fault = _fault(name, own, self._bare)
                if fault is not None:
                    found[name] = fault
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
        if good and self._sequences is not None:
            chosen = [names[at] for at in good]
            answers = self._sequences.answers(
                [fit[at] for at in good],
                list(good.values()),
                [self._answering(residents, name) for name in chosen],
                lambda rows: self._acting(residents, [chosen[at] for at in rows]),
            )
            found.update(zip(good, answers, strict=True))
        elif good:
            embeddings = self._embeddings(
                residents,
                [fit[at] for at in good],
                list(good.values()),
                [names[at] for at in good],
            )
            # Weights that overflow are reported by `finite`, not by warnings of numpy.
            with np.errstate(all="ignore"):
                for at, embedding in zip(good, embeddings, strict=True):
                    found[at] = self._answer(residents, names[at], embedding)
        return [found[at] for at in range(len(rows))]

    def _asked(
        self, residents: Residents, rows: Sequence[Input], names: Sequence[str]
    ) -> list[Row | PidepError]:
        """Each row with its text, or the error that refuses it."""
        held = residents.by_name
        templates = [held[name].head.template if name in held else None for name in names]
        return [
            row if name in held or name == BACKBONE else self._unknown(residents, name)
            for name, row in zip(names, ready_rows(rows, templates), strict=True)
        ]

    def _unknown(self, residents: Residents, name: str) -> ExpertError:
        """The error of a row that names an expert which is not served."""
        if name in residents.refused:
            refused = residents.refused[name]
            return ExpertError(
                f"expert {name!r} is not served: its version {refused['digest'][:19]}… is refused: "
                f"{refused['reason']}"
            )
        if self.record.left_out and name in self.record.left_out:
            return ExpertError(self.record.left_out[name].refusal(name))
        if name in residents.cold:
            return ExpertError(f"expert {name!r} is served, but not in memory; ask a server")
        known = ", ".join(list({**residents.by_name, **residents.cold})[:10]) or "none"
        return ExpertError(f"unknown expert {name[:60]!r}; this server has: {known}")

    def _embeddings(
        self,
        residents: Residents,
        rows: Sequence[Row],
        visuals: Sequence[Array | None],
        names: Sequence[str],
    ) -> Array:
        """The embeddings `[B, D]` of rows without errors, each by the expert that it names."""
        lengths = [self._max_length(residents, name) for name in names]

        def embed(tower: TowerName, feeds: Mapping[str, Array], places: Iterable[int]) -> Array:
            slots, weights = self._chosen(residents, [names[at] for at in places])
            return self.graphs[tower].embeddings(feeds, slots, weights, residents.values)

        if isinstance(self.reader, TowerReader):
            return self.reader.embeddings(rows, visuals, max_length=lengths, embed=embed)
        feeds = self.reader.feeds(rows, visuals, max_length=lengths)
        return run_by_length(partial(embed, "text"), feeds, run_tokens=self._run_tokens)

    def _acting(self, residents: Residents, names: Sequence[str]) -> dict[str, Any]:
        """The inputs of an encoder-decoder's graphs that hold the experts of these rows."""
        slots, weights = self._chosen(residents, names)
        own = {GRAPH_SLOTS: slots, GRAPH_WEIGHTS: weights}
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
            for name, array in own.items()
        }
        return {**values, **residents.values}

    def _answering(self, residents: Residents, name: str) -> Answering:
        """What an encoder-decoder needs of the expert that a row names."""
        if name == BACKBONE:
            return Answering(self.record.backbone_digest, self.record.max_positions)
        one = residents.by_name[name]
        head = one.head
        return Answering(
            one.digest,
            one.max_length,
            head.labels,
            head.label_texts,
            head.max_answer_length,
            head.label_bias,
        )

    def _chosen(
        self, residents: Residents, names: Sequence[str]
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """`slots` [G, K] and `weights` [G, K, S]; G is 1 where all rows name the same expert."""
        # One row of factors serves all rows of the batch then: nothing is gathered twice.
        rows = names[:1] if len(set(names)) == 1 else names
        # Slot 0 is zeros: an expert that changes nothing is the bare backbone.
        found = [residents.by_name.get(name) for name in rows]
        most = max(1 if one is None else len(one.slots) for one in found)
        # Rows of fewer parts name slot 0 as well, with weight 0.
        slots = np.zeros((len(rows), most), np.int64)
        weights = np.zeros((len(rows), most, len(self._sites)), np.float32)
        for row, one in enumerate(found):
            if one is None:
                weights[row, 0] = 1.0
                continue
            slots[row, : len(one.slots)] = [slot.number for slot in one.slots]
            weights[row, : len(one.slots)] = one.weights
        return slots, weights

    def _max_length(self, residents: Residents, name: str) -> int:
        if name == BACKBONE:
            return self.record.max_positions
        return residents.by_name[name].max_length

    def _answer(self, residents: Residents, name: str, embedding: Array) -> Answer | PidepError:
        none = np.zeros(0, np.float32)
        if name == BACKBONE:
            return finite(Answer((), none, none, self.record.backbone_digest, embedding))
        resident = residents.by_name[name]
        expert, digest = resident.head, resident.digest
        # Its rows bring candidates, which the client embeds and compares (`Client.choose`).
        if not expert.labels:
            return finite(Answer((), none, none, digest, embedding))
        # Outside the graph: every expert has its own number of labels, and one graph serves all.
        logits = label_logits(expert, embedding)
        return finite(Answer(expert.labels, logits, softmax(logits), digest, embedding))


def _fault(
    name: str, answers: Sequence[Answer | PidepError], bare: Sequence[Answer | PidepError]
) -> PidepError | None:
    """Why an expert with these answers to the probe rows is not served."""
    moved = 0.0
    for answer, other in zip(answers, bare, strict=True):
        if isinstance(answer, PidepError):
            return answer
        # Without an answer of the bare backbone there is nothing to compare with.
        if isinstance(other, PidepError):
            return None
        own, bare_one = (
            one.logits if one.embedding is None else one.embedding for one in (answer, other)
        )
        # Embeddings have length 1. Log-probabilities are sums, and their rounding grows with them.
        size = max(1.0, float(np.abs(bare_one).max()))
        moved = max(moved, float(np.abs(own - bare_one).max()) / size)
    if moved > _IDLE:
        return None
    return ExpertError(
        f"expert {name!r}: answers {len(answers)} probe rows as the bare backbone does, so it "
        "changes nothing; train it longer or at other sites"
    )
