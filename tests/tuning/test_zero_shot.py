"""The policy `zero-shot`: what it writes, and that it reads no label of the target."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.record import RESULTS
from pidep.adapters.mixture import Mixture
from pidep.deployment.release import release_bank
from pidep.errors import ExpertError, TaskError, UsageError
from pidep.experts.folder import read_expert
from pidep.experts.mixed import parts_of
from pidep.experts.mixture_folder import read_served
from pidep.export import export_merged, load_recipe, read_source
from pidep.settings import checked
from pidep.tuning import tune as tuning
from pidep.tuning.run_folder import run_task
from pidep.tuning.settings import TuneSettings
from pidep.tuning.zero_shot import warn
from tests.cli.run import untouched, write_pool
from tests.conftest import make_expert

WORDS = {"negative": ("bad", "awful"), "positive": ("good", "great")}
Rows = list[dict[str, Any]]


def rows(count: int, *, seed: int) -> Rows:
    """Texts that are all different."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        label = ["negative", "positive"][len(found) % 2]
        text = " ".join(
            [
                *rng.choice(["a", "film", "the", "was", "very"], size=6),
                str(rng.choice(WORDS[label])),
            ]
        )
        found[text] = label
    return [{"text": text, "label": label} for text, label in found.items()]


TRAIN, TEST = rows(40, seed=0), rows(20, seed=1)


@pytest.fixture
def pool(tiny, tmp_path: Path) -> Path:
    return write_pool(
        tmp_path / "pool",
        *(make_expert(tiny, name=name, seed=seed) for seed, name in enumerate("abcd")),
    )


