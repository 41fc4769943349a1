"""CLIP and SigLIP exported as two graphs: banks and merged models equal PyTorch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.artifacts import BankRecord, MergedRecord
from pidep.artifacts.names import BACKBONE
from pidep.deployment.release import release_bank
from pidep.errors import ImageError, ParityError, ServingError, UsageError
from pidep.experts.mixed import MixedExpert
from pidep.export import (
    Quantisation,
    Source,
    compile,
    export_merged,
    load_recipe,
    quantise,
    sensitivity,
)
from pidep.inputs.row import Row
from pidep.runtime import Answer, Bank, Merged
from pidep.tasks.data import Split
from tests.backbones.two_tower_models import save_two_towers
from tests.cli.run import contents, untouched
from tests.conftest import make_expert, png
from tests.export.two_towers import ROWS, TASK, TEXTS, expected, experts_of

pytestmark = pytest.mark.slow  # graphs are compiled

CPU = load_recipe("onnx-cpu")


class Exported:
    """A bank of one expert of each tower and kind."""

    def __init__(self, root: Path, model: str) -> None:
        from pidep.backbones.load import load_backbone

        self.backbone = load_backbone(str(save_two_towers(root / "model", model)))
        self.experts, self.repo = experts_of(self.backbone), root / "model_repo"
        sources = [
            # Texts alone for one of them: the gate asks about images all the same.
            Source(expert, TASK, TEXTS if name == "text" else Split(ROWS, [0, 1, 1, 0, 1, 0]))
            for name, expert in self.experts.items()
        ]
        self.exported = release_bank(sources, self.repo, CPU)
        self.version = self.exported.folder / "1"
        self.bank = Bank(self.version)
        self.residents = self.bank.build(self.experts)

    def answers(self, rows: Any, names: Any) -> list[Answer]:
        found = self.bank.run(self.residents, rows, names)
        assert all(isinstance(one, Answer) for one in found), found
        return found  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["CLIP", "SigLIP"])
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("towers"), request.param)


def test_texts_images_and_both_of_every_expert_in_one_batch_equal_pytorch(made: Exported) -> None:
    asked = [(row, name) for row in ROWS for name in [*made.experts, BACKBONE]]
    found = made.answers([row for row, _ in asked], [name for _, name in asked])
    for answer, (row, name) in zip(found, asked, strict=True):
        embedding, logits = expected(made.backbone, made.experts.get(name), row)
        np.testing.assert_allclose(answer.embedding, embedding, atol=2e-5)
        np.testing.assert_allclose(answer.logits, logits, atol=1e-4)


def test_rows_of_a_mixed_batch_are_rows_alone(made: Exported) -> None:
    names = ["both", "image", "text", BACKBONE, "prefix", "adapter"]
    together = made.answers(ROWS, names)
    for answer, row, name in zip(together, ROWS, names, strict=True):
        (alone,) = made.answers([row], [name])
        np.testing.assert_allclose(answer.embedding, alone.embedding, atol=1e-5)


def test_an_expert_acts_in_its_own_tower_only(made: Exported) -> None:
    rows = [ROWS[0], ROWS[1]]
    bare = [one.embedding for one in made.answers(rows, [BACKBONE] * 2)]
    for name, acts in (("image", [False, True]), ("text", [True, False])):
        own = [one.embedding for one in made.answers(rows, [name] * 2)]
        moved = np.abs(np.array(own) - np.array(bare)).max(1)
        assert (moved > 1e-3).tolist() == acts
    # A probe of texts alone would refuse the expert of the image tower.
    assert made.bank.probe(made.residents, list(made.experts)) == {}


def test_a_mixture_by_reference_spans_both_towers(made: Exported) -> None:
    first = made.experts["both"]
    other = replace(first, sites=make_expert(made.backbone, seed=9, rank=2).sites)
    parts, share = (first, other), np.array([0.7, 0.3], np.float32)
    head = replace(first, name="mixed", sites={})
    mixture = MixedExpert(head, parts, dict.fromkeys(first.sites, share))
    from pidep.adapters.mixture import attached, mixture_of

    residents = made.bank.build({"mixed": mixture, "both": parts[0]})
    found = made.bank.run(residents, ROWS, ["mixed", "both"] * 3)
    with attached(made.backbone.model, mixture_of(mixture)):
        want = made.backbone.encode(ROWS, max_length=12).numpy()
    for at in (0, 2, 4):
        answer = found[at]
        assert isinstance(answer, Answer)
        np.testing.assert_allclose(answer.embedding, want[at], atol=2e-5)


def test_the_record_says_what_both_graphs_are(made: Exported) -> None:
    record = BankRecord.read(made.version)
    assert record.towers is not None
    assert record.towers.padded_length == made.backbone.padded_length
    assert record.towers.preprocess == made.backbone.preprocess
    for group in record.groups:
        tower = "text_" if group.input.startswith("text_") else "image_"
        start = {"text_": ("text_model.", "text_proj"), "image_": ("vision_model.", "visual_")}
        assert all(site.startswith(start[tower]) for site in group.sites)
    files = {name.removeprefix("1/") for name in contents(made.exported.folder)}
    assert {"model.onnx", "image.onnx", "tokenizer.json", "bank.json", "model.py"} <= files
    assert 'name: "IMAGE"' in (made.exported.folder / "config.pbtxt").read_text()


def test_the_gate_has_figures_of_every_expert(made: Exported) -> None:
    for name, parity in made.exported.parity.items():
        assert 0 < parity.max_abs < 1e-4, name
        assert parity.effect is not None
        assert parity.effect > 100 * parity.max_abs


def test_a_merged_model_equals_pytorch(made: Exported, tmp_path: Path) -> None:
    for name in ("both", "prefix"):
        expert = made.experts[name]
        source = Source(expert, TASK, Split(ROWS, [0, 1, 1, 0, 1, 0]))
        exported = export_merged(source, tmp_path / "repo", CPU)
        found = Merged(exported.folder / "1").run(ROWS)
        for answer, row in zip(found, ROWS, strict=True):
            assert isinstance(answer, Answer)
            logits = expected(made.backbone, expert, row)[1]
            np.testing.assert_allclose(answer.logits, logits, atol=1e-4)
            assert (answer.labels, answer.digest) == (expert.labels, expert.digest)


def test_a_wrong_image_is_the_error_of_its_row(made: Exported) -> None:
    rows = ["a cat", Row("red", b"no image"), Row(image=png(0))]
    found = made.bank.run(made.residents, rows, ["both"] * 3)
    assert isinstance(found[1], ImageError)
    assert str(found[1]).startswith("row 2: expected PNG, JPEG")
    np.testing.assert_allclose(
        [found[at].embedding for at in (0, 2)],  # type: ignore[union-attr]
        [expected(made.backbone, made.experts["both"], rows[at])[0] for at in (0, 2)],
        atol=2e-5,
    )


def test_a_row_runs_its_own_tower_only(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for tower, graph in made.bank.graphs.items():

        def note(*arguments: Any, tower: str = tower, run: Any = graph.embeddings) -> Any:
            ran.append((tower, len(next(iter(arguments[0].values())))))
            return run(*arguments)

        monkeypatch.setattr(graph, "embeddings", note)
    made.answers(["a cat", "dog"], ["both", "text"])
    made.answers([Row(image=png(0))], ["both"])
    made.answers(["a cat", ROWS[2]], ["both", "both"])
    assert ran == [("text", 2), ("image", 1), ("text", 2), ("image", 1)]


def test_candidates_are_texts_and_images(made: Exported, tmp_path: Path) -> None:
    rows = [
        Row("a red cat", candidates=("a cat", Row(image=png(3)), "dog")),
        Row(image=png(1), candidates=("big dog", "film")),
    ]
    nothing = np.zeros((0, made.backbone.hidden_size), np.float32)
    chooser = replace(
        made.experts["both"], name="chooser", labels=(), label_texts=(), label_embeddings=nothing
    )
    exported = release_bank([Source(chooser, TASK, Split(rows, [0, 1]))], tmp_path / "repo", CPU)
    assert exported.parity["chooser"].argmax_flips == 0
    assert exported.parity["chooser"].rows == 2


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("form", ["bank", "merged"])
def test_a_wrong_image_tower_fails_the_gate_of_a_task_of_texts(
    made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import copy

    name = f"export_{form}_graph"
    right = getattr(compile, name)
    other = copy.deepcopy(made.backbone.model)
    with torch.no_grad():
        other.vision_model.post_layernorm.weight[0] += 0.5

    def wrong(backbone: Any, *arguments: Any, tower: str, **more: Any) -> None:
        chosen = backbone.around(other) if tower == "image" else backbone
        right(chosen, *arguments, tower=tower, **more)

    monkeypatch.setattr(compile, name, wrong)
    source = Source(made.experts["text"], TASK, TEXTS)
    repo = tmp_path / "repo"
    repo.mkdir()
    publish = {"bank": lambda: release_bank([source], repo, CPU)}
    publish["merged"] = lambda: export_merged(source, repo, CPU)
    fault = "'text': max abs error of an image is"
    with untouched(tmp_path), pytest.raises(ParityError, match=fault):
        publish[form]()


@pytest.mark.parametrize(
    ("recipe", "form"), [("onnx-cpu-int8", "merged"), ("onnx-cuda-fp16", "bank")]
)
def test_other_precisions(made: Exported, tmp_path: Path, recipe: str, form: str) -> None:
    chosen = load_recipe(recipe)
    if chosen.precision == "int8":
        how = Quantisation(min_features=8)
        chosen = chosen.model_copy(update={"quantisation": how})
    expert = made.experts["both"]
    source = Source(expert, TASK, Split(ROWS, [0, 1, 1, 0, 1, 0]))
    if form == "bank":
        folder = release_bank([source], tmp_path / "repo", chosen).folder / "1"
        bank = Bank(folder)
        found = bank.run(bank.build({"both": expert}), ROWS, ["both"] * len(ROWS))
        record: Any = bank.record
    else:
        merged = Merged(export_merged(source, tmp_path / "repo", chosen).folder / "1")
        found, record = merged.run(ROWS), merged.record
    assert (record.quantised_products is not None) == (chosen.precision == "int8")
    worst = max(
        np.abs(answer.logits - expected(made.backbone, expert, row)[1]).max()  # type: ignore[union-attr]
        for answer, row in zip(found, ROWS, strict=True)
    )
    assert 1e-6 < worst < chosen.tolerance.max_abs


@pytest.mark.parametrize("form", ["merged", "bank"])
def test_int8_by_measurement(
    made: Exported, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tower's products are measured on what that tower reads."""
    monkeypatch.setattr(sensitivity, "cache_folder", lambda: tmp_path / "cache")
    errors: list[dict[str, float]] = []
    measure = quantise.product_errors
    monkeypatch.setattr(
        quantise, "product_errors", lambda *given: errors.append(measure(*given)) or errors[-1]
    )
    how = Quantisation(min_features=8, max_product_error=10.0)
    recipe = load_recipe("onnx-cpu-int8").model_copy(update={"quantisation": how})
    rows = Split(ROWS, [0, 1, 1, 0, 1, 0])
    source = Source(made.experts["both"], TASK, rows, calibration=[Row(image=png(0))])
    if form == "bank":
        folder = release_bank([source], tmp_path / "repo", recipe).folder
        record: Any = BankRecord.read(folder / "1")
    else:
        folder = export_merged(source, tmp_path / "repo", recipe).folder
        record = MergedRecord.read(folder / "1")
    assert len(errors) == 2
    assert record.quantised_products == sum(map(len, errors))
    assert all(error > 0 for tower in errors for error in tower.values())
    blind = replace(source, calibration=["a red cat"])
    with pytest.raises(UsageError, match=r"image\.onnx: .* has none for this graph"):
        export_merged(blind, tmp_path / "blind", recipe)


