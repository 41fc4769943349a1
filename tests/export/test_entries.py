"""Export: Triton Server's configuration, parity figures, graphs equal to PyTorch, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.artifacts import BankRecord, MergedRecord
from pidep.deployment.release import release_bank
from pidep.errors import ExpertError, ParityError, PidepError, UsageError
from pidep.export import (
    Exported,
    Parity,
    Quantisation,
    Recipe,
    Source,
    Tolerance,
    entries,
    export_merged,
    load_recipe,
    read_source,
    recipes,
)
from pidep.export.parity import check_effect, check_parity, measure_parity
from pidep.export.recipe import shipped
from pidep.files.digest import file_digest
from pidep.inputs.row import Row
from pidep.runtime import Bank, Merged
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from pidep.tuning.run_folder import run_task
from tests.adapters.test_bank import experts_of
from tests.cli.run import contents, untouched, write_run
from tests.conftest import make_expert, save_tiny

pytestmark = pytest.mark.slow  # graphs are compiled

TASK = Task.model_validate(
    {
        "name": "film",
        "labels": {"negative": "negative", "positive": "positive"},
        "data": {"path": "unused.jsonl"},
    }
)
ROWS = Split(
    ["the film was good", "awful", "a very bad film was the great film", "great film", "a the"],
    [1, 0, 0, 1, 1],
)
CHOICES = Split(
    [
        Row("the film was good", candidates=("good", "bad")),
        Row("awful", candidates=("very good film", "bad", "awful")),
    ],
    [0, 2],
)
GOLDEN = Path(__file__).parent / "golden"


def parsed(text: str) -> Any:
    """`config.pbtxt` as Triton Server parses it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def torch_scores(backbone: Any, expert: Any, texts: list[str], *, bare: bool = False) -> np.ndarray:
    """`[N, C]` probabilities of PyTorch with the expert attached."""
    from pidep.adapters.mixture import Mixture, attached

    with attached(backbone.model, None if bare else Mixture.of([expert])):
        embeddings = backbone.encode(texts, max_length=expert.max_length)
    return torch.softmax(
        expert.logit_scale * embeddings @ torch.from_numpy(expert.label_embeddings).T, 1
    ).numpy()


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Any:
    from pidep.backbones.load import load_backbone

    return load_backbone(str(tiny_folder))


@pytest.fixture(scope="module")
def bank(
    backbone: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Exported, dict[str, Any]]:
    """A bank with two experts of different ranks and sites."""
    repo = tmp_path_factory.mktemp("bank") / "model_repo"
    experts = {
        "film": make_expert(backbone, sites=["encoder.layer.0.*query"]),
        "book": make_expert(
            backbone, name="book", seed=1, rank=3, sites=["encoder.layer.1.*query"]
        ),
    }
    # One of another kind: both kinds share the graph and the batches of the gate.
    prompt = experts_of(backbone.model, "prompt")[0]
    experts["ending"] = replace(
        make_expert(backbone, name="ending"), kind="prompt", sites=prompt.sites, scaling=1.0
    )
    sources = [Source(expert, TASK, ROWS) for expert in experts.values()]
    chooser = replace(
        make_expert(backbone, name="chooser", seed=2, sites=["encoder.layer.1.*query"]),
        labels=(),
        label_texts=(),
        label_embeddings=np.zeros((0, backbone.hidden_size), np.float32),
    )
    sources.append(Source(chooser, TASK, CHOICES))
    recipe = load_recipe("onnx-cpu")
    exported = release_bank(sources, repo, recipe)
    return exported, {**experts, "chooser": chooser}


# The bank.


def golden(name: str) -> Any:
    """The expected configuration."""
    return parsed((GOLDEN / name).read_text())


def test_the_banks_configuration_is_golden(bank: Any) -> None:
    assert parsed((bank[0].folder / "config.pbtxt").read_text()) == golden("bank.pbtxt")


def test_the_entry_is_whole_and_nothing_lies_beside_it(bank: Any) -> None:
    files = {"1", "1/__pycache__", "1/bank.json", "1/model.onnx", "1/model.py"} | {
        "1/tokenizer.json",
        "config.pbtxt",
    }
    assert set(contents(bank[0].folder)) == files
    assert [path.name for path in bank[0].folder.parent.iterdir()] == ["pidep_bank"]


