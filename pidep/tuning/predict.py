"""Answers of an expert, offline: the same logits as in training, in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pidep.adapters.mixture import mixture_of
from pidep.artifacts.names import TASK_EMBEDDING
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import ExpertError, PidepError, UsageError, fault_of_text
from pidep.experts.folder import Expert, read_expert
from pidep.experts.mixed import Served, head_of
from pidep.experts.mixture_folder import read_served
from pidep.experts.resolve import resolve_expert_folder, resolve_served_folder
from pidep.files.tensor_file import read_tensors
from pidep.inputs.row import Input, Row, as_row, text_of
from pidep.runtime.ready_rows import ready_rows
from pidep.training.scorer import predict_answers, predict_logits, scorer_for_expert

__all__ = ["Prediction", "backbone_of", "load_expert", "load_served", "predict", "task_embedding"]


@dataclass(frozen=True)
class Prediction:
    """The answer to one row."""

    label: str
    """The likeliest label or candidate; the generated text of an expert with free answers."""
    scores: dict[str, float] = field(default_factory=dict)
    """Probability of each label or candidate; empty for a generated text."""
    digest: str = ""
    """Digest of the expert or mixture that answered."""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def load_expert(source: Expert | Path | str) -> Expert:
    """An expert by its run folder or expert folder.

    Raises:
        ExpertError: the folder holds no expert, or the expert is damaged.
    """
    if isinstance(source, Expert):
        return source
    return read_expert(resolve_expert_folder(Path(source)))


def load_served(source: Served | Path | str) -> Served:
    """As `load_expert`, with a run's mixture by reference where the run has one."""
    if isinstance(source, str | Path):
        return read_served(resolve_served_folder(Path(source)))
    return source


def task_embedding(source: Expert | Path | str) -> dict[str, Any] | None:
    """The task embedding in a run folder or expert folder; None where there is none.

    Raises:
        ExpertError: it is damaged.
    """
    if isinstance(source, Expert):
        return None
    path = resolve_expert_folder(Path(source)) / TASK_EMBEDDING
    return read_tensors(path) if path.is_file() else None


def predict(
    source: Served | Path | str,
    rows: Sequence[Input],
    *,
    backbone: Backbone | str | None = None,
) -> list[Prediction]:
    """The answers of a run's expert to texts or rows, one each, in the order of the rows.

    Rows with candidates of their own are answered with one of these. Texts are cut at the
    expert's `max_length` tokens.

    Args:
        source: a run folder, an expert folder, an expert or a mixture.
        backbone: the expert's backbone, loaded or by name; found by its recorded name when absent.

    Raises:
        UsageError: a row's text is not a string, or holds half of a character.
        ExpertError: there is no expert, or it belongs to another backbone.
        TaskError: a row has neither text nor image, or columns that do not fit.
        BackboneError: the backbone cannot be loaded, or cannot read a row.
    """
    served = load_served(source)
    expert, digest = head_of(served), served.digest
    if not rows:
        return []
    _check_texts(rows)
    rows = _ready(rows, expert)
    loaded = backbone_of(expert, backbone)
    scorer, mixture = scorer_for_expert(loaded, expert), mixture_of(served)
    if expert.max_answer_length is not None:
        answers = predict_answers(scorer, rows, mixture)
        return [Prediction(answer, digest=digest) for answer in answers]
    with torch.no_grad():
        probabilities = predict_logits(scorer, rows, mixture).softmax(1).tolist()
    return [
        _prediction(expert, row, scores, digest)
        for row, scores in zip(rows, probabilities, strict=True)
    ]


def _ready(rows: Sequence[Input], expert: Expert) -> list[Row]:
    """The rows with their texts, by the code that serves them."""
    found = []
    for row in ready_rows(rows, [expert.template] * len(rows)):
        if isinstance(row, PidepError):
            raise row
        found.append(row)
    return found


def backbone_of(expert: Expert, given: Backbone | str | None, *, device: str = "auto") -> Backbone:
    """The expert's backbone, loaded.

    Args:
        device: where it runs, if it is loaded here.

    Raises:
        ExpertError: `given` is another backbone.
        BackboneError: it cannot be loaded.
    """
    if given is None or isinstance(given, str):
        given = load_any_backbone(given or expert.backbone, device=device)
    if given.digest != expert.backbone_digest:
        raise ExpertError(
            f"expert {expert.name!r}: made for backbone {expert.backbone!r} "
            f"({expert.backbone_digest[:19]}…), {given.name!r} is {given.digest[:19]}…; "
            "give its own as `backbone`"
        )
    return given


def _check_texts(rows: Sequence[Input]) -> None:
    """Refuse what no tokenizer takes: a value that is not a string, or half of a character."""
    for number, row in enumerate(rows, 1):
        for part in (row, *as_row(row).candidates):
            text: object = text_of(part)
            if not isinstance(text, str):
                raise UsageError(f"row {number}: expected a text, found {type(text).__name__}")
            if fault := fault_of_text(text):
                raise UsageError(f"row {number}: {fault}")


def _prediction(expert: Expert, row: Input, scores: Sequence[float], digest: str) -> Prediction:
    names = _choices_of(expert, row)
    # Rows with fewer candidates than others are padded with probabilities of 0.
    by_name = dict(zip(names, scores[: len(names)], strict=True))
    return Prediction(max(by_name, key=by_name.__getitem__), by_name, digest)


def _choices_of(expert: Expert, row: Input) -> tuple[str, ...]:
    """Names of the answers: labels, texts of the candidates, or numbers of candidate images."""
    candidates = as_row(row).candidates
    if not candidates:
        return expert.labels
    # Images have no text, and candidates may have equal texts; then numbers tell them apart.
    texts = tuple(text_of(candidate) for candidate in candidates)
    if all(texts) and len(set(texts)) == len(texts):
        return texts
    return tuple(f"candidate {number}" for number in range(1, len(texts) + 1))