def test_what_only_one_graph_can_have_is_refused(made: Exported, tmp_path: Path) -> None:
    source = Source(made.experts["both"], TASK, TEXTS)
    for recipe, platform, message in (
        ("onnx-cpu", "onnxruntime", r"`platform=onnxruntime`: .* has two towers"),
        ("tensorrt-rtx-fp16", "python", "compiles one graph, and backbone .* has two towers"),
    ):
        with pytest.raises(UsageError, match=message):
            export_merged(source, tmp_path / "repo", load_recipe(recipe), platform=platform)  # type: ignore[arg-type]
    assert not (tmp_path / "repo").exists()


def test_another_image_graph_or_preprocessing_is_refused(made: Exported, tmp_path: Path) -> None:
    version = tmp_path / "1"
    shutil.copytree(made.version, version)
    (version / "image.onnx").write_bytes((version / "model.onnx").read_bytes())
    with pytest.raises(ServingError, match=r"image\.onnx: digest .*, expected"):
        Bank(version)
    values = json.loads((version / "bank.json").read_text())
    values["towers"]["preprocess"]["size"] = 16
    del values["entry_digest"], values["files"]
    (version / "bank.json").write_text(json.dumps(values))
    with pytest.raises(ServingError, match="image preprocessing differs from training"):
        Bank(version)


def test_a_merged_model_without_its_labels_is_refused(made: Exported, tmp_path: Path) -> None:
    source = Source(made.experts["both"], TASK, TEXTS)
    version = export_merged(source, tmp_path / "repo", CPU).folder / "1"
    (version / "labels.safetensors").unlink()
    with pytest.raises(ServingError, match=r"labels\.safetensors: no such file"):
        Merged(version)


def test_a_bank_takes_no_prompt_of_two_towers(made: Exported, tmp_path: Path) -> None:
    from pidep.errors import ExpertError
    from tests.export.two_towers import drawn

    prompt = replace(made.experts["both"], kind="prompt", sites=drawn(made.backbone, "prompt"))
    with pytest.raises(ExpertError, match="takes no position ids"):
        release_bank([Source(prompt, TASK, TEXTS)], tmp_path / "repo", CPU)


def test_experts_of_another_checkpoint_are_refused(made: Exported, tmp_path: Path) -> None:
    from pidep.backbones.load import load_backbone
    from pidep.errors import ExpertError

    other = load_backbone(str(save_two_towers(tmp_path / "other", layer_norm_eps=1e-3)))
    with pytest.raises(ExpertError, match="made for another backbone"):
        made.bank.build({"other": make_expert(other, name="other")})
