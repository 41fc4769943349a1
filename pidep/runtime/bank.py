"""The bank: one ONNX graph, many experts, one per row of the batch; a swap replaces one reference. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.artifacts.names import BACKBONE
from pidep.errors import ExpertError, PidepError, ServingError
from pidep.experts.bank import BankGroup, check_fits, fill_row
from pidep.experts.folder import Expert
from pidep.runtime.reader import Question, Reader
from pidep.runtime.session import open_session

__all__ = ["Answer", "Bank", "BankSpec", "Generation", "softmax"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BankSpec:
    """`bank.json`, beside the graph."""

    backbone_digest: str
    graph_digest: str
    max_rank: int
    groups: tuple[BankGroup, ...]
    store: Path
    also_fitting: tuple[str, ...] = ()
    """Digests of other backbones whose experts act on this one as they do there."""
    max_positions: int = 512
    """Longest text that the bare backbone embeds, in tokens: candidates are cut where training cut them."""
    vision: dict[str, Any] | None = None
    """Where images can be asked about: digests, preprocessing and size of the vision graph."""

    @classmethod
    def read(cls, version_folder: Path) -> BankSpec:
        """Read and check.

        Raises:
            ServingError: missing or malformed.
        """
        path = version_folder / "bank.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            groups = tuple(BankGroup(**{**group, "sites": tuple(group["sites"])}) for group in record["groups"])
            store = (version_folder / record["expert_store"]).resolve()
            digests = (record["backbone_digest"], record["graph_digest"])
            also, longest = tuple(record.get("also_fitting", ())), int(record.get("max_positions", 512))
            return cls(*digests, int(record["max_rank"]), groups, store, also, longest, record.get("vision"))
        except FileNotFoundError as error:
            raise ServingError(f"{path}: no such file; make the bank with pidep export --form bank") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServingError(f"{path}: malformed ({error}); export the bank again") from error

    def check(self, expert: Expert) -> None:
        """Raise `ExpertError` when the bank cannot hold the expert."""
        check_fits(expert, self.groups, max_rank=self.max_rank, backbones=(self.backbone_digest, *self.also_fitting))


@dataclass(frozen=True)
class Generation:
    """Everything one batch needs, never changed after it was built."""

    number: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    experts: dict[str, Expert] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    factors: dict[str, Array] = field(default_factory=dict)
    """BankGroup input to `[E, S, R, width]`; row 0 is the bare backbone."""
    values: dict[str, Any] = field(default_factory=dict)
    """The same as OrtValues, kept where the graph runs."""


@dataclass(frozen=True)
class Answer:
    """One row's answer."""

    labels: tuple[str, ...]
    scores: Array  # [C], softmax
    digest: str
    embedding: Array | None = None  # [D], unit length; of a merged model, which gives logits, none

    @property
    def label(self) -> str:
        """The best label; empty where the expert has none, because its rows bring their own candidates."""
        return self.labels[int(self.scores.argmax())] if self.labels else ""


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    scores: Array = exponent / exponent.sum(-1, keepdims=True)
    return scores


class Bank:
    """Runs batches whose rows name different experts."""

    def __init__(self, version_folder: Path, *, threads: int | None = None) -> None:
        self.spec = BankSpec.read(version_folder)
        self.reader = Reader(version_folder, self.spec.vision, threads=threads)
        self.session = open_session(version_folder / "model.onnx", self.spec.graph_digest, threads=threads)
        self.device = "cuda" if "CUDAExecutionProvider" in self.session.get_providers() else "cpu"

    def build(self, experts: Mapping[str, Expert], previous: Generation | None = None) -> Generation:
        """A new generation beside the running one; rows of unchanged experts are copied, not packed again.

        Raises:
            ExpertError: an expert does not fit; the previous generation is untouched.
        """
        previous = previous or Generation()
        for expert in experts.values():
            self.spec.check(expert)
        names = sorted(experts)
        digests = {name: experts[name].digest for name in names}
        rows = {name: row for row, name in enumerate(names, 1)}
        factors = {}
        for group in self.spec.groups:
            packed = np.zeros((len(names) + 1, len(group.sites), self.spec.max_rank, group.width), dtype=np.float32)
            for name, row in rows.items():
                if previous.digests.get(name) == digests[name]:
                    packed[row] = previous.factors[group.input][previous.rows[name]]
                else:
                    fill_row(packed[row], group, experts[name])
            factors[group.input] = packed
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0) for name, array in factors.items()}
        return Generation(previous.number + 1, rows, dict(experts), digests, factors, values)

    def run(self, generation: Generation, questions: Sequence[Question], names: Sequence[str]) -> list[Answer | PidepError]:
        """Answer each row with its own expert; an unknown name or a damaged image is an error of that row alone."""
        known = {BACKBONE: 0, **generation.rows}
        seen = self.reader.visual(questions)
        answers: list[Answer | PidepError] = [self._unknown(generation, name) for name in names]
        good: list[tuple[int, Array | None]] = []
        for row, (name, visual) in enumerate(zip(names, seen, strict=True)):
            if isinstance(visual, PidepError):
                answers[row] = visual
            elif name in known:
                good.append((row, visual))
        if not good:
            return answers
        rows = [row for row, _ in good]
        lengths = [generation.experts[names[row]].max_length if names[row] != BACKBONE else self.spec.max_positions for row in rows]
        feeds = self.reader.feeds([questions[row] for row in rows], [visual for _, visual in good], max_length=lengths)
        feeds["expert_index"] = np.array([known[names[row]] for row in rows], dtype=np.int64)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        (embeddings,) = self.session.run_with_ort_values(["sentence_embedding"], {**values, **generation.values})
        for row, embedding in zip(rows, embeddings.numpy(), strict=True):
            answers[row] = self._answer(generation, names[row], embedding)
        return answers

    def _answer(self, generation: Generation, name: str, embedding: Array) -> Answer:
        if name == BACKBONE:
            return Answer((), np.zeros(0, np.float32), self.spec.backbone_digest, embedding)
        expert = generation.experts[name]
        scores = softmax(expert.logit_scale * (expert.label_embeddings @ embedding)) if expert.labels else np.zeros(0, np.float32)
        return Answer(expert.labels, scores, generation.digests[name], embedding)

    @staticmethod
    def _unknown(generation: Generation, name: str) -> ExpertError:
        known = ", ".join(list(generation.rows)[:10]) or "none"
        return ExpertError(f"unknown expert {name[:60]!r}; this server has: {known}")
