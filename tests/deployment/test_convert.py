"""`pidep convert`: PEFT and ONNX Runtime answer as pidep does, and import gives the expert back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached, find_sites
from pidep.adapters.places import peft_can
from pidep.deployment.convert import Converted, convert_runs
from pidep.deployment.release import release_bank
from pidep.deployment.settings import ConvertSettings
from pidep.errors import ExpertError, ParityError, UsageError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.export.recipe import load_recipe
from pidep.export.source import Source
from pidep.runtime.adapter_file import read_adapter_file, write_adapter_file
from pidep.runtime.answer import softmax
from pidep.runtime.bank import Bank
from pidep.tuning.import_peft import import_peft
from pidep.tuning.settings import ImportSettings
from tests.adapters.small_experts import make
from tests.cli.run import pidep
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK

TEXTS = ["the film was very good", "awful", "a very bad film", "great"]


def of_kind(backbone: Any, kind: str) -> Expert:
    """An expert of any kind, with random tensors."""
    if kind == "lora":
        return make_expert(backbone)
    sites = make(backbone.model, kind, seed=0)
    can = peft_can(backbone.model, list(sites), kind=kind)
    return replace(make_expert(backbone), kind=kind, sites=sites, scaling=1.0, peft=can)


def converted(expert: Expert, tmp_path: Path, **settings: Any) -> Converted:
    run = write_expert(expert, tmp_path / "experts" / expert.name)
    return convert_runs([run], ConvertSettings(**{"out": tmp_path / "out", **settings}))


def imported(place: Path, like: Expert, task: Path, tmp_path: Path) -> Expert:
    return import_peft(
        ImportSettings(folder=place, task=str(task), backbone=like.backbone, out=tmp_path / "back")
    )


def ours(backbone: Any, expert: Expert) -> Any:
    with attached(backbone.model, Mixture.of([expert])):
        return backbone.encode(TEXTS, max_length=12).numpy()


def scores(expert: Expert) -> Any:
    return expert.label_embeddings.T * np.float32(expert.logit_scale)


# To PEFT.


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_peft_answers_the_same_and_import_gives_the_expert_back(
    kind: str, tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    expert = of_kind(tiny, kind)
    converted(expert, tmp_path, to="peft")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors"}
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny.name), tmp_path / "out").eval()
    ids, mask = (torch.from_numpy(array) for array in tiny.tokenize(TEXTS, max_length=12))
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -ids.shape[1] :]
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    theirs = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    np.testing.assert_allclose(theirs, ours(tiny, expert), atol=1e-5)
    back = imported(tmp_path / "out", expert, task_file, tmp_path)
    assert back.tensors().keys() == expert.tensors().keys()
    for name, array in back.tensors().items():
        np.testing.assert_array_equal(array, expert.tensors()[name])
    assert (back.kind, back.scaling) == (expert.kind, expert.scaling)


@pytest.mark.parametrize("kind", ["adapter", "bitfit"])
def test_kinds_that_peft_does_not_have_are_refused(kind: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match=f"is of kind '{kind}', which PEFT does not have"):
        converted(of_kind(tiny, kind), tmp_path, to="peft")
    assert not (tmp_path / "out").exists()


def test_a_prefix_that_peft_cannot_run_is_refused(tiny: Any, tmp_path: Path) -> None:
    some = find_sites(tiny.model, kind="prefix")[:1]
    expert = of_kind(tiny, "prefix")
    partly = replace(expert, sites={site: expert.sites[site] for site in some}, peft=False)
    with pytest.raises(ExpertError, match=r"'film': acts at places of its backbone where PEFT"):
        converted(partly, tmp_path, to="peft")


def test_the_base_can_be_named(tiny: Any, tmp_path: Path) -> None:
    converted(make_expert(tiny), tmp_path, to="peft", base="org/encoder")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/encoder"


# To ONNX Runtime's adapters.


def logits(folder: Path, backbone: Any, adapter: Path | None) -> dict[str, Any]:
    """Both outputs, by onnxruntime alone."""
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), quiet)
    options, loaded = onnxruntime.RunOptions(), onnxruntime.LoraAdapter()
    if adapter is not None:
        loaded.Load(str(adapter))
        options.add_active_adapter(loaded)
    inputs = {
        name: tensor.numpy() for name, tensor in backbone.prepare(TEXTS, max_length=12).items()
    }
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs, options), strict=True))


@pytest.fixture(scope="module")
def two(tiny_loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Expert]]:
    """A graph of two experts: other sites, ranks, scalings and numbers of labels."""
    folder = tmp_path_factory.mktemp("two")
    film = make_expert(tiny_loaded, name="film", rank=2, scaling=0.7)
    book = make_expert(
        tiny_loaded, name="book", seed=1, rank=5, scaling=3.0, sites=("*layer.1*output.dense",)
    )
    more = tiny_loaded.encode(["good", "bad", "very"], max_length=8).numpy()
    labels = ("good", "bad", "very")
    book = replace(book, labels=labels, label_texts=labels, label_embeddings=more, logit_scale=5.0)
    runs = [write_expert(one, folder / one.name) for one in (film, book)]
    found = convert_runs(runs, ConvertSettings(to="onnx-adapter", out=folder / "out"))
    assert found.experts == {"film": film.digest, "book": book.digest}
    assert max(found.max_abs.values()) < 1e-4
    return folder / "out", [film, book]


def test_ort_answers_as_pidep_with_each_adapter(tiny: Any, two: tuple[Path, list[Expert]]) -> None:
    folder, experts = two
    for expert in experts:
        found = logits(folder, tiny, folder / f"{expert.name}.onnx_adapter")
        want = ours(tiny, expert)
        np.testing.assert_allclose(found["sentence_embedding"], want, atol=1e-5)
        np.testing.assert_allclose(found["logits"], want @ scores(expert), atol=1e-4)
        assert np.abs(want - tiny.encode(TEXTS, max_length=12).numpy()).max() > 1e-2


def test_without_an_adapter_it_is_the_bare_backbone(
    tiny: Any, two: tuple[Path, list[Expert]]
) -> None:
    found = logits(two[0], tiny, None)
    np.testing.assert_allclose(
        found["sentence_embedding"], tiny.encode(TEXTS, max_length=12).numpy(), atol=1e-5
    )
    assert found["logits"].shape == (len(TEXTS), 0)


def test_the_answers_are_those_of_the_bank(
    tiny_loaded: Any, two: tuple[Path, list[Expert]], tmp_path: Path
) -> None:
    folder, (film, _) = two
    sources = [Source(film, TASK, ROWS)]
    exported = release_bank(sources, tmp_path / "repo", load_recipe("onnx-cpu"))
    bank = Bank(exported.folder / "1")
    answers = bank.run(bank.build({"film": film}), TEXTS, ["film"] * len(TEXTS))
    found = logits(folder, tiny_loaded, folder / "film.onnx_adapter")["logits"]
    np.testing.assert_allclose(
        [answer.scores for answer in answers], softmax(found), atol=1e-5, rtol=0
    )


def test_the_graph_has_the_factors_as_optional_inputs(two: tuple[Path, list[Expert]]) -> None:
    folder, experts = two
    graph = onnx.load(folder / "model.onnx").graph
    defaults = {one.name for one in graph.initializer}
    optional = {one.name for one in graph.input} & defaults
    given = read_adapter_file(folder / "film.onnx_adapter")
    assert optional == given.keys()
    assert {one.name for one in graph.input} - optional == {"input_ids", "attention_mask"}
    site = sorted(experts[0].sites)[0]
    np.testing.assert_array_equal(
        given[f"{site}.lora_B.weight"], experts[0].sites[site]["lora_B"].T * np.float32(0.7)
    )


@pytest.mark.parametrize("kind", ["adapter", "bitfit", "prefix", "prompt"])
def test_other_kinds_are_refused(kind: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ExpertError, match=f"{kind!r}: an .onnx_adapter holds the factors of a LoRA"
    ):
        converted(of_kind(tiny, kind), tmp_path, to="onnx-adapter")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_answers_otherwise_is_not_written(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter whose scaling was lost."""
    from pidep.export import adapter_graph

    right = adapter_graph.adapter_tensors
    monkeypatch.setattr(
        adapter_graph, "adapter_tensors", lambda expert: right(replace(expert, scaling=1.0))
    )
    with pytest.raises(ParityError, match=r"'film': ONNX Runtime's logits differ from PyTorch's"):
        converted(make_expert(tiny), tmp_path, to="onnx-adapter")
    assert not (tmp_path / "out").exists()


