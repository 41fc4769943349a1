"""Images through an exported bank: answers equal PyTorch's, and a wrong image fails its
row only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.artifacts.names import BACKBONE
from pidep.errors import ExpertError, ImageError, PidepError, ServingError, TaskError
from pidep.inputs.row import Input, Row
from pidep.runtime import Answer, Bank, InputReader
from tests.conftest import make_expert, png, tiny_mini
from tests.runtime.exported import export_bank_folder

pytestmark = pytest.mark.slow  # graphs are compiled


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pidep.backbones.load import load_backbone

    backbone = tiny_mini(load_backbone(str(tiny_folder)))
    return export_bank_folder(backbone, tmp_path_factory.mktemp("repo"))


ROWS: list[Input] = [
    "good film",
    Row("", png(0)),
    Row("bad film", png(1)),
    Row("the film was very very good", png(0)),
]


def answered(
    bank: Bank, experts: dict[str, Any], rows: list[Input], names: list[str]
) -> list[Answer]:
    found = bank.run(bank.build(experts), rows, names)
    assert all(isinstance(answer, Answer) for answer in found), found
    return found  # type: ignore[return-value]


def test_text_images_and_both_in_one_batch_of_three_experts_equal_pytorch(
    mini: Any, folder: Path
) -> None:
    ranks = {"a": 2, "b": 4, "c": 1}
    experts = {
        name: make_expert(mini, name=name, seed=seed, rank=rank)
        for seed, (name, rank) in enumerate(ranks.items())
    }
    names = ["a", "b", "c", "b"]
    found = answered(Bank(folder), experts, ROWS, names)
    for answer, row, name in zip(found, ROWS, names, strict=True):
        with attached(mini.model, Mixture.of([experts[name]])):
            embedding = mini.encode([row], max_length=12)[0]
        labels = torch.from_numpy(experts[name].label_embeddings)
        expected = torch.softmax(20.0 * labels @ embedding, 0)
        np.testing.assert_allclose(answer.embedding, embedding, atol=2e-5)
        np.testing.assert_allclose(answer.scores, expected, atol=1e-4)
        assert answer.digest == experts[name].digest


def test_a_batch_of_texts_needs_no_place_for_images(mini: Any, folder: Path) -> None:
    bank = Bank(folder)
    texts: list[Input] = ["good film", "bad"]
    assert bank.reader.feeds(texts, [None, None], max_length=8)["visual"].shape == (2, 0, 16)
    experts = {"a": make_expert(mini)}
    alone, _ = answered(bank, experts, texts, ["a", "a"])
    beside, _ = answered(bank, experts, [texts[0], ROWS[1]], ["a", "a"])
    np.testing.assert_allclose(alone.embedding, beside.embedding, atol=1e-5)


def test_wrong_rows_are_their_own_errors(mini: Any, folder: Path) -> None:
    bank = Bank(folder)
    rows = [ROWS[1], Row("good", b"no image"), "", Row("a", png(0)[:200], where="row D"), ROWS[0]]
    names = ["a", "a", "a", "a", "nobody"]
    found: list[Answer | PidepError] = bank.run(bank.build({"a": make_expert(mini)}), rows, names)
    assert isinstance(found[0], Answer)
    for row, kind, message in (
        (1, ImageError, "row 2: expected PNG, JPEG"),
        (2, TaskError, "row 3: expected a text, an image or both, found neither"),
        (3, ImageError, "row D: the pixels cannot be decoded"),
        (4, ExpertError, "unknown expert 'nobody'"),
    ):
        assert isinstance(found[row], kind)
        assert message in str(found[row])


def test_the_bare_backbone_embeds_candidates_and_has_no_label(mini: Any, folder: Path) -> None:
    found = answered(Bank(folder), {"a": make_expert(mini)}, ROWS, [BACKBONE] * 4)
    embeddings = [answer.embedding for answer in found]
    np.testing.assert_allclose(embeddings, mini.encode(ROWS, max_length=12), atol=2e-5)
    seen = {(answer.label, answer.labels, answer.digest) for answer in found}
    assert seen == {("", (), mini.digest)}


def test_a_long_candidate_is_cut_where_training_cuts_it(mini: Any, folder: Path) -> None:
    long = "the film was very " * 10 + "good"
    (found,) = answered(Bank(folder), {}, [long], [BACKBONE])
    expected = mini.encode([long], max_length=mini.max_positions)[0]
    np.testing.assert_allclose(found.embedding, expected, atol=2e-5)
    assert (mini.encode([long], max_length=16)[0] - expected).abs().max() > 1e-3


def test_a_picture_passes_the_stem_once(folder: Path) -> None:
    class Counting:
        """A session that counts the pictures it is given."""

        def __init__(self, session: Any) -> None:
            self.session, self.seen = session, []

        def run(self, names: list[str], feeds: dict[str, Any]) -> Any:
            self.seen.append(len(feeds["pixels"]))
            return self.session.run(names, feeds)

    vision = Bank(folder).reader.vision
    assert vision is not None
    vision.session = counting = Counting(vision.session)
    first = vision.tokens(ROWS)
    second = vision.tokens(list(reversed(ROWS)))
    assert counting.seen == [2]  # pictures 0 and 1
    for one, other in zip(first, reversed(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_preprocessing_is_refused(folder: Path) -> None:
    record = Bank(folder).record.vision
    assert record is not None
    smaller = record.model_copy(update={"preprocess": replace(record.preprocess, size=32)})
    with pytest.raises(ServingError, match="image preprocessing differs from training"):
        InputReader(folder, smaller)
    other = record.model_copy(update={"graph_digest": "sha256:0"})
    with pytest.raises(ServingError, match=r"vision\.onnx: digest .*, expected"):
        InputReader(folder, other)


def test_a_bank_of_texts_refuses_images(folder: Path) -> None:
    first, second = InputReader(folder, None).visual(["good film", Row("a", png(0))])
    assert first is None
    assert isinstance(second, ImageError)
    assert str(second).startswith("row 2: has an image; this model reads text only")
