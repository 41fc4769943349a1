"""One interface for all backbones: what each can do, and the error where it cannot."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import pidep
from pidep.errors import BackboneError, UsageError
from pidep.inputs.row import Row
from tests.backbones.tiny_models import loaded

TEXTS = ["the film was good", "awful"]
CANDIDATES = ["good", "bad", "great"]


def test_scores_of_a_backbone_that_embeds_are_cosines(tiny: Any) -> None:
    found = tiny.score(TEXTS, CANDIDATES, max_length=12)
    wanted = tiny.encode(TEXTS, max_length=12) @ tiny.encode(CANDIDATES, max_length=12).T
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_rows_may_have_candidates_of_their_own(tiny: Any) -> None:
    found = tiny.score(TEXTS, [["good", "bad"], CANDIDATES], max_length=12)
    assert found.shape == (2, 3)
    assert found[0, 2] == -torch.inf
    torch.testing.assert_close(found[1], tiny.score(TEXTS[1:], CANDIDATES, max_length=12)[0])
    with pytest.raises(UsageError, match="expected texts, or a list for each of 2 rows, found 1"):
        tiny.score(TEXTS, [["good", "bad"]], max_length=12)


def test_what_a_backbone_that_embeds_cannot_do(tiny: Any) -> None:
    assert tiny.embeds
    assert not tiny.generates
    with pytest.raises(
        BackboneError, match="embeds and generates no texts; use an encoder-decoder"
    ):
        tiny.generate(TEXTS, max_length=12)


def test_what_an_encoder_decoder_cannot_do() -> None:
    t5 = loaded("T5")
    assert t5.generates
    assert not t5.embeds
    for call in (t5.embed, t5.encode):
        with pytest.raises(BackboneError, match="scores and generates texts and does not embed"):
            call(["good"], max_length=8)
    with pytest.raises(BackboneError, match="does not embed"):
        _ = t5.forward
    assert t5.label_embeddings(["good", "bad"]).shape == (2, 0)
    inputs = t5.prepare(["good film", Row("bad")], max_length=8)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape


def test_only_backbones_ask_what_class_a_backbone_is() -> None:
    classes = {"Encoder", "EncoderDecoder", "Mini"}
    package = Path(pidep.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in ("backbones", "gallery"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                named = {one.id for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)}
                assert not named & classes, f"{path}:{node.lineno}"