def test_the_record_says_what_was_compiled(bank: Any, backbone: Any) -> None:
    exported, experts = bank
    record = BankRecord.read(exported.folder / "1")
    assert record.graph_digest == file_digest(exported.folder / "1" / "model.onnx")
    assert (record.backbone_digest, record.max_rank) == (backbone.digest, 3)
    sites = {site for one in experts.values() for site in one.sites}
    assert {site for group in record.groups for site in group.sites} == sites
    assert exported.experts == {name: expert.digest for name, expert in experts.items()}


def test_parity_is_recorded_for_every_expert(bank: Any) -> None:
    exported, _ = bank
    assert BankRecord.read(exported.folder / "1").parity == exported.parity
    rows = dict.fromkeys(("film", "book", "ending"), len(ROWS.rows))
    rows["chooser"] = len(CHOICES.rows)
    assert {name: parity.rows for name, parity in exported.parity.items()} == rows
    for parity in exported.parity.values():
        assert parity.argmax_flips == 0
        assert 0 < parity.max_abs < 1e-4
        assert parity.effect is not None
        assert parity.effect > 10 * parity.max_abs
        assert parity.metric_torch == parity.metric_exported


def test_the_gate_runs_on_the_files_that_are_published(
    backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right graph beside a wrong tokenizer fails the gate."""
    right = entries.export_bank_graph

    def beside_a_wrong_tokenizer(*arguments: Any, **more: Any) -> None:
        right(*arguments, **more)
        path = tmp_path / "repo" / next((tmp_path / "repo").iterdir()) / "1" / "tokenizer.json"
        words = path.read_text().replace('"good"', '"GOOD"').replace('"bad"', '"good"')
        path.write_text(words.replace('"GOOD"', '"bad"'))

    monkeypatch.setattr(entries, "export_bank_graph", beside_a_wrong_tokenizer)
    source = Source(make_expert(backbone, sites=["*query"]), TASK, ROWS)
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path), pytest.raises(ParityError, match=r"parity of 'film': max abs error"):
        release_bank([source], tmp_path / "repo", load_recipe("onnx-cpu"))


def test_the_bank_equals_pytorch(bank: Any, backbone: Any) -> None:
    exported, experts = bank
    compiled = Bank(exported.folder / "1")
    residents = compiled.build(experts)
    for name, expert in experts.items():
        if name == "chooser":
            continue
        answers = compiled.run(residents, ROWS.rows, [name] * len(ROWS.rows))
        found = [answer.scores for answer in answers]
        np.testing.assert_allclose(
            found, torch_scores(backbone, expert, ROWS.rows), atol=1e-5, rtol=0
        )


# Merged models.


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A backbone of one layer. The time of an export is in its layers, and every kind acts on each
    of them alike.
    """
    from pidep.backbones.load import load_backbone

    return load_backbone(str(save_tiny(tmp_path_factory.mktemp("shallow"), num_layers=1)))


def noisy(backbone: Any, kind: str) -> Any:
    """An expert of a kind that clearly changes the output."""
    from pidep.adapters.mixture import Mixture, find_sites, fresh

    if kind == "prefixes side by side":
        drawn = noisy(backbone, "prefix")
        other = {
            site: {name: -array for name, array in tensors.items()}
            for site, tensors in drawn.sites.items()
        }
        return replace(
            drawn,
            name="beside",
            sites=Mixture([drawn.sites, other], [1.0] * 2, kind="prefix", on_outputs=True).folded(),
        )
    rng = np.random.default_rng(7)
    start = fresh(backbone.model, find_sites(backbone.model, kind=kind), kind=kind, rank=3)
    sites = {
        site: {
            name: (array + rng.normal(0, 0.3, array.shape)).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in start.items()
    }
    return replace(
        make_expert(backbone, name=kind),
        kind=kind,
        sites=sites,
        scaling=2.0 if kind == "lora" else 1.0,
    )


@pytest.mark.parametrize(
    ("kind", "platform"),
    [
        ("lora", "onnxruntime"),
        *(
            (kind, "python")
            for kind in ("adapter", "prefix", "prompt", "bitfit", "prefixes side by side")
        ),
    ],
)
def test_a_merged_model_equals_pytorch(
    shallow: Any, tmp_path: Path, kind: str, platform: Any
) -> None:
    backbone, expert = shallow, noisy(shallow, kind)
    exported = export_merged(
        Source(expert, TASK, ROWS),
        tmp_path / "repo",
        load_recipe("onnx-cpu"),
        platform=platform,
    )
    want = torch_scores(backbone, expert, ROWS.rows)
    assert np.abs(want - torch_scores(backbone, expert, ROWS.rows, bare=True)).max() > 1e-3, (
        "the expert does nothing"
    )
    merged = Merged(exported.folder / "1")
    together = [answer.scores for answer in merged.run(ROWS.rows)]
    alone = [merged.run([row])[0].scores for row in ROWS.rows]
    np.testing.assert_allclose(together, want, atol=1e-5, rtol=0)
    np.testing.assert_allclose(alone, want, atol=1e-5, rtol=0)
    assert merged.digest == expert.digest
    config = golden(f"merged-{platform}.pbtxt")
    config.name = expert.name
    assert parsed((exported.folder / "config.pbtxt").read_text()) == config
    assert (exported.folder / "1" / "model.py").exists() == (platform == "python")
    assert MergedRecord.read(exported.folder / "1").parity == exported.parity[expert.name]


# The gate.


def strict(recipe: Recipe) -> Recipe:
    return recipe.model_copy(
        update={"tolerance": recipe.tolerance.model_copy(update={"max_abs": 1e-12})}
    )


def test_a_merged_model_beyond_tolerance_is_not_published(shallow: Any, tmp_path: Path) -> None:
    older = tmp_path / "repo" / "film" / "1"
    older.mkdir(parents=True)
    (older / "model.onnx").write_bytes(b"the older one")
    source = Source(make_expert(shallow, sites=["*query"]), TASK, ROWS)
    with (
        untouched(tmp_path),
        pytest.raises(
            ParityError, match=r"parity of 'film': max abs error is .*, the recipe allows 1e-12"
        ),
    ):
        export_merged(source, tmp_path / "repo", strict(load_recipe("onnx-cpu")))


def test_figures_of_the_gate() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    exported = reference + np.array([[0.0, 0.0], [2.5, 0.0], [0.0, -0.25], [0.0, 0.0]])
    found = measure_parity(reference, exported, labels=[0, 1, 0, 0], metric="accuracy")
    assert found == Parity(
        rows=4,
        max_abs=2.5,
        max_relative=2500.0,
        argmax_flips=1,
        metric="accuracy",
        metric_torch=0.75,
        metric_exported=0.5,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"max_abs": 2e-3},
            r"parity of 'film': max abs error is 0\.002, the recipe allows 0\.001; nothing was "
            r"published",
        ),
        ({"argmax_flips": 1}, r"argmax flips is 1, the recipe allows 0"),
        ({"metric_exported": 0.8}, r"loss of accuracy is 0\.1, the recipe allows 0"),
    ],
)
def test_the_gate_names_the_bound_that_broke(change: dict[str, Any], message: str) -> None:
    tolerance = Tolerance(max_abs=1e-3, argmax_flips=0, metric_drop=0.0)
    good = Parity(
        rows=8,
        max_abs=1e-3,
        max_relative=1.0,
        argmax_flips=0,
        metric="accuracy",
        metric_torch=0.9,
        metric_exported=0.9,
    )
    check_parity("film", good, tolerance)
    check_parity("film", good.model_copy(update={"metric_exported": 1.0}), tolerance)
    with pytest.raises(ParityError, match=message):
        check_parity("film", good.model_copy(update=change), tolerance)


