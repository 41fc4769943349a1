"""The bank: one ONNX graph, many experts, one per row of the batch; a swap replaces one reference. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.backbones.tokenize import Tokenize
from pidep.errors import ExpertError, ServingError
from pidep.experts.bank import Group, check_fits, fill_row
from pidep.experts.folder import Expert

__all__ = ["Answer", "Bank", "BankSpec", "Generation", "open_session", "softmax"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BankSpec:
    """`bank.json`, beside the graph."""

    backbone_digest: str
    graph_digest: str
    max_rank: int
    groups: tuple[Group, ...]
    store: Path

    @classmethod
    def read(cls, version_folder: Path) -> BankSpec:
        """Read and check.

        Raises:
            ServingError: missing or malformed.
        """
        path = version_folder / "bank.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            groups = tuple(Group(**{**group, "sites": tuple(group["sites"])}) for group in record["groups"])
            store = (version_folder / record["expert_store"]).resolve()
            return cls(record["backbone_digest"], record["graph_digest"], int(record["max_rank"]), groups, store)
        except FileNotFoundError as error:
            raise ServingError(f"{path}: no such file; make the bank with pidep export --form bank") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServingError(f"{path}: malformed ({error}); export the bank again") from error

    def check(self, expert: Expert) -> None:
        """Raise `ExpertError` when the bank cannot hold the expert."""
        check_fits(expert, self.groups, max_rank=self.max_rank, backbone_digest=self.backbone_digest)


@dataclass(frozen=True)
class Generation:
    """Everything one batch needs, never changed after it was built."""

    number: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    experts: dict[str, Expert] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    factors: dict[str, Array] = field(default_factory=dict)
    """Group input to `[E, S, R, width]`; row 0 is the bare backbone."""
    values: dict[str, Any] = field(default_factory=dict)
    """The same as OrtValues, kept where the graph runs."""


@dataclass(frozen=True)
class Answer:
    """One row's answer."""

    labels: tuple[str, ...]
    scores: Array  # [C], softmax
    digest: str

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[int(self.scores.argmax())]


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    scores: Array = exponent / exponent.sum(-1, keepdims=True)
    return scores


def open_session(graph: Path, digest: str, *, threads: int | None = None) -> Any:
    """An ONNX Runtime session over a graph whose digest is checked first.

    Raises:
        ServingError: the graph is missing or not the one recorded.
    """
    try:
        data = graph.read_bytes()
    except OSError as error:
        raise ServingError(f"{graph}: not readable ({error.strerror}); export the model again") from error
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ServingError(f"{graph}: digest {found}, expected {digest}; export the model again")
    onnxruntime.disable_telemetry_events()  # a server speaks to its clients and to nobody else
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(os.cpu_count() or 1, 8)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    return onnxruntime.InferenceSession(data, options, providers=providers)


class Bank:
    """Runs batches whose rows name different experts."""

    def __init__(self, version_folder: Path, *, threads: int | None = None) -> None:
        self.spec = BankSpec.read(version_folder)
        self.tokenize = Tokenize((version_folder / "tokenizer.json").read_text(encoding="utf-8"))
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

    def run(self, generation: Generation, texts: Sequence[str], names: Sequence[str]) -> list[Answer | ExpertError]:
        """Answer each row with its own expert; an unknown name is an error of that row alone."""
        answers: list[Answer | ExpertError] = [self._unknown(generation, name) for name in names]
        good = [row for row, name in enumerate(names) if name in generation.rows]
        if not good:
            return answers
        experts = [generation.experts[names[row]] for row in good]
        ids, mask = self.tokenize([texts[row] for row in good], max_length=[expert.max_length for expert in experts])
        index = np.array([generation.rows[names[row]] for row in good], dtype=np.int64)
        feeds = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in (("input_ids", ids), ("attention_mask", mask), ("expert_index", index))
        }
        (embeddings,) = self.session.run_with_ort_values(["sentence_embedding"], {**feeds, **generation.values})
        for row, expert, embedding in zip(good, experts, embeddings.numpy(), strict=True):
            scores = softmax(expert.logit_scale * (expert.label_embeddings @ embedding))
            answers[row] = Answer(expert.labels, scores, generation.digests[names[row]])
        return answers

    @staticmethod
    def _unknown(generation: Generation, name: str) -> ExpertError:
        known = ", ".join(list(generation.rows)[:10]) or "none"
        return ExpertError(f"unknown expert {name[:60]!r}; this server has: {known}")
