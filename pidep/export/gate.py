"""The parity gate: compares an entry's answers, through the serving runtime, with PyTorch's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pidep.adapters.mixture import attached, mixture_of
from pidep.artifacts.names import BACKBONE, GRAPH
from pidep.artifacts.parity import GeneratedParity, Parity
from pidep.backbones.backbone import Backbone
from pidep.backbones.label_bias import with_label_bias
from pidep.errors import AnswerError, ParityError, PidepError
from pidep.export.bisect import Bisection
from pidep.export.bound import require_packed
from pidep.export.gate_sample import Gated, gate_sample
from pidep.export.generated import generated_parity
from pidep.export.graph import bank_modules, merged_modules
from pidep.export.parity import (
    NO_EFFECT,
    BeyondTolerance,
    check_effect,
    check_parity,
    effect_of,
    measure_parity,
)
from pidep.export.recipe import Recipe
from pidep.export.slices import slices_of, worst_row
from pidep.export.source import Source
from pidep.export.towers import check_ways
from pidep.inputs.row import Input, Row, as_row, row_key
from pidep.runtime.answer import Answer
from pidep.runtime.bank import Bank, Residents
from pidep.runtime.merged import Merged
from pidep.runtime.towers import tower_rows
from pidep.tasks.data import UNLABELLED

__all__ = ["GatedBank", "gate_bank", "gate_merged"]

_LOG = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
_BATCH = 32
_METRIC_ROUNDING = 0.05
"""A run measures its mixture before it is folded; rounding can change the answers of tied rows."""
_EFFECT_ROWS = 32
"""Rows that the bare backbone answers, too: one pass over all rows would double PyTorch's time."""
_BESIDE = "a row beside them"
"""Text of the row that makes a batch of one expert a mixed one; of two towers, both of them."""
_NO_CANDIDATE = -1e4
"""Pads the logits of rows with fewer candidates. Finite, and below every real logit."""


@dataclass(frozen=True)
class GatedBank:
    """What the gate found about the experts of a bank."""

    passed: dict[str, Gated]
    refused: dict[str, BeyondTolerance]
    """Experts that the graph's precision is too low for."""


def gate_bank(
    version_folder: Path,
    backbone: Backbone,
    sources: Sequence[Source],
    recipe: Recipe,
    *,
    explain: bool = True,
    use_engine: bool = True,
) -> GatedBank:
    """Open a bank as the server does, and compare each expert's answers with PyTorch's.

    Args:
        explain: whether the first node beyond tolerance is named, of the first refused expert. That
            exports the graph once more.
        use_engine: False compares the graph that an engine was compiled from.

    Returns:
        The experts that passed, and those beyond the recipe's tolerance.

    Raises:
        ParityError: an expert is not bound, changes nothing, or answers otherwise than in its run.
        ServingError: the bank cannot be opened.
    """
    # The default threads and providers: the session that is tested is the session that serves.
    bank = Bank(version_folder, use_engine=use_engine)
    residents = bank.build({source.expert.name: source.served for source in sources})
    half = recipe.precision == "fp16"
    modules = partial(bank_modules, backbone, bank.groups, opset=recipe.opset, half=half)
    bisection = Bisection(bank, version_folder / GRAPH, modules, backbone, recipe.precision)
    _require_packed(bank, residents, sources)
    found = GatedBank({}, {})
    for number, source in enumerate(sources):
        count = {"done": number, "total": len(sources)}
        name = source.expert.name
        _LOG.info("export: compares %s with PyTorch", name, extra=count)
        # One node of one expert: a bisection takes as long as an export.
        asked = bisection if explain and not found.refused else None
        try:
            found.passed[name] = _gate_in_bank(bank, residents, backbone, source, recipe, asked)
        except BeyondTolerance as error:
            found.refused[name] = error
    return found


def _gate_in_bank(
    bank: Bank,
    residents: Residents,
    backbone: Backbone,
    source: Source,
    recipe: Recipe,
    bisection: Bisection | None,
) -> Gated:
    """The figures of one expert.

    Raises:
        BeyondTolerance: beyond the recipe's tolerance.
    """
    name = source.expert.name
    reference, bare = _torch_logits(backbone, source)
    measured = []
    run = partial(_named_run, bank, residents, name)
    with _overflow_refuses(name, recipe):
        texts = generated_parity(partial(_answered, run), backbone, source, recipe)
    # Both ways of the graph: one row of slots for a batch of one name, and a row for each.
    for mixed in (False, True):
        with _overflow_refuses(name, recipe):
            logits = _bank_logits(bank, residents, source, mixed=mixed)
        exported = _widened(logits, reference)
        # The row twice, so that the batch has no padding: nothing bounds what is there.
        names = [name, *([BACKBONE] if mixed else [])]
        ask = partial(_ask, bank, residents, names)
        explain = (
            _nothing if bisection is None else partial(bisection.first_beyond, source, ask=ask)
        )
        checked = _checked(source, reference, bare, exported, recipe, explain, texts=texts)
        measured.append(checked)
    with _overflow_refuses(name, recipe):
        check_ways(backbone, source, recipe, partial(_answered, run))
    parity = max(measured, key=lambda parity: parity.max_abs)
    return _gated(source, parity, reference)


