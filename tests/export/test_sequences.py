"""Encoder-decoders as two graphs: merged, and as a bank; scores and texts are PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.adapters.mixture import Mixture, attached
from pidep.artifacts import BankRecord, MergedRecord
from pidep.artifacts.names import BACKBONE
from pidep.deployment.release import release_bank
from pidep.errors import ExpertError, PidepError, UsageError
from pidep.experts.folder import Expert
from pidep.export import export_merged, load_recipe
from pidep.inputs.decoding import Decoding
from pidep.inputs.row import Row
from pidep.runtime import Bank, Merged
from pidep.runtime.answer import Answer
from tests.backbones.tiny_models import loaded
from tests.export.sequences import TEXTS, free_source, labelled_source, noisy_expert

pytestmark = pytest.mark.slow

CANDIDATES = ("red", "the green cat", "yes", "big big dog is not one")
KINDS = ("lora", "adapter", "bitfit", "prefix")


def asked(decoding: Decoding | None = None, candidates: Sequence[str] = ()) -> list[Row]:
    return [
        Row(text, candidates=tuple(candidates), where=f"row {at}", decoding=decoding)
        for at, text in enumerate(TEXTS, 1)
    ]


def good(answers: Sequence[Answer | PidepError]) -> list[Answer]:
    assert not [one for one in answers if isinstance(one, PidepError)]
    return [one for one in answers if isinstance(one, Answer)]


def torch_scores(backbone: Any, expert: Expert | None, texts: Sequence[str]) -> np.ndarray:
    with attached(backbone.model, None if expert is None else Mixture.of([expert])):
        found = backbone.score(TEXTS, list(texts), max_length=16)
    return np.asarray(found.detach())


def torch_texts(backbone: Any, expert: Expert, **how: Any) -> list[str]:
    with attached(backbone.model, Mixture.of([expert])):
        return list(backbone.generate(TEXTS, max_length=16, **how))


@pytest.fixture(scope="module")
def t5() -> Any:
    return loaded("T5")


@pytest.fixture(scope="module")
def bart() -> Any:
    return loaded("BART")


@pytest.fixture(scope="module")
def merged(t5: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Merged, Expert]:
    """A LoRA of T5 with labels, folded into its weights."""
    expert = noisy_expert(t5, "lora", name="colours")
    repo = tmp_path_factory.mktemp("merged")
    exported = export_merged(labelled_source(expert), repo, load_recipe("onnx-cpu"))
    return Merged(exported.folder / "1"), expert


def test_labels_are_scored(merged: tuple[Merged, Expert], t5: Any) -> None:
    model, expert = merged
    answers = good(model.run(TEXTS))
    wanted = torch_scores(t5, expert, expert.label_texts)
    np.testing.assert_allclose([one.logits for one in answers], wanted, atol=2e-5)
    assert [one.label for one in answers] == [expert.labels[at] for at in wanted.argmax(1)]
    assert {one.digest for one in answers} == {expert.digest}


def test_a_row_brings_its_own_candidates(merged: tuple[Merged, Expert], t5: Any) -> None:
    model, expert = merged
    answers = good(model.run(asked(candidates=CANDIDATES)))
    wanted = torch_scores(t5, expert, CANDIDATES)
    np.testing.assert_allclose([one.logits for one in answers], wanted, atol=2e-5)
    assert answers[0].labels == CANDIDATES


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding("greedy", max_answer_length=9),
        Decoding("beam", max_answer_length=9),
        Decoding("beam", 2, 9, 0.0),
        Decoding("beam", 3, 9, 2.0),
    ],
)
def test_texts_are_those_of_transformers(
    merged: tuple[Merged, Expert], t5: Any, decoding: Decoding
) -> None:
    model, expert = merged
    wanted = torch_texts(
        t5,
        expert,
        mode=decoding.mode,
        num_beams=decoding.num_beams,
        length_penalty=decoding.length_penalty,
        max_new_tokens=9,
    )
    assert [one.text for one in good(model.run(asked(decoding)))] == wanted


def test_constrained_gives_the_likeliest_candidate(merged: tuple[Merged, Expert], t5: Any) -> None:
    model, expert = merged
    answers = good(model.run(asked(Decoding("constrained"), CANDIDATES)))
    best = torch_scores(t5, expert, CANDIDATES).argmax(1)
    assert [one.label for one in answers] == [CANDIDATES[at] for at in best]


def test_rows_of_all_modes_share_a_batch(merged: tuple[Merged, Expert]) -> None:
    """Rows of a mixed batch are answered as rows alone."""
    model, _ = merged
    rows = [
        Row("a dog"),
        Row("the big red cat", decoding=Decoding("greedy", max_answer_length=3)),
        Row("no", decoding=Decoding("beam", 2, 5)),
        Row("yes two", candidates=CANDIDATES, decoding=Decoding("constrained")),
        Row("what colour", candidates=("one", "two")),
        Row("the dog", decoding=Decoding("greedy", max_answer_length=7)),
    ]
    for row, answer in zip(rows, good(model.run(rows)), strict=True):
        (alone,) = good(model.run([row]))
        assert (answer.label, answer.labels, answer.text) == (alone.label, alone.labels, alone.text)
        np.testing.assert_allclose(answer.logits, alone.logits, atol=1e-5)


def test_a_text_that_is_too_long_is_the_error_of_its_row(merged: tuple[Merged, Expert]) -> None:
    model, _ = merged
    wrong, right = model.run([Row("a dog", decoding=Decoding("constrained")), Row("a dog")])
    assert isinstance(right, Answer)
    assert isinstance(wrong, Answer)  # the labels are its candidates
    assert wrong.label in ("warm", "cold", "none")


def test_the_record_names_both_graphs(merged: tuple[Merged, Expert]) -> None:
    record = merged[0].record
    assert record.sequence is not None
    assert record.graph_digest == record.sequence.decoder_digest
    assert record.label_texts == ("red", "the blue one", "not green")


# The bank.


@pytest.fixture(scope="module")
def bank(
    bart: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bank, Any, dict[str, Expert]]:
    """An expert of each kind that a bank holds; the prefix answers freely."""
    experts = {
        kind: noisy_expert(bart, kind, name=kind, seed=at, free=kind == "prefix")
        for at, kind in enumerate(KINDS)
    }
    sources = [
        (free_source if one.max_answer_length else labelled_source)(one) for one in experts.values()
    ]
    folder = tmp_path_factory.mktemp("bank")
    exported = release_bank(sources, folder / "repo", load_recipe("onnx-cpu"))
    found = Bank(exported.folder / "1")
    return found, found.build(experts), experts


def test_rows_of_one_batch_have_experts_of_all_kinds(
    bank: tuple[Bank, Any, dict[str, Expert]], bart: Any
) -> None:
    model, residents, experts = bank
    names = [*KINDS, BACKBONE]
    answers = good(model.run(residents, asked(candidates=CANDIDATES), names))
    for at, (name, answer) in enumerate(zip(names, answers, strict=True)):
        wanted = torch_scores(bart, experts.get(name), CANDIDATES)[at]
        np.testing.assert_allclose(answer.logits, wanted, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_bank_generates_what_transformers_does(
    bank: tuple[Bank, Any, dict[str, Expert]], bart: Any, name: str
) -> None:
    model, residents, experts = bank
    decoding = Decoding("beam", 3, 6)
    rows = [*asked(decoding), Row("one", decoding=decoding)]
    answers = good(model.run(residents, rows, [name] * len(TEXTS) + [BACKBONE]))
    wanted = torch_texts(bart, experts[name], mode="beam", num_beams=3, max_new_tokens=6)
    assert [one.text for one in answers[:-1]] == wanted


def test_an_expert_of_free_answers_generates_without_being_asked(
    bank: tuple[Bank, Any, dict[str, Expert]], bart: Any
) -> None:
    model, residents, experts = bank
    answers = good(model.run(residents, TEXTS, ["prefix"] * len(TEXTS)))
    assert [one.label for one in answers] == torch_texts(bart, experts["prefix"], max_new_tokens=6)


def test_an_expert_that_changes_nothing_is_not_served(
    bank: tuple[Bank, Any, dict[str, Expert]], bart: Any
) -> None:
    model, _, experts = bank
    idle = noisy_expert(bart, "lora", name="idle")
    for tensors in idle.sites.values():
        tensors["lora_B"][:] = 0
    residents = model.build({**experts, "idle": idle})
    faults = model.probe(residents, ["lora", "idle", "prefix"])
    assert list(faults) == ["idle"]
    assert "changes nothing" in str(faults["idle"])


def test_without_labels_and_candidates_there_is_nothing_to_choose(
    bank: tuple[Bank, Any, dict[str, Expert]],
) -> None:
    model, residents, _ = bank
    rows = [Row("a dog", where="row 1", decoding=Decoding("score")), Row("a dog")]
    wrong, right = model.run(residents, rows, [BACKBONE, "lora"])
    assert isinstance(right, Answer)
    assert "row 1: mode 'score' needs candidates" in str(wrong)


def test_the_gate_compares_generated_texts_too(
    bank: tuple[Bank, Any, dict[str, Expert]],
) -> None:
    parity = bank[0].record.parity
    assert set(parity) == set(KINDS)
    assert all(one.argmax_flips == 0 and one.max_abs < 1e-4 for one in parity.values())
    assert parity["prefix"].metric == "accuracy"


# What is refused.


def test_a_prompt_of_an_encoder_decoder_is_merged_only(bart: Any, tmp_path: Path) -> None:
    expert = noisy_expert(bart, "prompt", name="prompt")
    with pytest.raises(ExpertError, match="form=merged"):
        release_bank([labelled_source(expert)], tmp_path / "repo", load_recipe("onnx-cpu"))
    exported = export_merged(labelled_source(expert), tmp_path / "two", load_recipe("onnx-cpu"))
    (answer,) = good(Merged(exported.folder / "1").run(TEXTS[:1]))
    wanted = torch_scores(bart, expert, expert.label_texts)[0]
    np.testing.assert_allclose(answer.logits, wanted, atol=2e-5)


def test_other_backends_are_refused(t5: Any, tmp_path: Path) -> None:
    expert = noisy_expert(t5, "lora", name="colours")
    with pytest.raises(UsageError, match="decodes no texts"):
        export_merged(
            labelled_source(expert), tmp_path, load_recipe("onnx-cpu"), platform="onnxruntime"
        )


def test_blip_has_no_graphs(tmp_path: Path) -> None:
    backbone = loaded("BLIP captions")
    expert = noisy_expert(backbone, "lora", name="captions")
    with pytest.raises(UsageError, match="has no graphs with a cache; use pidep generate"):
        export_merged(labelled_source(expert), tmp_path, load_recipe("onnx-cpu"))


# Images.


def test_florence_reads_images_and_texts_in_one_batch(tmp_path: Path) -> None:
    backbone = loaded("Florence-2")
    expert = noisy_expert(backbone, "lora", name="scene")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    rows = [
        Row("what is", pixels),
        Row("a red dog"),
        Row("", pixels[::-1].copy()),
        Row("<OD>", pixels),
    ]
    exported = export_merged(labelled_source(expert, rows), tmp_path, load_recipe("onnx-cpu"))
    record = MergedRecord.read(exported.folder / "1")
    assert record.sequence is not None
    assert record.vision is not None
    answers = good(Merged(exported.folder / "1").run(rows))
    with attached(backbone.model, Mixture.of([expert])):
        wanted = backbone.score(rows, list(expert.label_texts), max_length=16).detach()
    np.testing.assert_allclose([one.logits for one in answers], wanted, atol=5e-5)


def test_a_bank_of_an_encoder_decoder_has_no_embedding(
    bank: tuple[Bank, Any, dict[str, Expert]],
) -> None:
    record = bank[0].record
    assert isinstance(record, BankRecord)
    assert record.hidden_size == 0
    assert record.sequence is not None