def test_an_expert_without_effect_is_not_written(tiny: Any, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    still = {
        site: {**one, "lora_B": np.zeros_like(one["lora_B"])} for site, one in expert.sites.items()
    }
    with pytest.raises(ParityError, match=r"the expert changes them by 0"):
        converted(replace(expert, sites=still), tmp_path, to="onnx-adapter")


# Back in, also as Olive writes it.


@pytest.mark.parametrize("ending", [".onnx_adapter", ".safetensors", ".npz"])
def test_olives_files_are_taken_over(
    ending: str, tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    """The steps of `olive convert-adapters` 0.13: transposed, and B times the scaling."""
    from safetensors.numpy import save_file

    expert = make_expert(tiny)
    olive = {
        name: np.ascontiguousarray(array.T * np.float32(2.0 if "lora_B" in name else 1.0))
        for name, array in expert.tensors().items()
    }
    path = tmp_path / f"adapter_weights{ending}"
    if ending == ".npz":
        np.savez(path, **olive)
    elif ending == ".safetensors":
        save_file(olive, path)
    else:
        write_adapter_file(path, olive)
    back = imported(path, expert, task_file, tmp_path)
    assert back.provenance["imported_from"] == "olive"
    np.testing.assert_allclose(ours(tiny, back), ours(tiny, expert), atol=1e-6)


def test_what_pidep_wrote_comes_back(
    two: tuple[Path, list[Expert]], tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    back = imported(two[0] / "film.onnx_adapter", two[1][0], task_file, tmp_path)
    np.testing.assert_allclose(ours(tiny, back), ours(tiny, two[1][0]), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.lora_A.quant.weight", "is quantised to int4"),
        ("x.lora_magnitude_vector.weight", "belongs to DoRA"),
        ("x.dora_M.weight", "belongs to DoRA"),
        ("x.hada_w1_a.weight", "belongs to LoHa"),
        ("x.lora_A.default.weight", ".*keeps the scaling elsewhere"),
        ("x.bias", "is no factor of a LoRA"),
    ],
)
def test_what_olive_has_and_pidep_has_not_is_refused(
    name: str, message: str, tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    write_adapter_file(tmp_path / "a.onnx_adapter", {name: np.zeros((2, 2), np.float32)})
    with pytest.raises(ExpertError, match=f"tensor {name!r} {message}"):
        imported(tmp_path / "a.onnx_adapter", make_expert(tiny), task_file, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.onnx_adapter", b"no adapter at all", "not a file of ONNX Runtime's adapters"),
        ("a.onnx_adapter", b"\x00\x00\x00\x10TORT" + b"\xff" * 40, "truncated or damaged"),
        ("a.npz", b"PK no zip", "truncated or damaged"),
        ("a.safetensors", b"x", "truncated safetensors file"),
        ("a.pt", b"\x80", "expected .onnx_adapter, .safetensors or .npz"),
    ],
)
def test_damaged_files_are_one_line(
    name: str, content: bytes, message: str, tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExpertError, match=message):
        imported(tmp_path / name, make_expert(tiny), task_file, tmp_path)


# The command.


def test_the_command(tiny: Any, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    write_expert(expert, tmp_path / "film")
    arguments = ("convert", "film", "--to", "peft", "--out", "lora")
    done = pidep(*arguments, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == ["lora", "film", expert.digest]
    again = pidep(*arguments, cwd=tmp_path)
    assert again.code == 2
    assert "is not empty; choose another --out, or give --overwrite" in again.err
    assert pidep(*arguments, "--overwrite", cwd=tmp_path).code == 0
    (tmp_path / "lora" / "notes.txt").write_text("mine")
    foreign = pidep(*arguments, "--overwrite", cwd=tmp_path)
    assert foreign.code == 2
    assert "lora: holds notes.txt, which this command does not write" in foreign.err
    assert read_expert(tmp_path / "film").digest == expert.digest


def test_a_backbone_that_reads_images_is_refused(tiny: Any, tmp_path: Path) -> None:
    from pidep.backbones.load import remember_backbone
    from tests.conftest import tiny_mini

    mini = tiny_mini(tiny)
    remember_backbone(mini)
    with pytest.raises(ExpertError, match="reads images by a graph of its own"):
        converted(make_expert(mini), tmp_path, to="onnx-adapter")


def test_runs_that_do_not_fit_together(tiny: Any, tmp_path: Path) -> None:
    run = write_expert(make_expert(tiny), tmp_path / "film")
    other = write_expert(make_expert(tiny, name="book"), tmp_path / "book")
    with pytest.raises(UsageError, match="two experts have one name"):
        convert_runs([run, run], ConvertSettings(to="peft", out=tmp_path / "out"))
    with pytest.raises(UsageError, match="`to=peft`: takes one run, found 2"):
        convert_runs([run, other], ConvertSettings(to="peft", out=tmp_path / "out"))
