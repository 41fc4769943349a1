"""Offline answers are those of the training code, for every kind of answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.errors import ExpertError
from pidep.experts.folder import write_expert
from pidep.inputs.row import Row
from pidep.training.scorer import predict_logits, scorer_for_expert
from pidep.tuning.predict import predict
from tests.adapters.small_experts import make
from tests.backbones.tiny_models import folder_of, loaded
from tests.conftest import make_expert

TEXTS = ["the film was good", "awful film", "a bad bad film", "great"]


def test_the_scores_are_the_softmax_of_the_expert(tiny: Any, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    logits = predict_logits(scorer_for_expert(tiny, expert), TEXTS, Mixture.of([expert]))
    write_expert(expert, tmp_path / "run" / "expert")
    found = predict(tmp_path / "run", TEXTS)
    for prediction, expected in zip(found, logits.softmax(1).tolist(), strict=True):
        assert list(prediction.scores) == ["negative", "positive"]
        assert list(prediction.scores.values()) == pytest.approx(expected, abs=1e-6)
        assert prediction.label == expert.labels[int(np.argmax(expected))]
        assert prediction.digest == expert.digest
    assert predict(tmp_path / "run" / "expert", TEXTS) == found
    assert predict(expert, TEXTS, backbone=tiny) == found


def test_the_answers_depend_on_the_expert_and_not_on_the_other_rows(tiny: Any) -> None:
    expert, other = make_expert(tiny), make_expert(tiny, seed=1)
    together = predict(expert, TEXTS, backbone=tiny)
    alone = [predict(expert, [text], backbone=tiny)[0] for text in TEXTS]
    assert [one.label for one in alone] == [one.label for one in together]
    for left, right in zip(alone, together, strict=True):
        assert list(left.scores.values()) == pytest.approx(list(right.scores.values()), abs=1e-5)
    changed = predict(other, TEXTS, backbone=tiny)
    assert changed[0].scores != together[0].scores
    assert changed[0].digest != together[0].digest


def test_rows_with_candidates_are_answered_with_one_of_them(tiny: Any) -> None:
    none = np.zeros((0, tiny.hidden_size), np.float32)
    expert = replace(make_expert(tiny), labels=(), label_texts=(), label_embeddings=none)
    rows = [Row("a film", candidates=("good", "bad")), Row("film", candidates=("a", "the", "was"))]
    first, second = predict(expert, rows, backbone=tiny)
    assert list(first.scores) == ["good", "bad"]
    assert list(second.scores) == ["a", "the", "was"]
    assert sum(first.scores.values()) == pytest.approx(1, abs=1e-6)
    assert second.label == max(second.scores, key=second.scores.__getitem__)


@pytest.fixture
def text_expert() -> Any:
    """An expert of T5 that answers with free texts."""
    from pidep.experts.folder import Expert

    backbone = loaded("T5")
    sites = make(backbone.model, "lora", seed=0, scale=0.5)
    none = np.zeros((0, 0), np.float32)
    where = str(folder_of("T5"))
    return Expert(
        "e", backbone.digest, sites, 1.5, (), (), none, 1.0, 12, where, max_answer_length=5
    )


def test_free_answers_are_generated(text_expert: Any, tmp_path: Path) -> None:
    texts = ["the red cat", "is the dog blue"]
    backbone = loaded("T5")
    with attached(backbone.model, Mixture.of([text_expert])):
        expected = backbone.generate(texts, max_length=12, max_new_tokens=5)
    write_expert(text_expert, tmp_path / "expert")
    found = predict(str(tmp_path / "expert"), texts)
    assert [prediction.label for prediction in found] == expected
    assert [prediction.to_json()["scores"] for prediction in found] == [{}, {}]


def test_an_encoder_decoder_scores_the_texts_of_labels(text_expert: Any) -> None:
    expert = replace(
        text_expert,
        labels=("yes!", "no!"),
        label_texts=("yes", "not the cat"),
        label_embeddings=np.zeros((2, 0), np.float32),
        max_answer_length=None,
    )
    backbone = loaded("T5")
    (found,) = predict(expert, ["the red cat"], backbone=backbone)
    with attached(backbone.model, Mixture.of([expert])), torch.no_grad():
        scores = backbone.score(["the red cat"], [("yes", "not the cat")], max_length=12)
    expected = scores.softmax(1)[0].tolist()
    assert found.scores == {"yes!": pytest.approx(expected[0]), "no!": pytest.approx(expected[1])}


def test_wrong_requests_are_refused(tiny: Any, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    assert predict(expert, []) == []
    stranger = replace(expert, backbone_digest="sha256:1")
    with pytest.raises(ExpertError, match=r"made for backbone .*; give its own as `backbone`"):
        predict(stranger, TEXTS, backbone=tiny)
    with pytest.raises(ExpertError, match="nowhere"):
        predict(tmp_path / "nowhere", TEXTS)