def test_an_error_near_the_effect_is_refused() -> None:
    figures = Parity(
        rows=4,
        max_abs=0.5,
        max_relative=0.1,
        argmax_flips=0,
        metric="accuracy",
        metric_torch=1.0,
        metric_exported=1.0,
        effect=2.0,
    )
    check_effect("film", figures)
    with pytest.raises(
        ParityError, match=r"'film': the graph's error of 0\.5 is over half of what"
    ):
        check_effect("film", figures.model_copy(update={"effect": 0.9}))


@pytest.mark.parametrize("release", [release_bank, export_merged])
def test_an_expert_that_changes_nothing_is_refused(
    backbone: Any, tmp_path: Path, release: Any
) -> None:
    """As an adapter that is loaded, listed, and answers as the bare backbone."""
    idle = make_expert(backbone, sites=["*query"])
    sites = {
        site: {**tensors, "lora_B": np.zeros_like(tensors["lora_B"])}
        for site, tensors in idle.sites.items()
    }
    source = Source(replace(idle, sites=sites), TASK, ROWS)
    given = [source] if release is release_bank else source
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path):
        with pytest.raises(ParityError, match="expert 'film': changes no logit of 5 rows"):
            release(given, tmp_path / "repo", load_recipe("onnx-cpu"))


def test_a_graph_that_leaves_an_expert_unbound_is_refused(
    backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank whose rows read zeros answers as the bare backbone, without any error."""
    monkeypatch.setattr("pidep.runtime.bank.fill_row", lambda *_: None)
    # An expert so small that the recipe's bound alone would let it pass.
    small = make_expert(backbone, sites=["encoder.layer.1.*query"], scaling=0.05)
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path):
        with pytest.raises(ParityError, match=r"the graph's error of .* is over half of what"):
            release_bank([Source(small, TASK, ROWS)], tmp_path / "repo", load_recipe("onnx-cpu"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_graph_that_gives_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ParityError, match="NaN or Inf on real rows; nothing was published"):
        measure_parity(np.zeros((1, 2)), np.array([[0.0, bad]]), labels=[0], metric="accuracy")


@pytest.mark.parametrize("form", ["bank", "merged"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_embeddings": np.eye(2, 5, dtype=np.float32)}, "have width 5, the backbone's have"),
        ({"max_length": 100_000}, "max_length is 100000, the backbone reads at most 32 tokens"),
        ({"labels": (0, 1)}, "label 0 is a int, expected a text"),
        ({"logit_scale": float("nan")}, "logit_scale is nan"),
    ],
)
def test_an_expert_that_cannot_answer_is_refused_before_anything_is_compiled(
    backbone: Any, tmp_path: Path, form: str, change: dict[str, Any], message: str
) -> None:
    source = Source(replace(make_expert(backbone), **change), TASK, ROWS)
    given: Any = source if form == "merged" else [source]
    export = export_merged if form == "merged" else release_bank
    with pytest.raises(ExpertError, match=message):
        export(given, tmp_path / "repo", load_recipe("onnx-cpu"))
    assert not list(tmp_path.iterdir())


# Sources and recipes.


def test_a_run_is_exported_from_any_folder(
    backbone: Any, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task_file.parent)
    run = write_run(Path("run").absolute(), make_expert(backbone), Path("film.yaml"))
    (task_file.parent / "elsewhere").mkdir()
    monkeypatch.chdir(task_file.parent / "elsewhere")
    assert len(read_source(run, rows=4, task=run_task(run)).rows.rows) == 4


def test_every_shipped_recipe_has_the_name_of_its_file() -> None:
    names = sorted(path.stem for path in shipped("export").glob("*.yaml"))
    assert [recipe.name for recipe in recipes()] == names == ["onnx-cpu", "onnx-cpu-int8"]
    assert all(recipe.summary for recipe in recipes())


def test_quantisation_is_for_int8(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = shipped("export/onnx-cpu-int8.yaml").read_text()
    path.write_text(text.replace("precision: int8", "precision: fp32"))
    with pytest.raises(UsageError, match=r"quantisation is for precision int8, not fp32"):
        load_recipe(str(path))


def int8_recipe(**changes: Any) -> Recipe:
    """The shipped recipe for matrices as small as the tiny backbone's."""
    how = Quantisation(min_features=8)
    return load_recipe("onnx-cpu-int8").model_copy(update={"quantisation": how, **changes})


@pytest.mark.parametrize("form", ["bank", "merged"])
def test_a_graph_in_int8(backbone: Any, tmp_path: Path, form: str) -> None:
    source = Source(make_expert(backbone), TASK, ROWS)
    repo = tmp_path / "repo"
    if form == "bank":
        exported = release_bank([source], repo, int8_recipe())
        record: Any = BankRecord.read(exported.folder / "1")
    else:
        exported = export_merged(source, repo, int8_recipe())
        record = MergedRecord.read(exported.folder / "1")
    # Six Linears in each of two layers. Labels and experts stay in fp32.
    assert record.quantised_products == 12
    assert 1e-3 < exported.parity["film"].max_abs < 4


def test_int8_is_refused_where_the_metric_falls(backbone: Any, tmp_path: Path) -> None:
    source = Source(make_expert(backbone), TASK, ROWS)
    strict = int8_recipe(tolerance=Tolerance(max_abs=1e-6, argmax_flips=0, metric_drop=0.0))
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path):
        with pytest.raises(ParityError, match="parity of 'film': max abs error is"):
            export_merged(source, tmp_path / "repo", strict)


