"""Images through an exported bank: the same answers as PyTorch, errors of a row alone, each picture through the stem once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.artifacts.names import BACKBONE
from pidep.errors import ExpertError, ImageError, PidepError, ServingError
from pidep.export.entries import _vision
from pidep.export.recipe import load_recipe
from pidep.inputs.row import Input, Row
from pidep.runtime.bank import Answer, Bank
from pidep.runtime.reader import Question, Reader
from tests.conftest import make_expert, png, tiny_mini
from tests.runtime.exported import export_bank_folder

pytestmark = pytest.mark.slow  # graphs are compiled


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pidep.backbones.load import load_backbone

    backbone = tiny_mini(load_backbone(str(tiny_folder)))
    root = tmp_path_factory.mktemp("repo")
    folder = export_bank_folder(backbone, root, max_positions=backbone.max_positions)
    record = json.loads((folder / "bank.json").read_text())
    record["vision"] = _vision(backbone, folder, load_recipe("bank-onnx-fp32"))
    (folder / "bank.json").write_text(json.dumps(record))
    return folder


QUESTIONS = [
    Question("good film"),
    Question("", png(0)),
    Question("bad film", png(1)),
    Question("the film was very very good", png(0)),
]


def rows() -> list[Input]:
    return [Row(asked.text, asked.image or None) for asked in QUESTIONS]


def answered(bank: Bank, experts: dict[str, Any], questions: list[Question], names: list[str]) -> list[Answer]:
    found = bank.run(bank.build(experts), questions, names)
    assert all(isinstance(answer, Answer) for answer in found), found
    return found  # type: ignore[return-value]


def test_text_images_and_both_in_one_batch_of_three_experts_equal_pytorch(mini: Any, folder: Path) -> None:
    experts = {name: make_expert(mini, name=name, seed=seed, rank=rank) for seed, (name, rank) in enumerate((("a", 2), ("b", 4), ("c", 1)))}
    names = ["a", "b", "c", "b"]
    found = answered(Bank(folder), experts, QUESTIONS, names)
    for answer, row, name in zip(found, rows(), names, strict=True):
        with attached(mini.model, Mixture.of([experts[name]])):
            embedding = mini.encode([row], max_length=12)[0]
        expected = torch.softmax(20.0 * torch.from_numpy(experts[name].label_embeddings) @ embedding, 0)
        np.testing.assert_allclose(answer.embedding, embedding, atol=2e-5)
        np.testing.assert_allclose(answer.scores, expected, atol=1e-4)
        assert answer.digest == experts[name].digest


def test_a_batch_of_texts_needs_no_place_for_images(mini: Any, folder: Path) -> None:
    bank = Bank(folder)
    texts = [Question("good film"), Question("bad")]
    assert bank.reader.feeds(texts, [None, None], max_length=8)["visual"].shape == (2, 0, 16)
    (alone, _), beside = (
        answered(bank, {"a": make_expert(mini)}, texts, ["a", "a"]),
        answered(bank, {"a": make_expert(mini)}, [texts[0], QUESTIONS[1]], ["a", "a"]),
    )
    np.testing.assert_allclose(alone.embedding, beside[0].embedding, atol=1e-5)


def test_wrong_rows_are_their_own_errors(mini: Any, folder: Path) -> None:
    bank = Bank(folder)
    questions = [
        QUESTIONS[1],
        Question("good", b"no image", "row 2"),
        Question("", b"", "row 3"),
        Question("a", png(0)[:200], "row 4"),
        QUESTIONS[0],
    ]
    found: list[Answer | PidepError] = bank.run(bank.build({"a": make_expert(mini)}), questions, ["a", "a", "a", "a", "nobody"])
    assert isinstance(found[0], Answer)
    for row, kind, message in (
        (1, ImageError, "row 2: expected PNG, JPEG"),
        (2, ServingError, "row 3: expected a text, an image or both, found neither"),
        (3, ImageError, "row 4: the pixels cannot be decoded"),
        (4, ExpertError, "unknown expert 'nobody'"),
    ):
        assert isinstance(found[row], kind)
        assert message in str(found[row])


def test_the_bare_backbone_embeds_candidates_and_has_no_label(mini: Any, folder: Path) -> None:
    found = answered(Bank(folder), {"a": make_expert(mini)}, QUESTIONS, [BACKBONE] * len(QUESTIONS))
    np.testing.assert_allclose([answer.embedding for answer in found], mini.encode(rows(), max_length=12), atol=2e-5)
    assert {(answer.label, answer.labels, answer.digest) for answer in found} == {("", (), mini.digest)}


def test_a_long_candidate_is_cut_where_training_cuts_it(mini: Any, folder: Path) -> None:
    long = "the film was very " * 10 + "good"
    (found,) = answered(Bank(folder), {}, [Question(long)], [BACKBONE])
    expected = mini.encode([long], max_length=mini.max_positions)[0]
    np.testing.assert_allclose(found.embedding, expected, atol=2e-5)
    assert (mini.encode([long], max_length=16)[0] - expected).abs().max() > 1e-3


def test_a_picture_passes_the_stem_once(folder: Path) -> None:
    reader = Reader(folder, Bank(folder).spec.vision)
    assert reader._vision is not None
    run, seen = reader._vision.session.run, []
    reader._vision.session = type("Counting", (), {"run": lambda _, names, feeds: seen.append(len(feeds["pixels"])) or run(names, feeds)})()
    first = reader.visual(QUESTIONS)
    second = reader.visual(list(reversed(QUESTIONS)))
    assert seen == [2]  # pictures 0 and 1
    for one, other in zip(first, reversed(second), strict=True):
        assert (one is None and other is None) or np.array_equal(one, other)  # type: ignore[arg-type]


def test_what_was_prepared_otherwise_is_refused(folder: Path) -> None:
    vision = dict(Bank(folder).spec.vision or {})
    with pytest.raises(ServingError, match="images were prepared otherwise in training"):
        Reader(folder, {**vision, "preprocess": {**vision["preprocess"], "size": 32}})
    with pytest.raises(ServingError, match="its vision record is malformed"):
        Reader(folder, {**vision, "preprocess": {"colour": 1}})
    with pytest.raises(ServingError, match=r"vision\.onnx: digest .*, expected"):
        Reader(folder, {**vision, "graph_digest": "sha256:0"})