@pytest.fixture
def mix(tiny_folder: Path, pool: Path, tmp_path: Path) -> Callable[..., tuning.TuneResult]:
    def run(train: Rows, test: Rows, *, out: str = "run", **more: object) -> tuning.TuneResult:
        folder = tmp_path / "task"
        folder.mkdir(exist_ok=True)
        for name, found in (("train", train), ("test", test)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        labels = "{negative: negative, positive: positive}"
        (folder / "film.yaml").write_text(
            f"name: film\nlabels: {labels}\ndata: {{files: {{train: train.jsonl, test: "
            f"test.jsonl}}}}\n"
        )
        common = {
            "task": str(folder / "film.yaml"),
            "backbone": str(tiny_folder),
            "pool": pool,
            "policy": "zero-shot",
            "rank": 2,
        }
        return tuning.tune(
            checked(TuneSettings, {**common, "top_k": 2, **more}, where="tune"), tmp_path / out
        )

    return run


def without_labels(found: Rows) -> Rows:
    return [{"text": row["text"]} for row in found]


def written(folder: Path) -> dict[str, bytes]:
    """The content of a run folder, without its seconds."""
    timed = ("result.json", "provenance.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in timed
    }


@pytest.mark.parametrize(
    "train",
    [
        [{**row, "label": TRAIN[index - 1]["label"]} for index, row in enumerate(TRAIN)],
        [{**row, "label": "negative"} for row in TRAIN],
        [{**row, "label": "no such label"} for row in TRAIN],
        [{**row, "label": None} for row in TRAIN[:7]] + TRAIN[7:],
        without_labels(TRAIN),
    ],
    ids=["permuted", "all alike", "unknown", "some missing", "none"],
)
def test_labels_of_training_rows_change_nothing(
    mix: Callable[..., tuning.TuneResult], tmp_path: Path, train: Rows
) -> None:
    first, second = mix(TRAIN, TEST, out="first"), mix(train, TEST, out="second")
    assert (first.digest, first.metrics, first.neighbours) == (
        second.digest,
        second.metrics,
        second.neighbours,
    )
    assert written(tmp_path / "first") == written(tmp_path / "second")


def test_texts_are_read(mix: Callable[..., tuning.TuneResult]) -> None:
    other = [{"text": "negative positive positive"}, {"text": "positive positive"}]
    assert mix(TRAIN, TEST, out="first").neighbours != mix(other, TEST, out="second").neighbours


def test_a_task_of_texts_alone(mix: Callable[..., tuning.TuneResult], tmp_path: Path) -> None:
    labelled, bare = (
        mix(TRAIN, TEST, out="labelled"),
        mix(without_labels(TRAIN), without_labels(TEST), out="bare"),
    )
    assert labelled.digest == bare.digest
    assert set(labelled.metrics) == {"majority", "backbone", "nearest", "uniform", "zero_shot"}
    assert bare.metrics == {}
    assert read_expert(tmp_path / "bare" / "expert").metrics == {}


def test_a_test_row_without_its_label_is_named_where_others_have_theirs(
    mix: Callable[..., tuning.TuneResult],
) -> None:
    with pytest.raises(TaskError, match=r"test\.jsonl, row 2: no column 'label'"):
        mix(TRAIN, [TEST[0], {"text": TEST[1]["text"]}])


def test_it_is_the_weighted_mixture_of_the_nearest(
    mix: Callable[..., tuning.TuneResult], pool: Path, tmp_path: Path
) -> None:
    result = mix(TRAIN, TEST, temperature=0.02)
    similarities = np.array([near.similarity for near in result.neighbours])
    assert similarities[0] >= similarities[1]
    alpha = json.loads((tmp_path / "run" / "alpha.json").read_text())
    assert alpha["experts"] == [near.name for near in result.neighbours]
    share = np.exp(similarities / 0.02) / np.exp(similarities / 0.02).sum()
    np.testing.assert_allclose(alpha["mean"], share, rtol=1e-5)

    expert = read_expert(tmp_path / "run" / "expert")
    helpers = [read_expert(pool / near.name) for near in result.neighbours]
    served = read_served(tmp_path / "run" / "mixture")
    assert served.digest == result.digest
    assert [part.digest for part in parts_of(served)] == [helper.digest for helper in helpers]
    assert expert.rank == 4
    assert expert.provenance["mixture_of"] == {
        near.name: helper.digest for near, helper in zip(result.neighbours, helpers, strict=True)
    }
    for site, tensors in expert.sites.items():
        mixed = sum(
            weight * helper.scaling * helper.sites[site]["lora_B"] @ helper.sites[site]["lora_A"]
            for weight, helper in zip(share, helpers, strict=True)
        )
        np.testing.assert_allclose(
            expert.scaling * tensors["lora_B"] @ tensors["lora_A"], mixed, atol=1e-5
        )


def test_a_cold_mixture_is_the_nearest_expert(mix: Callable[..., tuning.TuneResult]) -> None:
    result = mix(TRAIN, TEST, temperature=1e-6)
    assert result.metrics["zero_shot"] == result.metrics["nearest"]


def test_the_pool_and_its_own_old_expert_are_left_alone(
    mix: Callable[..., tuning.TuneResult], tiny: Any, pool: Path, tmp_path: Path
) -> None:
    write_pool(pool, make_expert(tiny, name="film", seed=9))
    with untouched(pool):
        assert "film" not in [near.name for near in mix(TRAIN, TEST, top_k=9).neighbours]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pool": None}, "policy zero-shot: mixes the experts of a pool; give `pool`"),
        ({"top_k": 0}, "policy zero-shot: .* `top_k` above 0"),
        ({"shots": 4}, "policy zero-shot: reads no label, so it has no shots"),
        ({"add_to_pool": True}, "policy zero-shot: trains no own expert"),
    ],
)
def test_settings_that_zero_shot_refuses(
    mix: Callable[..., tuning.TuneResult], tmp_path: Path, more: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        mix(TRAIN, TEST, **more)
    assert not (tmp_path / "run").exists()


def test_it_warns_before_it_runs_and_only_where_it_runs(
    mix: Callable[..., tuning.TuneResult], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError):
        mix(TRAIN, TEST, shots=4)
    assert "did not predict" not in caplog.text
    with caplog.at_level(logging.WARNING):
        mix(TRAIN, TEST)
    assert caplog.text.count("similarity without labels did not predict which experts help") == 1


def test_its_warning_has_the_figures_of_the_benchmark(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn()
    result = json.loads((RESULTS / "prediction.json").read_text())
    figures = result["raw"]["figures"]["8 shots"]
    rank, regret, random = (
        figures[name][figure]["value"]
        for name, figure in (
            ("no labels", "spearman"),
            ("no labels", "regret"),
            ("random", "regret"),
        )
    )
    assert f"rank correlation {rank:.2f};" in caplog.text
    assert f"loses {100 * regret:.1f} points" in caplog.text
    assert f"a random one {100 * random:.1f})" in caplog.text


def test_an_empty_pool(mix: Callable[..., tuning.TuneResult], tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="nothing: no expert of another task to mix"):
        mix(TRAIN, TEST, pool=tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("test", [TEST, without_labels(TEST)], ids=["labels", "texts alone"])
def test_it_is_exported_like_any_other(
    mix: Callable[..., tuning.TuneResult], tmp_path: Path, test: Rows
) -> None:
    """A bank with labels and a merged model without.

    The source of the gate's rows does not depend on the form.
    """
    digest = mix(without_labels(TRAIN), test).digest
    run, bank = tmp_path / "run", test is TEST
    source = read_source(run, rows=8, task=run_task(run), by_reference=bank)
    if bank:
        exported = release_bank([source], tmp_path / "repo", load_recipe("onnx-cpu"))
    else:
        exported = export_merged(source, tmp_path / "repo", load_recipe("onnx-cpu"))
    expected = digest if bank else read_expert(run / "expert").digest
    assert exported.experts == {"film": expected}
    parity = exported.parity["film"]
    assert (parity.rows, parity.argmax_flips) == (8, 0)
    assert parity.metric_torch == parity.metric_exported
    # Without labels, the metric is the agreement with PyTorch's own answers.
    assert (parity.metric_torch == 1) == (test is not TEST)
    assert Mixture.of([source.expert]).num_experts == 1
