"""Encoder-decoders from folders: a saved model answers the same, an incomplete one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pidep.backbones.load_encoder_decoder import is_encoder_decoder, load_encoder_decoder
from pidep.backbones.seq2seq import Florence
from pidep.errors import BackboneError
from tests.backbones.tiny_models import (
    CANDIDATES,
    CLASSES,
    IMAGES,
    folder_of,
    loaded,
    rows_of,
    save_model,
)


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_is_loaded_the_same_again(name: str, tmp_path: Path) -> None:
    first, again = loaded(name), load_encoder_decoder(str(save_model(tmp_path, name)))
    assert is_encoder_decoder(tmp_path)
    assert again.digest == first.digest
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert not again.model.training
    with torch.no_grad():
        both = [one.score(rows_of(name), CANDIDATES, max_length=16) for one in (first, again)]
    assert torch.equal(*both)


@pytest.mark.parametrize("name", IMAGES)
def test_how_images_are_prepared_is_in_the_digest(name: str, tmp_path: Path) -> None:
    save_model(tmp_path, name)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5, 0.5, 0.5]}))
    assert load_encoder_decoder(str(tmp_path)).digest != loaded(name).digest
    path.unlink()
    with pytest.raises(
        BackboneError,
        match=r"sees images and has no preprocessor_config.json; save its processor beside it",
    ):
        load_encoder_decoder(str(tmp_path))


def test_other_models_are_no_encoder_decoder(tiny_folder: Path, tmp_path: Path) -> None:
    assert not is_encoder_decoder(tiny_folder)
    assert not is_encoder_decoder(tmp_path)
    with pytest.raises(
        BackboneError,
        match=(
            r"expected a folder or a hub id of an encoder-decoder: T5, .*; found bert \(BertModel\)"
        ),
    ):
        load_encoder_decoder(str(tiny_folder))
    with pytest.raises(
        BackboneError,
        match=r"backbone '.*nowhere': no such folder; give the place where it lies now",
    ):
        load_encoder_decoder(str(tmp_path / "nowhere"))
    config = json.loads((folder_of("BLIP captions") / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["BlipForImageTextRetrieval"]})
    )
    with pytest.raises(BackboneError, match=r"found blip \(BlipForImageTextRetrieval\)"):
        load_encoder_decoder(str(tmp_path))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    path = save_model(tmp_path, "T5") / "model.safetensors"
    kept = load_file(path)
    del kept["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(
        BackboneError,
        match=(
            r"1 weights of T5ForConditionalGeneration are not there, e.g. encoder.block.1.*; save "
            r"the whole"
        ),
    ):
        load_encoder_decoder(str(tmp_path))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "T5")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="expected a folder or a hub id of an encoder-decoder"):
        load_encoder_decoder(str(tmp_path))


def test_a_config_that_does_not_say_how_answers_begin(tmp_path: Path) -> None:
    save_model(tmp_path, "T5")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder_start_token_id": None}))
    with pytest.raises(
        BackboneError,
        match=(
            r"decoder_start_token_id None and eos_token_id 3; expected numbers, add them to "
            r"config.json"
        ),
    ):
        load_encoder_decoder(str(tmp_path))


def test_task_words_are_those_of_florences_processor() -> None:
    from transformers.models.florence2.processing_florence2 import Florence2Processor

    class Tables(SimpleNamespace):
        """The attributes that the processor's method reads, as its __init__ sets them."""

    tables = Tables(
        image_token="<image>", image_token_id=4, image_seq_length=5, all_special_tokens=[]
    )
    made = object.__new__(Florence2Processor)
    with pytest.raises(
        TypeError
    ):  # transformers checks the types of the parts after building its tables
        Florence2Processor.__init__(made, image_processor=tables, tokenizer=tables)
    reader = Florence.__new__(Florence)
    for word in made.task_prompts_without_inputs:
        assert reader.source(word) == made._construct_prompts(word)[0]
    for word in made.task_prompts_with_input:
        assert (
            reader.source(f"{word} a red cat ") == made._construct_prompts(f"{word} a red cat ")[0]
        )
    assert reader.source("what is <this> ") == "what is <this> "
