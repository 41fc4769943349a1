"""Whole runs on a tiny backbone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import attached, mixture_of
from pidep.errors import ExpertError, TaskError, UsageError
from pidep.experts.folder import read_expert
from pidep.experts.mixed import MixedExpert
from pidep.experts.mixture_folder import read_served, write_mixture
from pidep.experts.resolve import resolve_expert_folder, resolve_served_folder
from pidep.interpolation.guard import guard
from pidep.settings import checked, read_settings
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.measures import similarity
from pidep.tasks.memory import write_task
from pidep.tasks.task import Task
from pidep.tuning import tune as tuning
from pidep.tuning.run_folder import run_task
from pidep.tuning.settings import TuneSettings
from tests.conftest import make_expert
from tests.serving.experts import small_expert

TINY = {
    "steps": 6,
    "batch_size": 8,
    "eval_every": 2,
    "mixture_steps": 3,
    "rank": 2,
    "fisher_samples": 8,
}


def run(tiny_folder: Path, task_file: Path, out: Path, **more: object) -> tuning.TuneResult:
    settings = checked(
        TuneSettings,
        {**TINY, "task": str(task_file), "backbone": str(tiny_folder), **more},
        where="tune",
    )
    return tuning.tune(settings, out, resume=bool(more.get("_", False)))


def test_a_run_with_neighbours(tiny_folder: Path, task_file: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for name in ("one", "two"):
        run(tiny_folder, task_file, tmp_path / name, name=name, pool=pool)
    result = run(
        tiny_folder, task_file, tmp_path / "run", name="target", pool=pool, shots=4, top_k=2
    )
    assert set(result.metrics) == {"majority", "probe", "backbone", "own_expert", "uniform", "pi"}
    assert [near.name for near in result.neighbours] == ["one", "two"]
    assert not (pool / "target").exists()
    # So that an expert of a pool can be exported by its name alone.
    task = run_task(pool / "one")
    assert task is not None
    assert task == run_task(tmp_path / "one")
    expert = read_expert(tmp_path / "run" / "expert")
    assert expert.rank == 8  # own expert, own expert in context, helpers one and two
    alpha = json.loads((tmp_path / "run" / "alpha.json").read_text())
    assert alpha["experts"] == ["target", "target (in context)", "one", "two"]
    decision = expert.provenance["decision"]
    assert decision["chosen"] == "mixture"
    assert decision["rows"] == 8
    assert sum(decision["weights"].values()) == pytest.approx(1, abs=1e-3)
    assert np.allclose([sum(weights) for weights in alpha["sites"].values()], 1)
    by_reference = read_served(resolve_served_folder(tmp_path / "run"))
    assert isinstance(by_reference, MixedExpert)
    assert by_reference.digest == result.digest
    assert dict(by_reference.alphas) == {
        site: tuple(weights) for site, weights in alpha["sites"].items()
    }
    # What training left alone is the expert itself, so a bank stores it once.
    own, in_context, *helpers = by_reference.parts
    assert own.digest == read_expert(tmp_path / "run" / "own").digest
    # Helpers one and two were trained alike: one digest, kept once, under one of the two names.
    assert [own.name, in_context.name] == ["target", "target-part-1"]
    assert {part.name for part in helpers} <= {"one", "two"}
    assert in_context.digest not in (own.digest, *(one.digest for one in helpers))
    assert [one.digest for one in helpers] == [
        read_expert(pool / name).digest for name in ("one", "two")
    ]


def test_a_run_that_mixes_nothing_removes_the_mixture_of_an_earlier_one(
    tiny_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    write_mixture(
        MixedExpert(
            replace(small_expert(), sites={}), (small_expert(),) * 2, {"layer.0": (0.5, 0.5)}
        ),
        tmp_path / "run" / "mixture",
    )
    run(tiny_folder, task_file, tmp_path / "run")
    assert not (tmp_path / "run" / "mixture").exists()


@pytest.mark.parametrize("high_rate", [True, False])
def test_few_shots_without_neighbours_are_trained_at_the_rate_that_folds_choose(
    tiny_folder: Path,
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    high_rate: bool,
) -> None:
    better = "own_expert_high_rate" if high_rate else "own_expert"
    monkeypatch.setattr(
        "pidep.interpolation.auto.guard",
        lambda losses, *more, **options: guard(
            losses | {better: losses[better] * 0}, *more, **options
        ),
    )
    result = run(tiny_folder, task_file, tmp_path / "run", shots=16)
    own, expert = (read_expert(tmp_path / "run" / name) for name in ("own", "expert"))
    assert set(result.metrics) == {"majority", "probe", "backbone", "own_expert"} | (
        {"own_tuned"} if high_rate else set()
    )
    assert expert.provenance["decision"]["chosen"] == better
    assert expert.provenance["decision"]["rows"] == 32
    assert (expert.digest != own.digest) == high_rate
    moved = [
        sum(np.abs(tensors["lora_B"]).sum() for tensors in one.sites.values())
        for one in (own, expert)
    ]
    assert (moved[1] > 2 * moved[0]) == high_rate
    once = run(tiny_folder, task_file, tmp_path / "once", shots=16, policy="free")
    assert once.digest == own.digest


def test_the_same_seed_gives_the_same_expert(
    tiny_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    first, second = (run(tiny_folder, task_file, tmp_path / name) for name in "ab")
    assert first.digest == second.digest
    assert run(tiny_folder, task_file, tmp_path / "c", seed=1).digest != first.digest


def test_resume_is_as_if_never_stopped(tiny_folder: Path, task_file: Path, tmp_path: Path) -> None:
    whole = run(tiny_folder, task_file, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(phase: str, step: int, total: int, loss: float) -> None:
        if step == 5:
            raise Stopped

    settings = checked(
        TuneSettings, {**TINY, "task": str(task_file), "backbone": str(tiny_folder)}, where="tune"
    )
    with pytest.raises(Stopped):
        tuning.tune(settings, tmp_path / "cut", on_step=stop)
    steps: list[int] = []
    resumed = tuning.tune(
        settings,
        tmp_path / "cut",
        resume=True,
        on_step=lambda phase, step, total, loss: steps.append(step),
    )
    assert steps == [5, 6]
    assert resumed.digest == whole.digest
    other = settings.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(UsageError, match=r"with other settings \(learning_rate\) would replace"):
        tuning.tune(other, tmp_path / "cut", resume=True)
    with pytest.raises(UsageError, match="another task, data or setting"):
        tuning.tune(other, tmp_path / "cut", resume=True, overwrite=True)


def test_an_expert_of_another_backbone_is_refused(
    tiny_folder: Path, tiny, task_file: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from pidep.experts.folder import write_expert

    stranger = replace(make_expert(tiny), backbone_digest="sha256:1")
    write_expert(stranger, tmp_path / "pool" / "stranger", fisher={"x": np.ones(1, np.float32)})
    with pytest.raises(ExpertError, match="expert of another backbone"):
        run(tiny_folder, task_file, tmp_path / "run", pool=tmp_path / "pool")
    assert not (tmp_path / "run" / "expert").exists()


def test_unknown_setting_has_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "tune.yaml"
    path.write_text("task: sentiment/movie\nlerning_rate: 1\n")
    with pytest.raises(
        UsageError,
        match=r"tune\.yaml: unknown key 'lerning_rate' \(did you mean 'learning_rate'\?\)",
    ):
        read_settings(TuneSettings, path, {}, where="tune")
    with pytest.raises(UsageError, match=r"tune: `rank`: expected at least 1, found 0"):
        checked(TuneSettings, {"task": "x", "rank": 0}, where="tune")


def test_fisher_is_the_mean_of_squared_single_gradients(tiny) -> None:
    from pidep.adapters.mixture import Mixture, attached
    from pidep.training.scorer import Scorer

    expert = make_expert(tiny)
    texts, labels = ["the film was good", "awful", "bad bad film", "a great"], [1, 0, 0, 1]
    found = diagonal_fisher(tiny, expert, texts, labels, batch_size=3)
    mixture = Mixture.of([expert])
    scorer = Scorer(tiny, torch.from_numpy(expert.label_embeddings), 20.0, 12)
    total = {name: torch.zeros_like(site.a) for name, site in mixture.by_name()}
    with attached(tiny.model, mixture):
        for text, label in zip(texts, labels, strict=True):
            loss = torch.nn.functional.cross_entropy(scorer.logits([text]), torch.tensor([label]))
            for name, site in mixture.by_name():
                (gradient,) = torch.autograd.grad(loss, [site.a], retain_graph=True)
                total[name] += gradient.square() / len(texts)
    for name, value in total.items():
        np.testing.assert_allclose(found[f"{name}.lora_A"], value.numpy(), rtol=1e-3, atol=1e-7)


def test_similarity_is_one_for_itself_and_symmetric() -> None:
    rng = np.random.default_rng(0)
    left, right = ({"x": rng.exponential(size=(3, 4)).astype(np.float32)} for _ in range(2))
    assert similarity(left, left) == pytest.approx(1)
    assert similarity(left, right) == pytest.approx(similarity(right, left))
    assert similarity(left, right) < 1


@pytest.mark.parametrize("kind", ["lora", "adapter", "prefix", "prompt", "bitfit"])
def test_every_kind_is_tuned_and_mixed(
    tiny: Any, tiny_folder: Path, task_file: Path, tmp_path: Path, kind: str
) -> None:
    run(tiny_folder, task_file, tmp_path / "one", name="one", pool=tmp_path / "pool", kind=kind)
    result = run(
        tiny_folder,
        task_file,
        tmp_path / "run",
        name="target",
        pool=tmp_path / "pool",
        kind=kind,
        shots=4,
    )
    assert set(result.metrics) == {"majority", "probe", "backbone", "own_expert", "uniform", "pi"}
    assert read_expert(tmp_path / "run" / "expert").kind == kind
    in_peft = (tmp_path / "run" / "own" / "adapter_model.safetensors").is_file()
    assert in_peft == (kind in ("lora", "prefix", "prompt"))
    folded, served = (
        read_served(find(tmp_path / "run"))
        for find in (resolve_expert_folder, resolve_served_folder)
    )
    # Prompts and offsets are averaged, and the average is no larger than a part.
    assert isinstance(served, MixedExpert) == (kind in ("lora", "adapter", "prefix"))
    found = []
    for one in (folded, served):
        with torch.no_grad(), attached(tiny.model, mixture_of(one)):
            found.append(tiny.encode(["a very good film", "bad"], max_length=8))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_rslora_is_written_as_such(tiny_folder: Path, task_file: Path, tmp_path: Path) -> None:
    run(tiny_folder, task_file, tmp_path / "run", rank_stabilized=True, rank=4, lora_alpha=8.0)
    config = json.loads((tmp_path / "run" / "own" / "adapter_config.json").read_text())
    assert config["use_rslora"] is True
    assert config["lora_alpha"] == pytest.approx(8.0)
    assert read_expert(tmp_path / "run" / "own").scaling == pytest.approx(8.0 / 2)


def test_a_run_says_how_many_texts_are_cut_and_keeps_the_counts(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"text": "very " * (number % 10 + 1), "label": ["bad", "good"][number % 2], "n": number}
        for number in range(40)
    ]
    table = [{**row, "text": f"{row['text']}{row['n']}"} for row in rows]
    task = write_task(Task.from_rows(table, max_length=8, name="cut"), tmp_path)
    result = run(tiny_folder, task, tmp_path / "run")
    assert result.cut_texts is not None
    # [CLS], one to ten times "very", an unknown word and [SEP]: 4 to 13 tokens.
    facts = (result.cut_texts.texts, result.cut_texts.cut, result.cut_texts.fitting)
    assert facts == (40, 20, 13)
    sentence = "task 'cut': 20 of 40 texts (50 %) are cut at 8 tokens; max_length 13 cuts none"
    assert sentence in caplog.text
    files = [
        json.loads((result.run / name).read_text()) for name in ("result.json", "provenance.json")
    ]
    assert [file["cut_texts"]["cut"] for file in files] == [20, 20]
    caplog.clear()
    assert run(tiny_folder, task, tmp_path / "long", max_length=13).cut_texts.cut == 0
    assert "are cut" not in caplog.text


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"note {number}", "label": "xy"[number % 2]} for number in range(20)]
    labels = {"x": "Good film", "y": "good FILM"}
    task = write_task(Task.from_rows(rows, labels=labels, name="twins"), tmp_path)
    with pytest.raises(TaskError, match="labels 'x' and 'y' have the same tokens"):
        run(tiny_folder, task, tmp_path / "run")
