"""Export: Triton Server's configuration, graphs equal to PyTorch, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts import BankRecord, MergedRecord
from pidep.deployment.release import release_bank
from pidep.errors import ExpertError, ParityError, UsageError
from pidep.export import (
    Exported,
    Source,
    compile,
    export_merged,
    load_recipe,
    read_source,
)
from pidep.files.digest import file_digest
from pidep.runtime import Bank, Merged
from pidep.tuning.run_folder import run_task
from tests.adapters.test_bank import experts_of
from tests.cli.run import contents, untouched, write_run
from tests.conftest import make_expert
from tests.export.examples import CHOICES, ROWS, TASK, noisy, torch_scores

pytestmark = pytest.mark.slow  # graphs are compiled

GOLDEN = Path(__file__).parent / "golden"


def parsed(text: str) -> Any:
    """`config.pbtxt` as Triton Server parses it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


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
        "gate_report.html",
        "gate_report.json",
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
    # Two rows can be equal bit for bit, not all of them.
    assert max(parity.max_abs for parity in exported.parity.values()) > 0
    assert {name: parity.rows for name, parity in exported.parity.items()} == rows
    for parity in exported.parity.values():
        assert parity.argmax_flips == 0
        assert parity.max_abs < 1e-4
        assert parity.effect is not None
        assert parity.effect > 10 * parity.max_abs
        assert parity.metric_torch == parity.metric_exported
        assert parity.worst_row is not None
        assert parity.worst_row.max_abs == parity.max_abs
    assert any(parity.max_abs > 0 for parity in exported.parity.values())


@pytest.mark.usefixtures("no_cache")
def test_the_gate_runs_on_the_files_that_are_published(
    backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right graph beside a wrong tokenizer fails the gate."""
    right = compile.export_bank_graph

    def beside_a_wrong_tokenizer(*arguments: Any, **more: Any) -> None:
        right(*arguments, **more)
        path = tmp_path / "repo" / next((tmp_path / "repo").iterdir()) / "1" / "tokenizer.json"
        words = path.read_text().replace('"good"', '"GOOD"').replace('"bad"', '"good"')
        path.write_text(words.replace('"GOOD"', '"bad"'))

    monkeypatch.setattr(compile, "export_bank_graph", beside_a_wrong_tokenizer)
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
    if platform != "python":  # no code of pidep answers there
        entry = MergedRecord.read(exported.folder / "1").entry_digest
        config.parameters["pidep_entry"].string_value = entry
    assert parsed((exported.folder / "config.pbtxt").read_text()) == config
    assert (exported.folder / "1" / "model.py").exists() == (platform == "python")
    assert MergedRecord.read(exported.folder / "1").parity == exported.parity[expert.name]


def test_rows_are_kept_only_where_they_can_be_asked(shallow: Any, tmp_path: Path) -> None:
    source, recipe = Source(noisy(shallow, "lora"), TASK, ROWS), load_recipe("onnx-cpu")
    with pytest.raises(UsageError, match=r"`keep_rows`: pidep verify sends texts, and a model of"):
        export_merged(source, tmp_path / "repo", recipe, platform="onnxruntime", keep_rows=True)
    assert not (tmp_path / "repo").exists()


# Sources and recipes.


def test_a_run_is_exported_from_any_folder(
    backbone: Any, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task_file.parent)
    run = write_run(Path("run").absolute(), make_expert(backbone), Path("film.yaml"))
    (task_file.parent / "elsewhere").mkdir()
    monkeypatch.chdir(task_file.parent / "elsewhere")
    assert len(read_source(run, rows=4, task=run_task(run)).rows.rows) == 4


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