def _nothing(row: Input) -> str:
    return ""


@contextmanager
def _overflow_refuses(name: str, recipe: Recipe) -> Iterator[None]:
    """Inside, an answer that is not finite refuses the expert, in less precision than PyTorch's."""
    try:
        yield
    except AnswerError as error:
        if recipe.precision == "fp32":
            raise
        raise BeyondTolerance(
            name, f"the graph in {recipe.precision} cannot answer ({error})"
        ) from error


def _ask(bank: Bank, residents: Residents, names: Sequence[str], row: Input) -> object:
    return bank.run(residents, [row] * len(names), names)


def _require_packed(bank: Bank, residents: Residents, sources: Sequence[Source]) -> None:
    """Refuse an expert that is not in the graph's inputs with each of its tensors."""
    inputs = {group.input: residents.values[group.input].numpy() for group in bank.groups}
    for source in sources:
        slots = residents.by_name[source.expert.name].slots
        for part, slot in zip(source.parts, slots, strict=True):
            rows = {name: array[slot.number] for name, array in inputs.items()}
            require_packed(part, bank.groups, rows)


def _named_run(
    bank: Bank, residents: Residents, name: str, rows: Sequence[Input]
) -> list[Answer | PidepError]:
    return bank.run(residents, rows, [name] * len(rows))


def _bank_logits(bank: Bank, residents: Residents, source: Source, *, mixed: bool) -> list[Array]:
    """Each row's logits, as many as it has labels or candidates of its own.

    Args:
        mixed: whether a row of the bare backbone is in every batch of the expert's rows.
    """

    def answers_of(rows: Sequence[Input], name: str) -> list[Answer]:
        # The last row of a mixed batch is the bare backbone's. Its answer is dropped.
        beside = _beside(bank) if mixed and name != BACKBONE else []

        def run(batch: Sequence[Input]) -> list[Answer | PidepError]:
            names = [name] * len(batch) + [BACKBONE] * len(beside)
            return bank.run(residents, [*batch, *beside], names)[: len(batch)]

        return _answered(run, rows)

    rows, expert = source.rows.rows, source.expert
    if expert.scores_texts:
        return [answer.logits for answer in answers_of(rows, expert.name)]
    candidates = _candidates(rows)
    # By the graph under test, because a client embeds its candidates with it as well.
    embedded = answers_of(list(candidates.values()), BACKBONE)
    known = dict(zip(candidates, (answer.embedding for answer in embedded), strict=True))
    found = []
    for row, answer in zip(rows, answers_of(rows, expert.name), strict=True):
        logits = answer.logits
        if isinstance(row, Row) and row.candidates:
            # As `Client.choose` does: cosines with candidates that the bare backbone embedded.
            choices = np.array([known[row_key(one)] for one in row.candidates], np.float32)
            logits = expert.logit_scale * (choices @ np.asarray(answer.embedding))
        found.append(logits)
    return found


def _beside(bank: Bank) -> list[Row]:
    if bank.record.towers is not None:
        return tower_rows(_BESIDE)[-1:]
    # An encoder-decoder scores a candidate instead of generating a text.
    return [Row(_BESIDE, candidates=(_BESIDE,))]


def gate_merged(
    version_folder: Path,
    backbone: Backbone,
    source: Source,
    recipe: Recipe,
    *,
    use_engine: bool = True,
) -> Gated:
    """Open a merged model as the server does, and compare its answers with PyTorch's.

    Args:
        use_engine: False compares the graph that an engine was compiled from.

    Raises:
        ParityError: beyond the recipe's tolerance, or as `gate_bank`.
        ServingError: the model cannot be opened.
    """
    merged = Merged(version_folder, use_engine=use_engine)
    with _overflow_refuses(source.expert.name, recipe):
        answers = _answered(merged.run, source.rows.rows)
        texts = generated_parity(partial(_answered, merged.run), backbone, source, recipe)
        check_ways(backbone, source, recipe, partial(_answered, merged.run))
    reference, bare = _torch_logits(backbone, source)
    exported = _widened([answer.logits for answer in answers], reference)
    half = recipe.precision == "fp16"
    modules = partial(merged_modules, backbone, source.expert, opset=recipe.opset, half=half)
    bisection = Bisection(merged, version_folder / GRAPH, modules, backbone, recipe.precision)
    explain = partial(bisection.first_beyond, source, ask=lambda row: merged.run([row]))
    parity = _checked(source, reference, bare, exported, recipe, explain, texts=texts)
    return _gated(source, parity, reference)


