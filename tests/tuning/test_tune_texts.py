"""Tuning encoder-decoders.

Labels by the likelihood of their texts, free answers by target texts, and π over both.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.encoder_decoder import EncoderDecoder
from pidep.backbones.likelihoods import Likelihoods
from pidep.errors import BackboneError, ExpertError, TaskError, UsageError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.inputs.row import Row
from pidep.similarity.fisher import diagonal_fisher
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import tune
from tests.backbones.tiny_models import loaded
from tests.tuning.text_tasks import answered, choosing, labelled, pictured

FAST = {
    "steps": 60,
    "batch_size": 16,
    "rank": 8,
    "top_k": 0,
    "eval_every": 30,
    "learning_rate": 2e-2,
    "max_answer_length": 4,
}
FEW = {
    **FAST,
    "steps": 8,
    "mixture_steps": 4,
    "eval_every": 8,
    "top_k": 2,
    "folds": 2,
    "fisher_samples": 12,
    "train_limit": 24,
}


def config(task: Path, **fields: Any) -> TuneSettings:
    return TuneSettings(**{"task": str(task), "backbone": "given", **FAST, **fields})


@pytest.fixture(scope="module")
def t5() -> EncoderDecoder:
    return loaded("T5")


def test_labels_are_learned_as_on_an_encoder(t5: EncoderDecoder, tmp_path: Path) -> None:
    result = tune(config(labelled(tmp_path)), tmp_path / "run", backbone=t5)
    assert result.metrics["own_expert"] >= 0.9 > result.metrics["backbone"]
    expert = read_expert(tmp_path / "run" / "expert")
    assert (expert.labels, expert.label_texts, expert.label_embeddings.shape) == (
        ("red", "blue"),
        ("red", "blue"),
        (2, 0),
    )
    assert (expert.logit_scale, expert.max_answer_length, expert.digest) == (
        1.0,
        None,
        result.digest,
    )
    record = json.loads((tmp_path / "run" / "expert" / "expert.json").read_text())
    assert record["schema"] == 3
    assert not (tmp_path / "run" / "expert" / "labels.safetensors").exists()


def test_target_texts_are_learned_and_answers_measured(t5: EncoderDecoder, tmp_path: Path) -> None:
    result = tune(
        config(answered(tmp_path), steps=100, learning_rate=1e-2), tmp_path / "run", backbone=t5
    )
    assert result.metric == "accuracy"
    assert result.metrics["backbone"] == 0.0
    assert result.metrics["own_expert"] >= 0.9
    expert = read_expert(tmp_path / "run" / "expert")
    assert (expert.labels, expert.label_embeddings.shape, expert.max_answer_length) == (
        (),
        (0, 0),
        4,
    )


@pytest.mark.parametrize(("make", "shots"), [(labelled, 6), (answered, None)])
def test_pi_mixes_with_neighbours(
    make: Any, shots: int | None, t5: EncoderDecoder, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    for seed, name in enumerate(("one", "two"), 1):
        tune(
            config(make(tmp_path, name, seed=seed), pool=pool, **FEW), tmp_path / name, backbone=t5
        )
    result = tune(
        config(make(tmp_path, "target"), pool=pool, **FEW, shots=shots),
        tmp_path / "run",
        backbone=t5,
    )
    assert result.neighbours_by == "trial"
    assert {near.name for near in result.neighbours} == {"one", "two"}
    floors = {"majority"} if make is labelled else set()
    assert set(result.metrics) == floors | {"backbone", "own_expert", "uniform", "pi"}
    decision = read_expert(tmp_path / "run" / "expert").provenance["decision"]
    assert decision["rows"] > 0
    assert all(0 < loss < 10 for loss in decision["losses"].values())


@pytest.mark.parametrize("kind", ["adapter", "prefix", "prompt"])
def test_other_kinds_run_through(kind: str, t5: EncoderDecoder, tmp_path: Path) -> None:
    result = tune(
        config(answered(tmp_path), kind=kind, steps=6, train_limit=20, test_limit=8),
        tmp_path / "run",
        backbone=t5,
    )
    assert set(result.metrics) == {"backbone", "own_expert"}
    assert read_expert(tmp_path / "run" / "expert").kind == kind


@pytest.mark.parametrize(
    "fields", [{}, {"target": "{box}", "target_is": "box", "metric": "acc@0.5"}]
)
def test_images_are_answered_with_words_and_with_boxes(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    backbone = loaded("Florence-2")
    task = pictured(tmp_path, **fields)
    result = tune(
        config(task, steps=60, batch_size=8, fisher_samples=8, max_answer_length=6),
        tmp_path / "run",
        backbone=backbone,
    )
    assert result.metrics["own_expert"] >= 0.9 > result.metrics["backbone"]


def test_a_run_is_the_same_again(t5: EncoderDecoder, tmp_path: Path) -> None:
    task = answered(tmp_path)
    both = [tune(config(task, **FEW), tmp_path / name, backbone=t5) for name in ("first", "again")]
    assert both[0].digest == both[1].digest


def test_logits_of_a_free_answer_are_a_softmax(t5: EncoderDecoder) -> None:
    """The cross-entropy at label 0 is the mean negative log-likelihood per token.

    Its gradient is finite where a text is certain.
    """
    rows = [
        Row("the red cat", candidates=("red cat",)),
        Row("a dog", candidates=("the big blue dog",)),
    ]
    with torch.no_grad():
        logits = Likelihoods(t5, (), free=True, max_target_length=8).logits(rows, max_length=12)
        mean = -t5.loss(
            rows, ["red cat", "the big blue dog"], max_length=12, max_target_length=8
        ) / torch.tensor([3, 5])
    torch.testing.assert_close(logits[:, 0], mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.logsumexp(1), torch.zeros(2), atol=1e-5, rtol=0)


def test_a_label_likelihood_can_be_certain() -> None:
    class Certain:
        def score(self, rows: Any, *_: Any, **__: Any) -> torch.Tensor:
            return given[:, None]

    given = torch.zeros(1, requires_grad=True)
    logits = Likelihoods(Certain(), (), free=True).logits(
        [Row("a", candidates=("b",))], max_length=4
    )  # type: ignore[arg-type]
    torch.nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits).all()
    assert given.grad is not None
    assert torch.isfinite(given.grad).all()


def expert_of(backbone: EncoderDecoder, *, free: bool) -> Expert:
    from tests.adapters.small_experts import make

    sites = make(
        backbone.model, "lora", seed=0, patterns=("*SelfAttention.q", "*EncDecAttention.v")
    )
    labels = () if free else ("red", "blue")
    empty = np.zeros((len(labels), 0), np.float32)
    return Expert(
        "e",
        backbone.digest,
        sites,
        1.5,
        labels,
        labels,
        empty,
        1.0,
        12,
        backbone.name,
        max_answer_length=4 if free else None,
    )


@pytest.mark.parametrize("free", [False, True])
def test_a_fisher_is_the_mean_of_squared_gradients_of_single_rows(
    free: bool, t5: EncoderDecoder
) -> None:
    texts = ["the red cat", "a dog", "blue is the big small cat"]
    rows = [Row(text, candidates=("red dog",)) for text in texts] if free else list(texts)
    labels = [0, 0, 0] if free else [0, 1, 1]
    expert = expert_of(t5, free=free)
    found = diagonal_fisher(t5, expert, rows, labels)
    mixture = Mixture.of([expert])
    by_hand: list[torch.Tensor] = []
    with attached(t5.model, mixture):
        parameters = [site.a for _, site in mixture.by_name()]
        for row, label in zip(rows, labels, strict=True):
            if free:
                loss = t5.loss([row], ["red dog"], max_length=12, max_target_length=4).sum() / 3
            else:
                loss = torch.nn.functional.cross_entropy(
                    t5.score([row], ["red", "blue"], max_length=12), torch.tensor([label])
                )
            squares = [gradient.square() for gradient in torch.autograd.grad(loss, parameters)]
            by_hand = (
                [total + square for total, square in zip(by_hand, squares, strict=True)]
                if by_hand
                else squares
            )
    for (name, _), total in zip(mixture.by_name(), by_hand, strict=True):
        np.testing.assert_allclose(
            found[f"{name}.lora_A"], (total / 3).numpy(), rtol=2e-3, atol=1e-7
        )
    assert all(
        np.isfinite(value).all()
        for value in diagonal_fisher(t5, expert, rows, labels, kind="batch_squared").values()
    )
    refused = pytest.raises(
        UsageError,
        match=(
            "expert 'e': answers with free texts, which the true Fisher does not draw; use "
            "'empirical'"
        ),
    )
    with refused if free else nullcontext():
        diagonal_fisher(t5, expert, rows, kind="true")


def test_settings_that_contradict_each_other_are_refused(
    t5: EncoderDecoder, tiny: Any, tmp_path: Path
) -> None:
    free = answered(tmp_path)
    with pytest.raises(
        TaskError,
        match=(
            r"task 'both': its answers are free texts \(target\), and backbone .* embeds; give an "
            r"encoder-dec"
        ),
    ):
        tune(config(free), tmp_path / "run", backbone=tiny)
    asked = {"neighbours_by": "h-score", "pool": tmp_path / "pool", "top_k": 1}
    for task, backbone, why in (
        (labelled(tmp_path), t5, "the backbone embeds nothing"),
        (choosing(tmp_path), tiny, "the task has none"),
    ):
        with pytest.raises(TaskError, match=f"the H-score compares embeddings .* {why}; use"):
            tune(config(task, **asked), tmp_path / "run", backbone=backbone)
    with pytest.raises(
        TaskError, match="its answers are free texts, which `fisher=true` would have to draw"
    ):
        tune(config(free, fisher="true"), tmp_path / "run", backbone=t5)
    with pytest.raises(TaskError, match="which `policy=zero-shot` would have to draw"):
        tune(
            config(free, policy="zero-shot", pool=tmp_path / "pool", **{"top_k": 1}),
            tmp_path / "run",
            backbone=t5,
        )
    with pytest.raises(BackboneError, match=r"row 1: has an image|reads text only"):
        tune(config(pictured(tmp_path / "pictures")), tmp_path / "run", backbone=t5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("free", [False, True])
def test_what_decides_an_answer_is_in_the_digest(
    free: bool, t5: EncoderDecoder, tmp_path: Path
) -> None:
    expert = expert_of(t5, free=free)
    again = read_expert(write_expert(expert, tmp_path / "e"))
    assert again.digest == expert.digest
    assert again.max_answer_length == expert.max_answer_length
    other = (
        replace(expert, max_answer_length=9)
        if free
        else replace(expert, label_texts=("red cat", "blue"))
    )
    assert other.digest != expert.digest
    path = tmp_path / "e" / "expert.json"
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {**record, "max_answer_length": 9, "label_texts": ["a", "b"][: len(record["labels"])]}
        )
    )
    with pytest.raises(ExpertError, match="digest mismatch"):
        read_expert(tmp_path / "e")
    path.write_text(json.dumps({**record, "schema": 9}))
    with pytest.raises(ExpertError, match="schema 9, this pidep reads schemas 1 to 4"):
        read_expert(tmp_path / "e")
    path.write_text(json.dumps({**record, "schema": 1}))
    with pytest.raises(ExpertError, match=r"labels.safetensors"):
        read_expert(tmp_path / "e")
