"""The bank, through a real exported graph of a tiny backbone."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.errors import ExpertError, ServingError
from pidep.experts.folder import write_expert
from pidep.files.digest import file_digest
from pidep.inputs.row import Row
from pidep.inputs.template import Template
from pidep.runtime import Answer, Bank, Residents, softmax
from pidep.tuning.predict_file import predict_file
from pidep.tuning.settings import PredictSettings
from tests.conftest import make_expert
from tests.runtime.exported import export_bank_folder

pytestmark = pytest.mark.slow  # a graph is compiled

TEXTS = ["the film was good", "awful", "a very bad film was the great film", "great"]


@pytest.fixture(scope="module")
def bank_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pidep.backbones.load import load_backbone

    return export_bank_folder(load_backbone(str(tiny_folder)), tmp_path_factory.mktemp("repo"))


def answers(bank: Bank, residents: Residents, texts: list[str], names: list[str]) -> list[Answer]:
    found = bank.run(residents, texts, names)
    assert all(isinstance(answer, Answer) for answer in found)
    return found  # type: ignore[return-value]


def test_mixed_batch_equals_the_rows_alone(tiny: Any, bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    experts = {
        "a": make_expert(tiny, seed=1),
        "b": make_expert(tiny, seed=2, rank=4, scaling=0.5),
    }
    residents = bank.build(experts)
    names = ["a", "b", "b", "a"]
    together = answers(bank, residents, TEXTS, names)
    for text, name, mixed in zip(TEXTS, names, together, strict=True):
        (alone,) = answers(bank, residents, [text], [name])
        np.testing.assert_allclose(mixed.scores, alone.scores, atol=1e-5, rtol=0)
        assert mixed.digest == alone.digest
    (other,) = answers(bank, residents, TEXTS[:1], ["b"])
    assert np.abs(together[0].scores - other.scores).max() > 1e-3


def test_bank_equals_pytorch(tiny: Any, bank_folder: Path) -> None:
    expert = make_expert(tiny, seed=3)
    bank = Bank(bank_folder)
    with attached(tiny.model, Mixture.of([expert])):
        embeddings = tiny.encode(TEXTS, max_length=12)
    logits = 20.0 * embeddings @ torch.from_numpy(expert.label_embeddings).T
    found = answers(bank, bank.build({"x": expert}), TEXTS, ["x"] * 4)
    scores = torch.softmax(logits, 1).numpy()
    np.testing.assert_allclose([one.logits for one in found], logits.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose([one.scores for one in found], scores, atol=1e-5, rtol=0)


def test_scores_are_the_softmax_of_the_logits(tiny: Any, bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    for answer in answers(bank, bank.build({"x": make_expert(tiny)}), TEXTS, ["x"] * 4):
        assert np.array_equal(answer.scores, softmax(answer.logits))
        assert answer.label == answer.labels[int(answer.logits.argmax())]


def test_predict_gives_the_banks_answers_to_the_rows_of_a_file(
    tiny: Any, bank_folder: Path, tmp_path: Path
) -> None:
    expert = replace(make_expert(tiny, seed=4), template=Template("{body} {end}"))
    write_expert(expert, tmp_path / "run" / "expert")
    rows = [dict(zip(("body", "end"), text.rsplit(" ", 1), strict=True)) for text in TEXTS[::2]]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    offline = predict_file(PredictSettings(run=tmp_path / "run", file=file), backbone=tiny).answers
    bank = Bank(bank_folder)
    asked = [Row(columns=row) for row in rows]
    served = bank.run(bank.build({"x": expert}), asked, ["x"] * len(rows))
    for one, other in zip(offline, served, strict=True):
        assert isinstance(other, Answer)
        assert (one.label, one.digest) == (other.label, other.digest)
        np.testing.assert_allclose(list(one.scores.values()), other.scores, atol=1e-5, rtol=0)


def test_softmax_of_large_logits_is_finite() -> None:
    scores = softmax(np.float32([[1e4, 0.0], [-1e4, -1e4]]))
    np.testing.assert_allclose(scores, [[1, 0], [0.5, 0.5]])


def test_an_unknown_expert_is_that_rows_error_only(tiny: Any, bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    first, second = bank.run(bank.build({"a": make_expert(tiny)}), TEXTS[:2], ["nope", "a"])
    assert isinstance(first, ExpertError)
    assert "unknown expert 'nope'; this server has: a" in str(first)
    assert isinstance(second, Answer)


def test_an_expert_that_changes_nothing_is_named(tiny: Any, bank_folder: Path) -> None:
    bank, good = Bank(bank_folder), make_expert(tiny, seed=1)
    # A fresh LoRA: B is zeros, so it is loaded and named, and answers as the bare backbone.
    idle = replace(
        good,
        sites={
            site: {name: array * (name != "lora_B") for name, array in tensors.items()}
            for site, tensors in good.sites.items()
        },
    )
    faint = replace(good, scaling=1e-4)
    residents = bank.build({"good": good, "idle": idle, "faint": faint})
    faults = bank.probe(residents, ["good", "idle", "faint"])
    assert list(faults) == ["idle"]
    assert re.fullmatch(
        r"expert 'idle': answers 2 probe rows as the bare backbone does, so it changes nothing; "
        r"train it longer or at other sites",
        str(faults["idle"]),
    )


def test_experts_that_do_not_fit_are_refused(tiny: Any, bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    with pytest.raises(ExpertError, match="made for another backbone"):
        bank.build({"a": replace(make_expert(tiny), backbone_digest="sha256:0")})
    with pytest.raises(ExpertError, match="rank 5 and width 16, the bank needs rank <= 4"):
        bank.build({"a": make_expert(tiny, rank=5)})


def test_a_changed_graph_is_refused(bank_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bank_folder, tmp_path / "1")
    with open(tmp_path / "1" / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ServingError, match=r"model\.onnx: digest .* expected"):
        Bank(tmp_path / "1")


def test_a_graph_of_an_older_export_is_refused(bank_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(bank_folder, folder)
    model = onnx.load(folder / "model.onnx")
    (slots,) = (one for one in model.graph.input if one.name == "slots")
    for node in model.graph.node:
        node.input[:] = ["expert_index" if one == "slots" else one for one in node.input]
    slots.name = "expert_index"
    onnx.save(model, folder / "model.onnx")
    record = json.loads((folder / "bank.json").read_text())
    record["graph_digest"] = file_digest(folder / "model.onnx")
    (folder / "bank.json").write_text(json.dumps(record))
    with pytest.raises(ServingError, match=r"takes no 'slots'.*pidep export --form bank"):
        Bank(folder)


@pytest.mark.parametrize("name", ["bank.json", "model.onnx", "tokenizer.json"])
def test_a_missing_file_is_named(bank_folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(bank_folder, tmp_path / "1")
    (tmp_path / "1" / name).unlink()
    with pytest.raises(ServingError, match=rf"1/{name}: no"):
        Bank(tmp_path / "1")


def test_the_exporters_own_paths_are_not_in_a_graph(bank_folder: Path) -> None:
    """Otherwise the digest of one graph would depend on the folder of the checkout."""
    assert b".py" not in (bank_folder / "model.onnx").read_bytes()
    graph = onnx.load(bank_folder / "model.onnx").graph
    assert not any(node.metadata_props or node.doc_string for node in graph.node)
    assert not any(value.metadata_props for value in (*graph.value_info, *graph.initializer))
