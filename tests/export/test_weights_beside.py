"""Graphs whose weights lie beside them: opened, checked, swapped and cached as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pidep.artifacts import BankRecord, MergedRecord
from pidep.artifacts.names import BANK
from pidep.deployment.release import release_bank
from pidep.errors import ServingError
from pidep.export import Recipe, Source, export_merged, load_recipe, program
from pidep.files.digest import file_digest
from pidep.runtime import Bank, Merged
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK, int8_recipe, noisy, torch_scores

pytestmark = pytest.mark.slow  # graphs are compiled
DATA = "model.onnx.data"


def beside(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"weights": "beside"})


def exported(source: Source, repo: Path, recipe: Recipe, form: str) -> Path:
    """The version folder."""
    if form == "bank":
        return release_bank([source], repo, recipe).folder / "1"
    return export_merged(source, repo, recipe).folder / "1"


def opened(version: Path, form: str) -> Any:
    return Bank(version) if form == "bank" else Merged(version)


def scores(version: Path, expert: Any, form: str) -> np.ndarray:
    if form == "merged":
        answers = Merged(version).run(ROWS.rows)
    else:
        bank = Bank(version)
        answers = bank.run(
            bank.build({expert.name: expert}), ROWS.rows, [expert.name] * len(ROWS.rows)
        )
    return np.stack([answer.scores for answer in answers])


@pytest.mark.parametrize("form", ["bank", "merged"])
@pytest.mark.parametrize(
    ("recipe", "atol"),
    [
        (load_recipe("onnx-cpu"), 1e-5),
        (int8_recipe(), 0.2),
    ],
    ids=["fp32", "int8"],
)
def test_the_weights_are_in_a_second_file(
    shallow: Any, tmp_path: Path, form: str, recipe: Recipe, atol: float
) -> None:
    expert = noisy(shallow, "lora")
    version = exported(Source(expert, TASK, ROWS), tmp_path / "repo", beside(recipe), form)
    weights = onnx.load(version / "model.onnx", load_external_data=False).graph.initializer
    outside = [one for one in weights if one.data_location == onnx.TensorProto.EXTERNAL]
    places = {part.value for one in outside for part in one.external_data if part.key == "location"}
    assert places == {DATA}
    expected = torch_scores(shallow, expert, ROWS.rows)
    np.testing.assert_allclose(scores(version, expert, form), expected, atol=atol)


@pytest.mark.parametrize("form", ["bank", "merged"])
def test_the_digests_cover_both_files(shallow: Any, tmp_path: Path, form: str) -> None:
    source = Source(make_expert(shallow), TASK, ROWS)
    version = exported(source, tmp_path / "repo", beside(load_recipe("onnx-cpu")), form)
    kind: Any = BankRecord if form == "bank" else MergedRecord
    record = kind.read(version)
    assert record.files[DATA] == file_digest(version / DATA)
    right = (version / DATA).read_bytes()
    (version / DATA).write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    with pytest.raises(ServingError, match=r"model\.onnx\.data: digest .* expected .* again"):
        opened(version, form)
    (version / DATA).unlink()
    with pytest.raises(ServingError, match=r"model\.onnx\.data: no such file; export"):
        opened(version, form)


@pytest.mark.parametrize("form", ["bank", "merged"])
def test_both_files_have_the_same_bytes_each_time(
    shallow: Any, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(make_expert(shallow), TASK, ROWS)
    found = []
    for number in range(3 if form == "bank" else 2):
        # The second bank comes from the cache, the third does not.
        if number == 2:
            monkeypatch.setattr("pidep.export.graph_cache.cache_folder", lambda: tmp_path / "new")
        repo = tmp_path / str(number)
        version = exported(source, repo, beside(load_recipe("onnx-cpu")), form)
        found.append([(version / name).read_bytes() for name in ("model.onnx", DATA)])
    assert all(one == found[0] for one in found)


def test_weights_that_one_file_cannot_hold_are_written_beside_it(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MOST_INSIDE", 1000)
    source = Source(make_expert(shallow), TASK, ROWS)
    assert (exported(source, tmp_path, load_recipe("onnx-cpu"), "merged") / DATA).is_file()


def test_a_bank_without_them_replaces_one_with_them(shallow: Any, tmp_path: Path) -> None:
    """No file of the older entry is left behind."""
    source = Source(make_expert(shallow), TASK, ROWS)
    recipe = load_recipe("onnx-cpu")
    assert (exported(source, tmp_path, beside(recipe), "bank") / DATA).is_file()
    assert not (exported(source, tmp_path, recipe, "bank") / DATA).exists()
    assert (tmp_path / BANK / "1" / "model.onnx").is_file()