def _gated(source: Source, parity: Parity, reference: Array) -> Gated:
    sample = gate_sample(source, reference, _right(source, reference))
    worst = parity.worst_row
    text = "" if worst is None else as_row(source.rows.rows[worst.row - 1]).text
    return Gated(parity, sample, text)


def _answered(
    run: Callable[[Sequence[Input]], Sequence[Answer | PidepError]], rows: Sequence[Input]
) -> list[Answer]:
    """The rows' answers, a batch at a time; the first row that cannot be answered is raised."""
    found: list[Answer] = []
    for start in range(0, len(rows), _BATCH):
        for answer in run(rows[start : start + _BATCH]):
            if isinstance(answer, PidepError):
                raise answer
            found.append(answer)
    return found


def _candidates(rows: Sequence[Input]) -> dict[tuple[str, str], Input]:
    """Every candidate of the rows once, by key."""
    own = (row.candidates for row in rows if isinstance(row, Row))
    return {row_key(one): one for candidates in own for one in candidates}


def _torch_logits(backbone: Backbone, source: Source) -> tuple[Array, Array]:
    """PyTorch's logits `[N, C]` with the expert attached, not folded, and those of the first rows
    `[M, C]` without the expert, as many as show what it does.
    """
    expert, rows = source.expert, source.rows.rows
    choices = backbone.answer_scorer(
        expert.label_texts,
        torch.from_numpy(expert.label_embeddings),
        logit_scale=expert.logit_scale,
    )
    choices.learn(rows)  # before anything is attached: the bare backbone embeds candidates

    def logits(count: int) -> Array:
        found = choices.all_logits(rows[:count], max_length=expert.max_length)
        found = with_label_bias(found, rows[:count], expert.label_bias)
        return np.nan_to_num(found.numpy(), neginf=_NO_CANDIDATE)

    # Attached, so that an error in folding shows as a difference.
    with attached(backbone.model, mixture_of(source.served)):
        reference = logits(len(rows))
    bare = logits(_EFFECT_ROWS)
    if effect_of(reference, bare) < NO_EFFECT:
        bare = logits(len(rows))  # it may act on few rows
    return reference, bare


def _widened(logits: Sequence[Array], reference: Array) -> Array:
    """Rows of logits in one array: PyTorch's are as wide as the row with the most candidates."""
    found = np.full(reference.shape, _NO_CANDIDATE, np.float32)
    for at, row in enumerate(logits):
        found[at, : len(row)] = row
    return found


def _checked(
    source: Source,
    reference: Array,
    bare: Array,
    exported: Array,
    recipe: Recipe,
    explain: Callable[[Input], str],
    *,
    texts: GeneratedParity | None,
) -> Parity:
    """The figures, within the recipe's tolerance, of an expert that acts.

    Args:
        explain: names the first node beyond tolerance on a row.
        texts: those that a task of free answers generates.
    """
    labels = _right(source, reference)
    measured = measure_parity(reference, exported, labels=labels, metric=source.metric)
    names, rows = source.expert.labels, source.rows.rows
    worst = worst_row(reference, exported, rows)
    parity = measured.model_copy(
        update={
            "generated": texts,
            "effect": effect_of(reference, bare),
            "worst_row": worst,
            "slices": slices_of(reference, exported, rows, labels, names),
        }
    )
    why = partial(explain, rows[worst.row - 1])
    check_parity(source.expert.name, parity, recipe.tolerance, explain=why)
    check_effect(source.expert.name, parity, explain=why)
    _check_recorded(source, parity)
    return parity


def _right(source: Source, reference: Array) -> list[int]:
    """The right label of each row; without labels, PyTorch's answers stand for them."""
    labels = source.rows.labels
    return reference.argmax(1).tolist() if UNLABELLED in labels else list(labels)


def _check_recorded(source: Source, parity: Parity) -> None:
    """Refuse an expert that no longer answers as its run measured it.

    Graph and PyTorch share the backbone, so their parity does not show that it has changed.

    Raises:
        ParityError: the metrics differ; the message has both.
    """
    recorded = source.recorded
    if recorded is not None and abs(parity.metric_torch - recorded) > _METRIC_ROUNDING:
        raise ParityError(
            f"parity of {source.expert.name!r}: {parity.metric} of the same rows is "
            f"{parity.metric_torch:.3g}, its run measured {recorded:.3g}; the backbone or a "
            "package answers otherwise now, run pidep tune again; nothing was published"
        )
