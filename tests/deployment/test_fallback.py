"""Experts that a bank's precision is too low for: named all at once, or left to models in fp32."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts import BankRecord, MergedRecord
from pidep.artifacts.gate_report import GateReport
from pidep.artifacts.names import BACKBONE
from pidep.deployment import release_bank, release_runs
from pidep.deployment.settings import ExportSettings
from pidep.errors import ExpertError, ParityError, UsageError
from pidep.experts.mixed import MixedExpert
from pidep.export import Exported, Recipe, Source, Tolerance, entries, load_recipe
from pidep.export.recipe import shipped
from pidep.runtime import Bank, Merged
from pidep.runtime.answer import Answer
from pidep.serving import ExpertStore
from tests.cli.run import Done, assert_refused, contents, untouched, write_run
from tests.conftest import save_tiny
from tests.export.examples import ROWS, TASK, int8_recipe, noisy, torch_scores

pytestmark = pytest.mark.slow  # graphs are compiled

FP32 = load_recipe("onnx-cpu")
LOUD = 400.0
"""A logit scale that makes a cosine's error in int8 a logit's of more than the tolerance."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One layer: the time of an export is in its layers."""
    from pidep.backbones.load import load_backbone

    return load_backbone(str(save_tiny(tmp_path_factory.mktemp("shallow"), num_layers=1)))


