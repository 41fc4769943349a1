"""Experts that cannot answer are refused wherever one is written, read or put into a bank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts import BankRecord
from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.experts.validation import require_valid
from pidep.files.tensor_file import read_tensors, tensor_bytes
from pidep.runtime.fit import check_expert
from pidep.serving import ExpertStore
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_small_bank

SITE = "layer.0"


def with_factor(name: str, array: Any) -> Expert:
    expert = small_expert()
    return replace(expert, sites={SITE: {**expert.sites[SITE], name: array}})


def filled(value: float, dtype: Any = np.float32) -> np.ndarray:
    return np.full((2, 4), value, dtype)


WRONG: list[tuple[str, Callable[[], Expert], str]] = [
    ("integer label", lambda: replace(small_expert(), labels=(0, 1)), "label 0 is a int"),
    ("surrogate label", lambda: replace(small_expert(), labels=("a", "\ud800")), "is not UTF-8"),
    ("empty label", lambda: replace(small_expert(), labels=("a", "")), "empty or repeated"),
    ("label twice", lambda: replace(small_expert(), labels=("a", "a")), "empty or repeated"),
    (
        "bytes text",
        lambda: replace(small_expert(), label_texts=(b"a", "b")),
        "text b'a' is a bytes",
    ),
    ("labels", lambda: replace(small_expert(), labels=("a",)), "1 labels but label_embeddings is"),
    (
        "integer label embeddings",
        lambda: replace(small_expert(), label_embeddings=np.eye(2, 4, dtype=np.int64)),
        r"label_embeddings is int64 \(2, 4\)",
    ),
    (
        "flat label embeddings",
        lambda: replace(small_expert(), label_embeddings=np.ones(2, np.float32)),
        r"label_embeddings is float32 \(2,\)",
    ),
    (
        "label embeddings that overflow",
        lambda: replace(small_expert(), label_embeddings=np.full((2, 4), 3e38, np.float32)),
        "logit_scale 20 times the label embeddings is not finite",
    ),
    (
        "length 0",
        lambda: replace(small_expert(), max_length=0),
        "max_length is 0, expected a whole",
    ),
    ("length 1.5", lambda: replace(small_expert(), max_length=1.5), "max_length is 1.5"),
    ("length True", lambda: replace(small_expert(), max_length=True), "max_length is True"),
    ("answer", lambda: replace(small_expert(), max_answer_length=-1), "max_answer_length is -1"),
    ("scale", lambda: replace(small_expert(), logit_scale=float("nan")), "logit_scale is nan"),
    ("scale 1e39", lambda: replace(small_expert(), logit_scale=1e39), "logit_scale is 1e\\+39"),
    ("scaling", lambda: replace(small_expert(), scaling=float("inf")), "scaling is inf"),
    ("scaling 10**400", lambda: replace(small_expert(), scaling=10**400), "scaling is 1000"),
    ("scaling 10**6000", lambda: replace(small_expert(), scaling=10**6000), "thousands of digits"),
    ("text scaling", lambda: replace(small_expert(), scaling="2"), "scaling is '2'"),
    ("no sites", lambda: replace(small_expert(), sites={}), "has no sites"),
    ("NaN", lambda: with_factor("lora_A", filled(np.nan)), r"layer\.0\.lora_A .*NaN or Inf"),
    ("float64", lambda: with_factor("lora_A", filled(1e39, np.float64)), r"lora_A is float64"),
    ("integers", lambda: with_factor("lora_A", filled(1, np.int8)), r"lora_A is int8 \(2, 4\)"),
    ("complex", lambda: with_factor("lora_A", filled(1, np.complex64)), "lora_A is complex64"),
    ("list", lambda: with_factor("lora_A", [[1.0]]), "lora_A is a list"),
    (
        "3e38",
        lambda: with_factor("lora_B", filled(3e38).T),
        r"layer\.0\.lora_B times the scaling 2 is not finite",
    ),
    (
        "ranks",
        lambda: with_factor("lora_A", filled(1)[:1]),
        r"lora_A \(1, 4\), lora_B \(4, 2\)",
    ),
    ("vector", lambda: with_factor("lora_A", filled(1)[0]), r"lora_A \(4,\)"),
    (
        "more",
        lambda: with_factor("lora_C", filled(1)),
        "has lora_A, lora_B, lora_C, an expert of kind 'lora'",
    ),
    (
        "less",
        lambda: replace(small_expert(), sites={SITE: {"lora_A": filled(1)}}),
        "has lora_A, an expert of kind 'lora' has lora_A, lora_B",
    ),
    (
        "another kind's",
        lambda: replace(small_expert(), kind="prompt"),
        "has lora_A, lora_B, an expert of kind 'prompt' has prompt",
    ),
    ("no kind", lambda: replace(small_expert(), kind="dora"), "expert kind 'dora'"),
]


@pytest.mark.parametrize(
    ("make", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_what_cannot_answer_is_neither_written_nor_published(
    tmp_path: Path, make: Callable[[], Expert], message: str
) -> None:
    expert = make()
    with pytest.raises(ExpertError, match=message) as raised:
        require_valid(expert)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    with pytest.raises(ExpertError):
        write_expert(expert, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    store = ExpertStore(tmp_path / "store")
    with pytest.raises(ExpertError):
        store.publish(expert, "film")
    assert store.manifest().aliases == {}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


GOOD: dict[str, dict[str, np.ndarray]] = {
    "adapter": {"down": ones(2, 4), "down_bias": ones(2), "up": ones(4, 2), "up_bias": ones(4)},
    "prefix": {"key": ones(6, 4), "value": ones(6, 4), "bias": ones(3, 2)},
    "prompt": {"prompt": ones(2, 4)},
    "bitfit": {"bias": ones(4)},
}


@pytest.mark.parametrize("kind", list(GOOD))
def test_each_kinds_tensors_have_their_axes(kind: str) -> None:
    require_valid(replace(small_expert(), kind=kind, sites={SITE: GOOD[kind]}))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("adapter", {"up": ones(4, 3)}, r"up \(4, 3\), .*expected .*up \(D, W\)"),
        ("adapter", {"down_bias": ones(1, 2)}, r"down_bias \(1, 2\)"),
        ("adapter", {"down": ones(2)}, r"down \(2,\)"),
        ("prefix", {"value": ones(5, 4)}, r"value \(5, 4\)"),
        ("prefix", {"bias": ones(2, 2)}, r"bias is \(2, 2\) for 6 virtual tokens"),
        ("prompt", {"prompt": ones(0, 4)}, r"prompt \(0, 4\)"),
        ("prompt", {"more": ones(2, 4)}, "has more, prompt, an expert of kind 'prompt' has prompt"),
        ("bitfit", {"bias": ones(1, 4)}, r"bias \(1, 4\)"),
    ],
)
def test_tensors_of_other_axes_are_refused(
    kind: str, change: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ExpertError, match=message):
        require_valid(replace(small_expert(), kind=kind, sites={SITE: {**GOOD[kind], **change}}))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_any_width_are_good(dtype: Any) -> None:
    require_valid(with_factor("lora_A", filled(0.5, dtype)))


def test_rows_with_their_own_candidates_need_no_label() -> None:
    none = np.zeros((0, 4), np.float32)
    require_valid(replace(small_expert(), labels=(), label_texts=(), label_embeddings=none))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"label_embeddings": np.eye(2, 5, dtype=np.float32)},
            "have width 5, the backbone's have 4",
        ),
        (
            {"label_embeddings": np.eye(2, 3, dtype=np.float32)},
            "have width 3, the backbone's have 4",
        ),
        ({"max_length": 100_000}, "max_length is 100000, the backbone reads at most 512 tokens"),
        ({"max_length": 513}, "max_length is 513"),
        ({"labels": (0, 1)}, "label 0 is a int"),
    ],
)
def test_a_bank_refuses_what_its_graph_cannot_answer_with(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    record = BankRecord.read(write_small_bank(tmp_path))
    with pytest.raises(ExpertError, match=message):
        check_expert(record, replace(small_expert(), **change))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("labels", "[0, 1]", "'labels.0'"),
        ("labels", '["a", "\\ud800"]', "surrogates not allowed"),
        ("labels", '["a", "a"]', "repeated"),
        ("max_length", "0", "max_length is 0"),
        ("max_length", "1e999", "'max_length'"),
        ("max_length", "1" + "0" * 400, "max_length|expert.json"),
        ("logit_scale", "1e39", "logit_scale is 1e"),
        ("logit_scale", "NaN", "'logit_scale'"),
        ("scaling", "1e999", "'scaling'"),
        ("scaling", "1" + "0" * 400, "64 bits"),
        ("metrics", '{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
    ],
)
def test_a_record_that_cannot_answer_is_not_read(
    tmp_path: Path, key: str, text: str, message: str
) -> None:
    folder = write_expert(small_expert(), tmp_path / "e")
    record = json.loads((folder / "expert.json").read_text())
    changed = json.dumps({**record, key: "HERE"}).replace('"HERE"', text)
    (folder / "expert.json").write_text(changed)
    with pytest.raises(ExpertError, match=message):
        read_expert(folder)


@pytest.mark.parametrize("key", ["lora_alpha", "r"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e999", "null", "true", '"8"', "-1e39"])
def test_a_scaling_that_no_float_holds_is_not_read(tmp_path: Path, key: str, value: str) -> None:
    folder = write_expert(small_expert(), tmp_path / "e")
    path = folder / "adapter_config.json"
    config = json.dumps({**json.loads(path.read_text()), key: "HERE"})
    path.write_text(config.replace('"HERE"', value))
    with pytest.raises(ExpertError, match=r"adapter_config\.json"):
        read_expert(folder)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "labels.safetensors"])
@pytest.mark.parametrize(
    ("value", "dtype"), [(1e39, np.float64), (np.inf, np.float16), (np.nan, np.float32)]
)
def test_tensors_that_overflow_in_fp32_are_not_read(
    tmp_path: Path, file: str, value: float, dtype: Any
) -> None:
    folder = write_expert(small_expert(), tmp_path / "e")
    tensors = read_tensors(folder / file)
    name = next(iter(tensors))
    changed = {**tensors, name: np.full(tensors[name].shape, value, dtype)}
    (folder / file).write_bytes(tensor_bytes(changed))
    with pytest.raises(ExpertError, match=rf"{file}: .*NaN or Inf"):
        read_expert(folder)