def test_a_graph_without_large_matrices_is_refused(backbone: Any, tmp_path: Path) -> None:
    source = Source(make_expert(backbone), TASK, ROWS)
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path):
        with pytest.raises(PidepError, match="no matrix has 64 features on both sides"):
            export_merged(source, tmp_path / "repo", load_recipe("onnx-cpu-int8"))


def test_a_recipe_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = shipped("export/onnx-cpu.yaml").read_text()
    path.write_text(text.replace("name: onnx-cpu", "name: mine").replace("opset: 20", "opset: 21"))
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.opset) == ("mine", 21)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("opset: 20", "opst: 20", r"mine\.yaml: unknown key 'opst' \(did you mean 'opset'\?\)"),
        (
            "argmax_flips: 0",
            "argmax_flip: 0",
            r"mine\.yaml: tolerance: unknown key 'argmax_flip' \(did you mean 'argmax_flips'\?\)",
        ),
        ("opset: 20", "opset: 99", r"mine\.yaml: opset: .*found 99"),
        ("max_abs: 0.001", "max_abs: 0", r"mine\.yaml: tolerance\.max_abs: .*found 0"),
        ("precision: fp32", "precision: fp7", r"mine\.yaml: precision: .*found 'fp7'"),
        ("max_abs: 0.001", "max_abs: .inf", r"mine\.yaml: tolerance\.max_abs: .*found inf"),
        (
            "max_abs: 0.001",
            f"max_abs: 1{'0' * 400}",
            r"mine\.yaml: tolerance: has more than 64 bits",
        ),
        ("opset: 20", f"opset: {'[' * 5000}", r"mine\.yaml: not readable as YAML \(nested too"),
        ("opset: 20", f"opset: {'9' * 5001}", r"mine\.yaml: not readable as YAML \(Exceeds"),
        (
            "runtime: onnxruntime",
            'runtime: "\\ud83d"',
            r"mine\.yaml: runtime: '\\ud83d' is not UTF-8",
        ),
        ("opset: 20", "form: bank", r"mine\.yaml: unknown key 'form'"),
        ("runtime: onnxruntime", "runtime: [", r"mine\.yaml: not readable as YAML"),
    ],
)
def test_a_recipe_that_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(shipped("export/onnx-cpu.yaml").read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_a_recipe_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"mine\.yaml: not readable as YAML"):
        load_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("form", ["merged", "bank"])
