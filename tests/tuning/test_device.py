"""Everything that a run computes is where its backbone is, and answers as on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pidep.adapters.kinds import KINDS
from pidep.adapters.places import device_of
from pidep.backbones.backbone import Backbone
from pidep.backbones.device import put_on
from pidep.backbones.load import load_any_backbone
from pidep.errors import UsageError
from pidep.inputs.row import Row
from pidep.settings import checked
from pidep.tasks.memory import write_task
from pidep.tasks.task import Task
from pidep.tuning.predict import predict
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import TuneResult, tune
from tests.backbones.tiny_models import folder_of
from tests.backbones.two_tower_models import save_two_towers
from tests.conftest import tiny_mini
from tests.simulated_gpu import simulated_gpu
from tests.tuning.text_tasks import answered, labelled, pictured

SMALL = {"steps": 4, "batch_size": 4, "eval_every": 2, "mixture_steps": 2, "fisher_samples": 6}


def run(task: str | Path, out: Path, backbone: Backbone, **more: Any) -> TuneResult:
    settings = checked(TuneSettings, {**SMALL, "rank": 2, "task": str(task), **more}, where="tune")
    return tune(settings, out, backbone=backbone)


def whole(task: str | Path, place: Path, backbone: Backbone, **more: Any) -> TuneResult:
    """A helper on all rows with held-out ones, then a few-shot run that it helps."""
    pool = place / "pool"
    helper = {key: value for key, value in more.items() if key != "shots"}
    run(task, place / "helper", backbone, name="helper", pool=pool, **helper)
    few = {"shots": 3, "folds": 2, **more}
    return run(task, place / "run", backbone, name="target", pool=pool, **few)


def on_both(
    make: Callable[[], Backbone],
    task: str | Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    **more: Any,
) -> None:
    """The run on a simulated GPU gives the CPU's expert, and leaves nothing on the CPU."""
    expected = whole(task, tmp_path / "cpu", make(), **more)
    # Loaded before: transformers fills a model on the `meta` device.
    backbone = make()
    with simulated_gpu(monkeypatch) as gpu:
        put_on(backbone, "auto")
        assert device_of(backbone.model).type == "cuda"
        found = whole(task, tmp_path / "gpu", backbone, **more)
        assert gpu.operations > 1000
    assert found.digest == expected.digest
    assert found.metrics == expected.metrics


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_tuned(
    kind: str, tiny: Any, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_both(lambda: copy.deepcopy(tiny), task_file, tmp_path, monkeypatch, kind=kind)


def test_layers_below_the_first_site_are_kept_there(
    tiny: Any, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = ("encoder.layer.1.*",)
    on_both(lambda: copy.deepcopy(tiny), task_file, tmp_path, monkeypatch, sites=sites)


@pytest.mark.parametrize(
    "more", [{"neighbours_by": "trial"}, {"fisher": "true"}, {"policy": "free"}], ids=str
)
def test_every_way_to_choose_is_there(
    more: Any, tiny: Any, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_both(lambda: copy.deepcopy(tiny), task_file, tmp_path, monkeypatch, **more)


def pictures(folder: Path, **fields: Any) -> Path:
    """Images with a question and one of two labels."""
    return pictured(folder, target=None, label="colour", **{"labels": ["red", "blue"]} | fields)


def test_images_and_texts_of_the_mini_backbone(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = pictures(tmp_path, labels={"red": "good film", "blue": "awful"})
    make = lambda: tiny_mini(copy.deepcopy(tiny))  # noqa: E731
    on_both(make, task, tmp_path / "all", monkeypatch)
    sites = ("encoder.layer.1.*",)
    on_both(make, task, tmp_path / "upper", monkeypatch, sites=sites)


@pytest.mark.parametrize("model", ["CLIP", "SigLIP"])
def test_two_towers(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_two_towers(tmp_path / "model", model)
    on_both(
        lambda: load_any_backbone(str(folder)), pictures(tmp_path / "task"), tmp_path, monkeypatch
    )


@pytest.mark.parametrize(
    ("model", "kind", "make", "more"),
    [
        ("T5", "lora", labelled, {}),
        ("BART", "prompt", answered, {"shots": None, "train_limit": 8, "test_limit": 4}),
    ],
)
def test_encoder_decoders_with_labels_and_with_free_answers(
    model: str, kind: str, make: Any, more: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"kind": kind, "max_answer_length": 4, **more}
    load = lambda: load_any_backbone(str(folder_of(model)))  # noqa: E731
    on_both(load, make(tmp_path, "task", count=24), tmp_path, monkeypatch, **more)


def test_images_of_encoder_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("Florence-2", "BLIP captions", "BLIP answers"):
        make = lambda model=model: load_any_backbone(str(folder_of(model)))  # noqa: E731
        task = pictured(tmp_path / "task")
        more = {
            "shots": None,
            "train_limit": 4,
            "test_limit": 2,
            "max_answer_length": 2,
            "steps": 2,
        }
        on_both(make, task, tmp_path / model, monkeypatch, **more)


def test_rows_with_candidates_of_their_own(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": f"{at} {word} film", "label": word, "choices": ["good", "bad", "a"][: 2 + at % 2]}
        for at, word in enumerate(["good", "bad"] * 16)
    ]
    pick = Task.from_rows(rows[:24], name="pick", candidates="choices", test=rows[24:])
    task = write_task(pick, tmp_path / "task")
    on_both(lambda: copy.deepcopy(tiny), task, tmp_path, monkeypatch, shots=None, train_limit=12)


def test_an_expert_answers_on_a_gpu(
    tiny: Any, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(task_file, tmp_path, copy.deepcopy(tiny))
    rows = [Row("a good film"), Row("film", candidates=("good", "the", "bad"))]
    expected = predict(tmp_path / "run", rows, backbone=tiny)
    with simulated_gpu(monkeypatch):
        assert predict(tmp_path / "run", rows, backbone=put_on(tiny, "cuda:0")) == expected


def test_a_simulated_gpu_refuses_tensors_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpu(monkeypatch):
        here, there = torch.ones(2), torch.ones(2, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(TypeError, match="cuda"):
            there.numpy()
        assert (there + 1).cpu().numpy().tolist() == [2, 2]


def test_a_gpu_that_is_not_there(tiny_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=r"device 'cuda': expected an NVIDIA GPU.*found none; use"):
        load_any_backbone(str(tiny_folder), device="cuda")


def test_a_device_that_cannot_be(tiny_folder: Path, task_file: Path) -> None:
    with pytest.raises(UsageError, match="device 'tpu': expected auto, cpu, cuda or cuda:1"):
        load_any_backbone(str(tiny_folder), device="tpu")
    with pytest.raises(UsageError, match="device"):
        checked(TuneSettings, {"task": str(task_file), "device": "tpu"}, where="tune")
