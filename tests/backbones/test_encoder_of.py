"""A backbone from a model and a tokenizer that are loaded already."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from pidep.backbones.encoder import encoder_of
from pidep.backbones.load import load_any_backbone, remember_backbone
from pidep.errors import BackboneError


@pytest.fixture
def loaded(tiny_folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tiny_folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_folder)


def test_it_is_the_backbone_of_the_same_folder(loaded: tuple[Any, Any], tiny: Any) -> None:
    found = encoder_of(*loaded, name="mine")
    assert (found.name, found.digest) == ("mine", tiny.digest)
    texts = ["a good film", "awful"]
    assert torch.equal(found.encode(texts, max_length=8), tiny.encode(texts, max_length=8))
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert not found.model.training


def test_the_default_name_has_the_class_and_the_digest(loaded: tuple[Any, Any]) -> None:
    found = encoder_of(*loaded)
    assert found.name == f"BertModel-{found.digest.removeprefix('sha256:')[:12]}"


def test_other_models_are_refused(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    with pytest.raises(BackboneError, match="fast tokenizer"):
        encoder_of(model, object())
    with pytest.raises(BackboneError, match="weights in float32"):
        encoder_of(model.to(torch.float16), tokenizer)


def test_a_backbone_is_found_by_name_while_the_caller_keeps_it(loaded: tuple[Any, Any]) -> None:
    found = encoder_of(*loaded, name="kept")
    remember_backbone(found)
    assert load_any_backbone("kept") is found
    del found
    gc.collect()
    with pytest.raises(BackboneError, match="'kept'"):
        load_any_backbone("kept")


def test_the_name_of_an_installed_backbone_is_taken(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(BackboneError, match="'minilm': the name is taken"):
        remember_backbone(encoder_of(*loaded, name="minilm"))