def test_a_graph_over_2_gib_is_refused_before_it_is_compiled(
    form: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.model.register_buffer("large", torch.empty(2**29, device="meta"))  # 4 bytes each
    monkeypatch.setattr(entries, "load_backbone", lambda _: tiny)
    compiled: list[Any] = []
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: compiled.append(1))
    source = Source(make_expert(tiny, sites=["*query"]), TASK, ROWS)
    given: Any = source if form == "merged" else [source]
    export = export_merged if form == "merged" else release_bank
    with pytest.raises(UsageError, match=f"export of the {form} graph: .* more than 2 GiB"):
        export(given, tmp_path / "repo", load_recipe("onnx-cpu"))
    assert not compiled
    assert not list(tmp_path.rglob("*.onnx"))


def test_weights_beside_the_graph_are_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter writes a second file where it finds the first one too large."""
    save = torch.onnx.ONNXProgram.save

    def beside(self: Any, path: str, **_: Any) -> None:
        save(self, path, external_data=True)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", beside)
    monkeypatch.setattr(entries, "load_backbone", lambda _: tiny)
    source = Source(make_expert(tiny, sites=["*query"]), TASK, ROWS)
    with pytest.raises(UsageError, match="more than 2 GiB, which one ONNX file cannot hold"):
        export_merged(source, tmp_path / "repo", load_recipe("onnx-cpu"))
    assert not (tmp_path / "repo" / "film").exists()
