"""Graphs in int8: how many products, and experts that lose too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts import BankRecord, MergedRecord
from pidep.deployment.release import release_bank
from pidep.errors import ParityError, PidepError, UsageError
from pidep.export import (
    Quantisation,
    Source,
    Tolerance,
    export_merged,
    load_recipe,
    quantise,
    sensitivity,
)
from tests.cli.run import untouched
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK, int8_recipe

pytestmark = pytest.mark.slow  # graphs are compiled


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


@pytest.mark.parametrize("form", ["bank", "merged"])
def test_the_products_that_lose_most_stay_in_fp32(
    shallow: Any, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "cache_folder", lambda: tmp_path / "cache")
    source = Source(make_expert(shallow), TASK, ROWS, calibration=ROWS.rows)
    errors: list[dict[str, float]] = []
    measure = quantise.product_errors
    monkeypatch.setattr(
        quantise, "product_errors", lambda *given: errors.append(measure(*given)) or errors[-1]
    )

    def export(bound: float) -> Any:
        how = Quantisation(min_features=8, max_product_error=bound)
        recipe = int8_recipe(quantisation=how)
        if form == "bank":
            return BankRecord.read(release_bank([source], tmp_path / "r", recipe).folder / "1")
        return MergedRecord.read(export_merged(source, tmp_path / "r", recipe).folder / "1")

    assert export(1.0).quantised_products == 6
    middle = sorted(errors[0].values())[2]
    opened: list[Any] = []
    monkeypatch.setattr(sensitivity, "open_session", lambda *given: opened.append(given))
    assert export(middle).quantised_products == 3
    assert not opened  # the figures of the first export are in the cache
    with pytest.raises(UsageError, match=r"over the recipe's `max_product_error` 1e-09"):
        export(1e-9)


def test_a_measurement_needs_training_rows(shallow: Any, tmp_path: Path) -> None:
    how = Quantisation(min_features=8, max_product_error=0.1)
    source = Source(make_expert(shallow), TASK, ROWS)
    with pytest.raises(UsageError, match="measured on training rows, and the task has none"):
        export_merged(source, tmp_path / "repo", int8_recipe(quantisation=how))


def test_a_graph_without_large_matrices_is_refused(backbone: Any, tmp_path: Path) -> None:
    source = Source(make_expert(backbone), TASK, ROWS)
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path):
        with pytest.raises(PidepError, match="no matrix has 64 features on both sides"):
            export_merged(source, tmp_path / "repo", load_recipe("onnx-cpu-int8"))