@pytest.fixture(scope="module")
def kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(kept_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pidep.export.graph_cache.cache_folder", lambda: kept_graphs)


def recipe(max_abs: float = 0.02) -> Recipe:
    return int8_recipe(tolerance=Tolerance(max_abs=max_abs, argmax_flips=5, metric_drop=1.0))


def source(backbone: Any, name: str, *, loud: bool = False, kind: str = "lora") -> Source:
    expert = replace(noisy(backbone, kind), name=name)
    return Source(replace(expert, logit_scale=LOUD) if loud else expert, TASK, ROWS)


def mixture(backbone: Any, name: str) -> Source:
    """A loud one, by reference to its parts."""
    one = source(backbone, "a").expert
    less = {
        site: {key: array * np.float32(0.5) for key, array in tensors.items()}
        for site, tensors in one.sites.items()
    }
    parts = (one, replace(one, name="b", sites=less))
    head = replace(parts[0], name=name, sites={}, logit_scale=LOUD)
    mixed = MixedExpert(head, parts, dict.fromkeys(parts[0].sites, (0.25, 0.75)))
    return Source(head, TASK, ROWS, mixture=mixed)


def store(work: Path) -> ExpertStore:
    return ExpertStore(work / "expert_store")


@pytest.fixture(scope="module")
def left(
    backbone: Any, kept_graphs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Exported]:
    """A bank in int8 over an older one in fp32 that served two of the names."""
    work = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pidep.export.graph_cache.cache_folder", lambda: kept_graphs)
        release_bank([source(backbone, "loud"), source(backbone, "old")], work / "repo", FP32)
        sources = [source(backbone, "quiet"), source(backbone, "loud", loud=True)]
        sources.append(mixture(backbone, "mixed"))
        exported = release_bank(sources, work / "repo", recipe(), fallback=FP32, keep_rows=True)
    return work, exported


def test_each_expert_is_served_where_it_passed(left: tuple[Path, Exported], backbone: Any) -> None:
    work, exported = left
    assert list(exported.parity) == list(exported.experts) == ["quiet"]
    assert list(exported.left_out) == ["loud", "mixed"]
    assert [one.model for one in exported.beside] == ["loud", "mixed"]
    assert set(os.listdir(work / "repo")) == {"pidep_bank", "loud", "mixed"}
    bank = Bank(work / "repo" / "pidep_bank" / "1")
    residents = bank.build(store(work).published())
    assert sorted(residents.by_name) == ["old", "quiet"]
    assert bank.record.quantised_products == 6
    # The merged ones are in fp32, as near to PyTorch as that; the mixture is folded.
    expert = source(backbone, "loud", loud=True).expert
    found = [answer.scores for answer in Merged(work / "repo" / "loud" / "1").run(ROWS.rows)]
    np.testing.assert_allclose(found, torch_scores(backbone, expert, ROWS.rows), atol=1e-3)
    for name in ("loud", "mixed"):
        record = MergedRecord.read(work / "repo" / name / "1")
        assert record.quantised_products is None
        assert record.parity is not None
        assert record.parity.max_abs < 1e-3


def test_a_request_for_one_is_told_which_model_serves_it(left: tuple[Path, Exported]) -> None:
    work, _ = left
    bank = Bank(work / "repo" / "pidep_bank" / "1")
    residents = bank.build(store(work).published())
    wrong, right, unknown = bank.run(residents, ["a film"] * 3, ["loud", "quiet", "nobody"])
    assert isinstance(right, Answer)
    assert isinstance(wrong, ExpertError)
    assert str(wrong).startswith(
        "expert 'loud' is not in this bank: the gate refused it in int8 (max abs error is "
    )
    assert str(wrong).endswith("; ask model 'loud', which serves it in fp32")
    assert "unknown expert 'nobody'" in str(unknown)


def test_record_report_and_output_say_what_was_refused_and_why(
    left: tuple[Path, Exported],
) -> None:
    work, exported = left
    entry = work / "repo" / "pidep_bank"
    record = BankRecord.read(entry / "1")
    assert record.left_out == exported.left_out
    one = exported.left_out["loud"]
    assert one.parity is not None
    assert one.parity.max_abs > 0.02 > exported.parity["quiet"].max_abs
    assert one.reason == f"max abs error is {one.parity.max_abs:.3g}, the recipe allows 0.02"
    assert set(record.parity) == {"quiet"}
    assert GateReport.read(entry).left_out == exported.left_out
    assert "int8: max abs error is" in (entry / "gate_report.html").read_text()
    written = json.loads(json.dumps(exported.to_json()))
    assert written["left_out"]["mixed"]["model"] == "mixed"
    assert [found["model"] for found in written["beside"]] == ["loud", "mixed"]
    # `pidep verify` asks each entry for its own rows.
    assert {path.parent.name for path in (work / "repo").glob("*/gate.json")} == {
        "pidep_bank",
        "loud",
        "mixed",
    }


def test_no_swap_brings_the_refused_version_back(
    left: tuple[Path, Exported], backbone: Any
) -> None:
    bank = Bank(left[0] / "repo" / "pidep_bank" / "1")
    refused = source(backbone, "loud", loud=True).expert
    with pytest.raises(ExpertError, match=r"'loud' is not in this bank: .* ask model 'loud'"):
        bank.build({"loud": refused})
    with pytest.raises(ExpertError, match="'mixed' is not in this bank"):
        bank.build({"other": mixture(backbone, "mixed").served})
    # Another version may be swapped in, and then it is the bank that answers.
    residents = bank.build({"loud": source(backbone, "loud").expert})
    assert isinstance(bank.run(residents, ["a film"], ["loud"])[0], Answer)
    assert isinstance(bank.run(residents, ["a film"], [BACKBONE])[0], Answer)


def test_a_later_export_keeps_what_is_still_so(
    backbone: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repo = tmp_path / "repo"
    both = [source(backbone, "quiet"), source(backbone, "loud", loud=True)]
    release_bank(both, repo, recipe(), fallback=FP32)
    again = release_bank([source(backbone, "quiet")], repo, recipe())
    assert not again.left_out  # of this export
    assert list(BankRecord.read(repo / "pidep_bank" / "1").left_out or {}) == ["loud"]
    caplog.clear()
    release_bank([source(backbone, "loud")], repo, recipe())
    assert BankRecord.read(repo / "pidep_bank" / "1").left_out is None
    assert any("model loud still serves the version before" in one for one in caplog.messages)
    assert sorted(store(tmp_path).manifest().aliases) == ["loud", "quiet"]


def names_left(repo: Path) -> dict[str, bool]:
    """Name to whether an earlier bank refused it."""
    record = BankRecord.read(repo / "pidep_bank" / "1")
    return {name: one.earlier for name, one in (record.left_out or {}).items()}


def test_a_bank_in_another_precision_still_names_the_model(
    backbone: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repo, refused = tmp_path / "repo", source(backbone, "loud", loud=True)
    release_bank([source(backbone, "quiet"), refused], repo, recipe(), fallback=FP32)
    release_bank([source(backbone, "quiet")], repo, FP32)
    assert names_left(repo) == {"loud": True}
    bank = Bank(repo / "pidep_bank" / "1")
    residents = bank.build(store(tmp_path).published())
    (wrong,) = bank.run(residents, ["a film"], ["loud"])
    assert "an earlier bank's gate refused it in int8" in str(wrong)
    assert str(wrong).endswith("ask model 'loud', which serves it in fp32")
    # In fp32 the version is as good as any other.
    residents = bank.build({"loud": refused.expert})
    assert isinstance(bank.run(residents, ["a film"], ["loud"])[0], Answer)
    # The next bank in int8 refuses the version again, also where it was swapped in meanwhile.
    store(tmp_path).publish(refused.expert, "loud")
    caplog.clear()
    release_bank([source(backbone, "quiet")], repo, recipe())
    assert names_left(repo) == {"loud": False}
    assert "keeps loud, which this export did not compare in int8" in caplog.text
    with pytest.raises(ExpertError, match="'loud' is not in this bank: the gate refused it in"):
        Bank(repo / "pidep_bank" / "1").build({"loud": refused.expert})


def test_another_version_that_was_swapped_in_does_not_free_the_refused_one(
    backbone: Any, tmp_path: Path
) -> None:
    repo, refused = tmp_path / "repo", source(backbone, "loud", loud=True)
    release_bank([source(backbone, "quiet"), refused], repo, recipe(), fallback=FP32)
    store(tmp_path).publish(source(backbone, "loud").expert, "loud")
    release_bank([source(backbone, "quiet")], repo, recipe())
    assert names_left(repo) == {"loud": False}
    bank = Bank(repo / "pidep_bank" / "1")
    residents = bank.build(store(tmp_path).published())
    assert isinstance(bank.run(residents, ["a film"], ["loud"])[0], Answer)
    with pytest.raises(ExpertError, match="'loud' is not in this bank"):
        bank.build({"loud": refused.expert})


def test_a_model_that_is_gone_is_named_no_longer(backbone: Any, tmp_path: Path) -> None:
    repo, refused = tmp_path / "repo", source(backbone, "loud", loud=True)
    release_bank([source(backbone, "quiet"), refused], repo, recipe(), fallback=FP32)
    shutil.rmtree(repo / "loud")
    release_bank([source(backbone, "quiet")], repo, recipe())
    assert names_left(repo) == {}


def test_without_it_all_refused_experts_are_named(backbone: Any, tmp_path: Path) -> None:
    sources = [
        source(backbone, "loud", loud=True),
        source(backbone, "quiet"),
        mixture(backbone, "mixed"),
    ]
    (tmp_path / "repo").mkdir()
    message = (
        r"^parity of 2 of 3 experts: 'loud': max abs error is [\d.]+, the recipe allows 0\.02; "
        r"'mixed': max abs error is [\d.]+, the recipe allows 0\.02; 'loud' in detail: the worst "
        r"is row \d.*; nothing was published; use `recipe=onnx-cpu`, or `fallback=fp32` for these "
        r"experts alone$"
    )
    with untouched(tmp_path), pytest.raises(ParityError, match=message):
        release_bank(sources, tmp_path / "repo", recipe())


def test_a_bank_of_refused_experts_alone_is_not_published(backbone: Any, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    sources = [source(backbone, "loud", loud=True)]
    with untouched(tmp_path), pytest.raises(ParityError, match="no expert is left for the bank"):
        release_bank(sources, tmp_path / "repo", recipe(), fallback=FP32)


def test_numbers_that_overflow_in_fp16_are_left_to_fp32(backbone: Any, tmp_path: Path) -> None:
    huge = source(backbone, "huge", kind="bitfit")
    sites = {
        site: {name: np.full_like(array, 1e5) * np.sign(array) for name, array in one.items()}
        for site, one in huge.expert.sites.items()
        if "LayerNorm" not in site
    }
    huge = replace(huge, expert=replace(huge.expert, sites=sites))
    half = load_recipe("onnx-cuda-fp16")
    sources = [source(backbone, "quiet"), huge]
    exported = release_bank(sources, tmp_path / "repo", half, fallback=FP32)
    assert list(exported.left_out) == ["huge"]
    one = exported.left_out["huge"]
    assert (one.precision, one.parity) == ("fp16", None)
    assert one.reason.startswith("the graph in fp16 cannot answer (the answer of sha256:")


def unpublishable(work: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Break a step; the recipe to leave experts to."""
    if step == "fp32 gate":
        return FP32.model_copy(
            update={"tolerance": FP32.tolerance.model_copy(update={"max_abs": 1e-12})}
        )
    if step == "second model":
        whole, done = entries.gate_merged, []

        def failing(*arguments: Any, **more: Any) -> Any:
            done.append(arguments)
            if len(done) == 2:
                raise OSError("no space left on device")
            return whole(*arguments, **more)

        monkeypatch.setattr(entries, "gate_merged", failing)
    else:
        rename = os.replace

        def refusing(old: Any, new: Any) -> None:
            if Path(new).name == "manifest.json" and "sha256:" in Path(old).read_text():
                raise OSError("read-only file system")
            rename(old, new)

        monkeypatch.setattr(os, "replace", refusing)
    return FP32


@pytest.mark.parametrize("step", ["fp32 gate", "second model", "manifest"])
def test_nothing_is_published_where_a_step_fails(
    backbone: Any, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_bank([source(backbone, "before")], tmp_path / "repo", FP32)
    sources = [
        source(backbone, "quiet"),
        source(backbone, "loud", loud=True),
        source(backbone, "louder", loud=True),
    ]
    there = {path: data for path, data in contents(tmp_path).items() if data is not None}
    with monkeypatch.context() as broken:
        fallback = unpublishable(tmp_path, step, broken)
        with pytest.raises((ParityError, OSError)):
            release_bank(sources, tmp_path / "repo", recipe(), fallback=fallback)
    found = {path: data for path, data in contents(tmp_path).items() if data is not None}
    assert found == there


# The command line.


@pytest.fixture
def work(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a task and its rows, nothing else."""
    monkeypatch.chdir(task_file.parent)
    return task_file.parent


@pytest.fixture
def runs(work: Path, tiny: Any) -> tuple[str, ...]:
    """Two runs, and a recipe that refuses the second."""
    for name in ("quiet", "loud"):
        expert = source(tiny, name, loud=name == "loud").expert
        write_run(work / name, expert, work / "film.yaml")
    text = shipped("export/onnx-cpu-int8.yaml").read_text()
    text = text.replace("reduce_range: true", "reduce_range: true\n  min_features: 8")
    text = text.replace("max_abs: 4.0", "max_abs: 0.1").replace("drop: 0.01", "drop: 1.0")
    (work / "mine.yaml").write_text(text)
    (work / "repo").mkdir()
    return ("quiet", "loud", "--repo", "repo", "--recipe", "mine.yaml")


def test_the_command_says_which_expert_went_where(
    work: Path, inside: Callable[..., Done], runs: tuple[str, ...]
) -> None:
    with untouched(work):
        assert_refused(
            inside("export", *runs), r"parity of 'loud': .*--fallback fp32 for these", code=1
        )
    done = inside("export", *runs, "--fallback", "fp32")
    assert done.code == 0
    tables = [line.split("│") for line in done.out.splitlines() if "│" in line]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in tables}
    assert set(cells) == {"quiet", "loud"}
    assert cells["loud"][0].startswith("int8: max abs error is ")
    assert cells["loud"][1] == "repo/loud"


def test_what_cannot_have_it_is_refused(work: Path) -> None:
    with untouched(work):
        for settings, message in (
            (ExportSettings(fallback="fp32", repo=work / "r"), "'onnx-cpu' is in fp32 already"),
            (
                ExportSettings(fallback="fp32", form="merged", repo=work / "r"),
                "`fallback`: is for experts of a bank",
            ),
        ):
            with pytest.raises(UsageError, match=message):
                release_runs([work / "a"], settings)
