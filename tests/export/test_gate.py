"""The parity gate: figures, bounds, and experts or graphs that it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pidep.artifacts.parity import ParitySlice, WorstRow
from pidep.deployment.release import release_bank
from pidep.errors import ParityError
from pidep.export import (
    Parity,
    Recipe,
    Source,
    Tolerance,
    export_merged,
    load_recipe,
)
from pidep.export.parity import check_effect, check_parity, measure_parity
from pidep.export.slices import slices_of, worst_row
from pidep.inputs.row import Row
from pidep.runtime.session import open_session
from tests.cli.run import untouched
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK

pytestmark = pytest.mark.slow  # graphs are compiled


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


def test_the_worst_row_and_slice_are_found() -> None:
    rows = ["a short one", "a " * 10, Row("with an image", np.zeros((4, 4), np.uint8)), "last"]
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    exported = reference + np.array([[0.0, 0.5], [2.5, 0.0], [0.0, -0.25], [0.0, 0.0]])
    worst = worst_row(reference, exported, rows)
    assert (worst.row, worst.max_abs) == (2, 2.5)
    assert (worst.torch, worst.exported) == ((0.0, 2.0), (2.5, 2.0))
    found = slices_of(reference, exported, rows, [0, 1, 0, 0], ["good", "bad"])
    figures = {(one.by, one.name): (one.rows, one.argmax_flips, one.max_abs) for one in found}
    assert figures == {
        ("label", "bad"): (1, 1, 2.5),
        ("label", "good"): (3, 0, 0.5),
        ("length", "9 to 32 words"): (1, 1, 2.5),
        ("length", "up to 8 words"): (3, 0, 0.5),
        ("modality", "text"): (3, 1, 2.5),
        ("modality", "text and image"): (1, 0, 0.25),
    }
    # Rows of one kind make no slice of their own.
    alike = slices_of(reference, exported, ["a"] * 4, [1] * 4, ["good", "bad"])
    assert alike == ()


def test_a_refusal_names_the_worst_row_and_slice() -> None:
    row = WorstRow(row=3, where="film.csv, row 9", max_abs=2.5, torch=(0.0, 2.0), exported=(2.5, 2))
    parts = (
        ParitySlice(by="label", name="bad", rows=8, max_abs=2.5, argmax_flips=2),
        ParitySlice(by="label", name="good", rows=80, max_abs=0.1, argmax_flips=3),
    )
    figures = Parity(
        rows=88,
        max_abs=2.5,
        max_relative=1.0,
        argmax_flips=5,
        metric="accuracy",
        metric_torch=0.9,
        metric_exported=0.9,
        worst_row=row,
        slices=parts,
    )
    tolerance = Tolerance(max_abs=1e-3, argmax_flips=0, metric_drop=0.0)
    message = (
        r"max abs error is 2\.5, the recipe allows 0\.001; the worst is row 3 "
        r"\(film\.csv, row 9\), with logits \[0, 2\] in PyTorch and \[2\.5, 2\] in the graph; "
        r"the worst slice is label 'bad': 2 of 8 rows flip, max abs error 2\.5; nothing was "
        r"published"
    )
    with pytest.raises(ParityError, match=message):
        check_parity("film", figures, tolerance)


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


@pytest.mark.parametrize("broken", ["alone", "mixed"])
def test_batches_of_one_name_and_mixed_ones_are_both_compared(
    backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A batch whose rows all name one expert takes another way through the graph."""

    class HalfWrong:
        """A session in which one of the two ways halves every weight."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.session = open_session(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run_with_ort_values(self, outputs: Any, values: dict[str, Any]) -> Any:
            if (values["slots"].shape()[0] == 1) == (broken == "alone"):
                halved = values["weights"].numpy() / 2
                values["weights"] = onnxruntime.OrtValue.ortvalue_from_numpy(halved)
            return self.session.run_with_ort_values(outputs, values)

    monkeypatch.setattr("pidep.runtime.bank.open_session", HalfWrong)
    expert = make_expert(backbone, sites=["*query"])
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path), pytest.raises(ParityError, match="parity of 'film'"):
        release_bank([Source(expert, TASK, ROWS)], tmp_path / "repo", load_recipe("onnx-cpu"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_graph_that_gives_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ParityError, match="NaN or Inf on real rows; nothing was published"):
        measure_parity(np.zeros((1, 2)), np.array([[0.0, bad]]), labels=[0], metric="accuracy")
