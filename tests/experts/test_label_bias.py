"""The bias of an expert's labels: kept, covered by the digest, and absent from older experts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.experts.mixed import MixedExpert
from pidep.experts.mixture_folder import read_mixture, write_mixture
from pidep.inputs.template import Template
from tests.conftest import make_expert

BIAS = (0.1, -1.3862943649291992)
OLDER = {
    1: "sha256:f8e68e49287a77d73e3aef942c1d8de2df9cdf3289f3bd9b1a7824591467d19b",
    3: "sha256:4fd7e4e88aef4c3843205be716ca0df35a7c1f4036a24e930e5caf70a587f759",
}
"""Digests of `fixed()` that releases without a bias gave: without and with a template."""


def fixed() -> Expert:
    """An expert of fixed numbers."""
    factors = {
        "lora_A": np.arange(8, dtype=np.float32).reshape(2, 4) / 8,
        "lora_B": np.arange(6, dtype=np.float32).reshape(3, 2) / 16,
    }
    return Expert(
        name="fixed",
        backbone_digest="sha256:" + "0" * 64,
        sites={"encoder.layer.0.query": factors},
        scaling=2.0,
        labels=("negative", "positive"),
        label_texts=("negative", "positive"),
        label_embeddings=np.eye(2, 4, dtype=np.float32),
        logit_scale=20.0,
        max_length=12,
    )


def test_digests_and_records_of_experts_without_a_bias_are_those_of_older_releases(
    tmp_path: Path,
) -> None:
    experts = {1: fixed(), 3: replace(fixed(), template=Template("{body}"))}
    for schema, expert in experts.items():
        assert (expert.schema, expert.digest) == (schema, OLDER[schema])
        folder = write_expert(expert, tmp_path / str(schema))
        assert "label_bias" not in json.loads((folder / "expert.json").read_text())
        assert read_expert(folder).label_bias == ()


@pytest.mark.parametrize("template", [None, Template("{body}")])
def test_a_bias_is_kept_and_changes_the_digest(tmp_path: Path, template: Any) -> None:
    plain = replace(fixed(), template=template)
    expert = replace(plain, label_bias=BIAS)
    again = read_expert(write_expert(expert, tmp_path / "e"))
    assert (again.label_bias, again.template, again.schema) == (BIAS, template, 4)
    others = (plain, replace(expert, label_bias=BIAS[::-1]))
    assert again.digest == expert.digest not in {other.digest for other in others}


def test_a_changed_bias_is_a_digest_mismatch(tmp_path: Path) -> None:
    folder = write_expert(replace(fixed(), label_bias=BIAS), tmp_path / "e")
    path = folder / "expert.json"
    record = json.loads(path.read_text())
    record["label_bias"][0] += 1e-7
    path.write_text(json.dumps(record))
    with pytest.raises(ExpertError, match="digest mismatch"):
        read_expert(folder)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ((1.0,), r"label_bias has 1 numbers for 2 labels, expected one each"),
        ((float("nan"), 0.0), r"label_bias holds nan, expected numbers from -100 to 100"),
        ((0.0, 101.0), r"label_bias holds 101\.0"),
    ],
)
def test_a_bias_that_cannot_be_added_is_refused(tmp_path: Path, bias: Any, message: str) -> None:
    with pytest.raises(ExpertError, match=message):
        write_expert(replace(fixed(), label_bias=bias), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_the_bias_of_a_mixture_is_its_heads(tiny: Any, tmp_path: Path) -> None:
    parts = (make_expert(tiny), make_expert(tiny, name="book", seed=1))
    alphas = dict.fromkeys(parts[0].sites, (0.25, 0.75))
    mixture = MixedExpert(replace(parts[0], sites={}, scaling=1.0), parts, alphas)
    biased = replace(mixture, head=replace(mixture.head, label_bias=BIAS))
    assert biased.digest != mixture.digest
    again = read_mixture(write_mixture(biased, tmp_path / "m"))
    assert (again.head.label_bias, again.digest) == (BIAS, biased.digest)
