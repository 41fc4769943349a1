"""Class priors of a run: asked for, estimated, kept with the expert, and told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture
from pidep.backbones.load import load_backbone
from pidep.errors import TaskError, UsageError
from pidep.experts.folder import read_expert
from pidep.experts.mixture_folder import read_served
from pidep.interpolation.held_out import HeldOut
from pidep.tasks.data import Split
from pidep.tasks.task import load_task
from pidep.training.scorer import predict_logits, scorer_for_expert
from pidep.tuning.class_priors import decided, given_priors, unlabelled_rows
from pidep.tuning.predict import predict
from pidep.tuning.under_floors import under_sentence
from tests.conftest import make_expert
from tests.tuning.test_tune import run

TEXTS = ["a good film", "the great film", "awful bad film", "very good", "great"]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    file = tmp_path / "used.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 8))
    return file


def test_a_run_keeps_the_priors_that_were_given(
    tiny_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    plain = run(tiny_folder, task_file, tmp_path / "plain", shots=4)
    labels = list(load_task(task_file).labels)
    asked = [f"{labels[1]}=0.8"]
    result = run(tiny_folder, task_file, tmp_path / "run", shots=4, class_prior=asked)
    assert result.class_priors is not None
    assert result.class_priors.source == "given"
    assert result.class_priors.shares == pytest.approx({labels[0]: 0.2, labels[1]: 0.8})
    assert result.class_priors.held_out_rows == 8
    kept = json.loads((result.run / "result.json").read_text())["class_priors"]
    assert kept == result.class_priors.to_json()
    # Helpers are mixed without a bias, so the own expert has none, and is what it always was.
    own, final = read_expert(result.run / "own"), read_expert(result.run / "expert")
    assert own.digest == read_expert(plain.run / "own").digest
    assert (own.label_bias, read_expert(plain.run / "expert").label_bias) == ((), ())
    assert final.digest == result.digest != plain.digest
    assert final.label_bias[1] > final.label_bias[0]
    assert list(result.metrics)[-2:] == ["own_expert", "own_priors"]
    # What a run measures is what its expert answers.
    backbone, test = load_backbone(str(tiny_folder)), load_task(task_file)
    from pidep.tasks.data import load_data

    rows = load_data(test).test
    answers = [one.label for one in predict(final, rows.rows, backbone=backbone)]
    right = [labels[label] for label in rows.labels]
    share = np.mean([a == b for a, b in zip(answers, right, strict=True)])
    assert share == pytest.approx(result.metrics["own_priors"])


def test_a_mixture_is_decided_for_the_priors_of_rows_without_labels(
    tiny_folder: Path, task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    run(tiny_folder, task_file, tmp_path / "one", name="one", pool=pool, unlabelled=rows_file)
    # A pool's experts help other tasks, whose shares are others.
    assert read_expert(pool / "one").label_bias == ()
    result = run(
        *(tiny_folder, task_file, tmp_path / "run"),
        **{"name": "target", "pool": pool, "shots": 4, "unlabelled": rows_file},
    )
    assert result.class_priors is not None
    assert (result.class_priors.source, result.class_priors.rows) == ("unlabelled", 40)
    assert sum(result.class_priors.shares.values()) == pytest.approx(1, abs=1e-3)
    assert list(result.metrics)[-2:] == ["pi_plain", "pi"]
    folded, served = read_expert(result.run / "expert"), read_served(result.run / "mixture")
    assert served.head.label_bias == folded.label_bias != ()
    assert served.head.logit_scale == folded.logit_scale
    assert result.digest == served.digest


def test_without_priors_nothing_changes(tiny: Any) -> None:
    expert = make_expert(tiny)
    scorer = scorer_for_expert(tiny, expert)
    held = HeldOut(torch.zeros(2, 2), torch.tensor([0, 1]))
    rows = Split(TEXTS, [0, 0, 1, 0, 0])
    found, priors = decided(expert, Mixture.of([expert]), scorer, rows, held)
    assert found is expert
    assert priors.source == "training"
    assert priors.shares == pytest.approx({"negative": 0.8, "positive": 0.2})


def test_the_bias_of_known_priors_is_their_log_ratio(tiny: Any) -> None:
    expert = make_expert(tiny)
    scorer, mixture = scorer_for_expert(tiny, expert), Mixture.of([expert])
    rows = Split(TEXTS[:4], [0, 0, 1, 1])
    given = {"negative": 0.2, "positive": 0.8}
    found, _ = decided(expert, mixture, scorer, rows, None, given=given)
    logits, moved = (
        predict_logits(one, TEXTS, mixture)
        for one in (scorer, scorer_for_expert(tiny, replace(found)))
    )
    odds = (moved - logits).diff(dim=1).squeeze(1)
    assert odds.tolist() == pytest.approx([np.log(4)] * len(TEXTS), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ("positiv=0.3",),
            r"'positiv=0\.3': expected label=share, .* \(did you mean 'positive'\?\)",
        ),
        (("positive=0.3", "positive=0.3"), r"each label once"),
        (("positive=1",), r"'positive=1': expected a share between 0 and 1, such as 0\.72"),
        (("positive=nan",), r"expected a share between 0 and 1"),
        (("positive=x",), r"expected a share between 0 and 1"),
        (("positive=0.3", "negative=0.3"), r"the shares have the sum 0\.6, expected 1"),
    ],
)
def test_priors_that_cannot_be_are_refused(
    task_file: Path, asked: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        given_priors(asked, load_task(task_file))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"class_prior": ["positive=0.3"]}, "both say how common the labels are; give one"),
        ({"policy": "zero-shot", "pool": "pool"}, "policy zero-shot: has no labelled rows"),
    ],
)
def test_requests_that_do_not_fit_are_refused_before_training(
    tiny_folder: Path,
    task_file: Path,
    rows_file: Path,
    tmp_path: Path,
    more: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        run(tiny_folder, task_file, tmp_path / "run", unlabelled=rows_file, **more)
    assert not (tmp_path / "run").exists()


def test_rows_without_labels_are_read_as_the_tasks_own(task_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    assert unlabelled_rows(load_task(task_file), file).rows == TEXTS
    file.write_text("body\nno such column\n")
    with pytest.raises(TaskError, match="text"):
        unlabelled_rows(load_task(task_file), file)


def test_a_run_under_a_constant_answer_says_so(
    tiny_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    labels = list(load_task(task_file).labels)
    # Almost every answer is the label that was called common, and it is right half of the time.
    result = run(
        *(tiny_folder, task_file, tmp_path / "run"),
        **{"shots": 4, "class_prior": [f"{labels[0]}=0.0001"]},
    )
    under = json.loads((result.run / "result.json").read_text())["under"]
    assert ("probe" in under) == (result.metrics["probe"] > result.metrics["own_priors"])
    assert ("majority" in under) == (result.metrics["majority"] > result.metrics["own_priors"])
    assert under
    told = under_sentence(result.metric, result.metrics)
    assert "is under always the commonest label" in told or "logistic probe" in told
