"""A bias of the labels: bank, merged model, gate and PyTorch add the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.deployment.release import release_bank
from pidep.errors import ParityError
from pidep.experts.mixed import MixedExpert
from pidep.export import Source, export_merged, load_recipe
from pidep.inputs.row import Row
from pidep.runtime.bank import Bank
from pidep.runtime.merged import Merged
from pidep.tuning.predict import predict
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK, torch_scores

BIAS = (1.5, -0.25)


def expected(backbone: Any, expert: Any) -> np.ndarray:
    """The scores without a bias, moved by the odds that the bias stands for."""
    moved = torch_scores(backbone, replace(expert, label_bias=()), ROWS.rows) * np.exp(BIAS)
    return moved / moved.sum(1, keepdims=True)


@pytest.mark.slow  # graphs are compiled
def test_bank_merged_model_and_pytorch_add_the_same_bias(shallow: Any, tmp_path: Path) -> None:
    plain = make_expert(shallow, sites=["*query"])
    expert = replace(plain, label_bias=BIAS)
    want = expected(shallow, expert)
    assert np.abs(want - torch_scores(shallow, plain, ROWS.rows)).max() > 0.1
    parts = (expert, replace(plain, name="same"))
    mixture = MixedExpert(
        replace(expert, sites={}, scaling=1.0), parts, dict.fromkeys(expert.sites, (0.5, 0.5))
    )
    offline = [list(one.scores.values()) for one in predict(expert, ROWS.rows, backbone=shallow)]
    np.testing.assert_allclose(offline, want, atol=1e-5, rtol=0)
    # The gate compares with PyTorch, so it would refuse a graph or a bank without the bias.
    recipe = load_recipe("onnx-cpu")
    bank = Bank(release_bank([Source(expert, TASK, ROWS)], tmp_path / "bank", recipe).folder / "1")
    residents = bank.build({"film": expert, "mixed": mixture, "plain": plain})
    for name, scores in (
        ("film", want),
        ("mixed", want),
        ("plain", torch_scores(shallow, plain, ROWS.rows)),
    ):
        found = [one.scores for one in bank.run(residents, ROWS.rows, [name] * len(ROWS.rows))]
        np.testing.assert_allclose(found, scores, atol=1e-5, rtol=0)
    merged = export_merged(Source(expert, TASK, ROWS), tmp_path / "merged", recipe)
    found = [one.scores for one in Merged(merged.folder / "1").run(ROWS.rows)]
    np.testing.assert_allclose(found, want, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_gate_refuses_a_graph_without_the_bias(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pidep.export import compile as entries

    write = entries.export_merged_graph

    def without(backbone: Any, expert: Any, *more: Any, **options: Any) -> None:
        write(backbone, replace(expert, label_bias=()), *more, **options)

    monkeypatch.setattr(entries, "export_merged_graph", without)
    expert = replace(make_expert(shallow, sites=["*query"]), label_bias=BIAS)
    with pytest.raises(ParityError, match=r"parity of 'film': max abs error is 1\.5"):
        export_merged(Source(expert, TASK, ROWS), tmp_path / "repo", load_recipe("onnx-cpu"))


def test_candidates_of_a_row_have_no_bias(tiny: Any) -> None:
    plain = make_expert(tiny)
    rows = [Row("the film", candidates=("good", "awful", "bad")), Row("the film")]
    chosen, labelled = predict(replace(plain, label_bias=BIAS), rows, backbone=tiny)
    without = predict(plain, rows, backbone=tiny)
    assert chosen.scores == without[0].scores
    assert labelled.scores["negative"] > without[1].scores["negative"]
