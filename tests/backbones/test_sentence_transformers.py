"""Embeddings as a repository of sentence-transformers declares them, or a refusal by name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pidep.backbones.encoder import Encoder, load_encoder
from pidep.backbones.sentence_transformers import warn_if_unknown
from pidep.errors import BackboneError

TEXTS = ["the film was very good", "Awful"]
OLD, NEW = "sentence_transformers.models.", "sentence_transformers.base.modules."
TODAY = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
"""What version 6 writes as `sentence_bert_config.json`."""

Repository = Callable[..., Path]


def old(*modes: str) -> dict[str, Any]:
    """A pooling as versions before 6 write it."""
    every = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    return {f"pooling_mode_{mode}": mode in modes for mode in every}


@pytest.fixture
def repository(tiny_folder: Path, tmp_path: Path) -> Repository:
    """A copy of the tiny backbone with files of sentence-transformers."""

    def make(
        pooling: Any = None,
        *,
        modules: tuple[str, ...] = ("Transformer", "Pooling"),
        package: str = OLD,
        settings: Any = None,
        comparison: Any = None,
    ) -> Path:
        folder = tmp_path / "repository"
        shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
        paths = ["", *(f"{place}_{kind}" for place, kind in enumerate(modules) if place)]
        listed = [
            {
                "idx": place,
                "name": str(place),
                "path": path,
                "type": f"{package}{kind.lower()}.{kind}",
            }
            for place, (path, kind) in enumerate(zip(paths, modules, strict=True))
        ]
        files = {
            "modules.json": listed,
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": settings,
            "config_sentence_transformers.json": comparison,
        }
        (folder / "1_Pooling").mkdir(exist_ok=True)
        for name, content in files.items():
            if content is not None:
                (folder / name).write_text(json.dumps(content))
        return folder

    return make


def embedded(encoder: Encoder, pooling: str) -> torch.Tensor:
    inputs = encoder.prepare(TEXTS, max_length=32)
    with torch.no_grad():
        hidden = encoder.model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].bool()
    rows = [states[seen] for states, seen in zip(hidden, mask, strict=True)]
    pooled = {
        "cls": lambda row: row[0],
        "mean": lambda row: row.mean(0),
        "max": lambda row: row.max(0).values,
        "lasttoken": lambda row: row[-1],
    }[pooling]
    return torch.nn.functional.normalize(torch.stack([pooled(row) for row in rows]), dim=1)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (old("cls_token"), "cls"),
        (old("max_tokens"), "max"),
        (old("mean_sqrt_len_tokens"), "mean"),  # the same direction
        (old(), "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 16, "include_prompt": True}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "lasttoken"),
    ],
)
def test_the_declared_pooling(repository: Repository, config: Any, expected: str) -> None:
    package = OLD if "pooling_mode" not in config else NEW
    encoder = load_encoder(repository(config, package=package))
    assert encoder.pooling == expected
    found = encoder.encode(TEXTS, max_length=32)
    torch.testing.assert_close(found, embedded(encoder, expected), atol=1e-5, rtol=0)


def test_a_pooling_is_in_the_digest(repository: Repository, tiny: Encoder) -> None:
    digests = {load_encoder(repository(old(mode))).digest for mode in ("cls_token", "mean_tokens")}
    assert len(digests) == 2
    assert tiny.digest in digests  # what declares nothing is pooled by the mean


def test_a_hub_id_is_read_like_a_folder(
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit = "0" * 40
    place = tmp_path / "hub" / "models--me--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(repository(old("cls_token")), place / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_encoder("me/tiny").pooling == "cls"
    assert "not in the hub" not in caplog.text


def test_a_hub_id_without_modules_in_the_cache_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        warn_if_unknown("me/none")
    assert "modules.json is not in the hub's cache" in caplog.text


def test_where_texts_are_cut_and_that_they_are_lowercased(
    repository: Repository, tiny: Encoder
) -> None:
    folder = repository(old("mean_tokens"), settings={"max_seq_length": 4, "do_lower_case": True})
    encoder = load_encoder(folder)
    assert encoder.max_positions == 4
    assert encoder.digest != tiny.digest
    (folder / "tokenizer.json").write_text(
        (folder / "tokenizer.json").read_text().replace('"lowercase": true', '"lowercase": false')
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"})
    )
    lowered = load_encoder(folder)
    upper, lower = (lowered.tokenize([text], max_length=9)[0].tolist() for text in ("FILM", "film"))
    assert upper == lower


def test_version_6_keeps_the_length_with_the_tokenizer(repository: Repository) -> None:
    folder = repository({"pooling_mode": "mean"}, package=NEW, settings=TODAY)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 5}))
    assert load_encoder(folder).max_positions == 5


def test_a_transformer_in_a_folder_of_its_own(repository: Repository) -> None:
    folder = repository(old("cls_token"))
    whole = load_encoder(folder)
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in [one for one in folder.iterdir() if one.is_file() and one.name != "modules.json"]:
        path.rename(inner / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert load_encoder(folder).digest == whole.digest


QUERY = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modules": ("Transformer", "Pooling", "Dense")}, "has Transformer, Pooling, Dense; exp"),
        ({"modules": ("Transformer",)}, "modules.json has Transformer; expected Transformer, Pool"),
        ({"pooling": old("cls_token", "mean_tokens")}, r"its pooling is cls \+ mean, expected one"),
        ({"pooling": {"pooling_mode": "attention"}}, "its pooling is attention, expected one of"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "leaves the prompt out"),
        ({"pooling": None}, "1_Pooling/config.json is missing; copy the whole repository"),
        ({"comparison": QUERY}, "puts the prompt 'find: ' before every text"),
        ({"comparison": {"similarity_fn_name": "dot"}}, "not normalised and compared by 'dot'"),
        ({"settings": {**TODAY, "transformer_task": "fill-mask"}}, r"last_hidden_state \(fill-m"),
        ({"settings": {**TODAY, "module_output_name": "sentence_embedding"}}, "gives sentence_emb"),
    ],
)
def test_other_embeddings_are_refused_by_name(
    repository: Repository, given: dict[str, Any], message: str
) -> None:
    folder = repository(**{"pooling": old("mean_tokens"), **given})
    with pytest.raises(BackboneError, match=message):
        load_encoder(folder, name="it")


def test_a_prompt_that_nobody_asks_for_and_a_normalised_dot_product(
    repository: Repository, tiny: Encoder
) -> None:
    folder = repository(
        {"pooling_mode": "mean"},
        modules=("Transformer", "Pooling", "Normalize"),
        package=NEW,
        settings=TODAY,
        comparison={
            "prompts": {"query": "find: ", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
        },
    )
    assert load_encoder(folder).digest == tiny.digest
