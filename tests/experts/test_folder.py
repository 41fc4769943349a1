import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidep.errors import ExpertError
from pidep.experts.folder import Expert, check_name, read_expert, write_expert
from pidep.files.tensor_file import read_tensors
from pidep.inputs.template import Template
from tests.conftest import make_expert


def test_save_then_load_is_the_identity(tiny, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    again = read_expert(write_expert(expert, tmp_path / "e"))
    assert again.digest == expert.digest
    assert all(
        np.array_equal(again.tensors()[name], value) for name, value in expert.tensors().items()
    )


def test_transposed_arrays_are_saved_as_what_they_hold(tiny, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    sites = {
        site: {name: np.asfortranarray(array) for name, array in tensors.items()}
        for site, tensors in expert.sites.items()
    }
    transposed = replace(expert, sites=sites)
    assert transposed.digest == expert.digest
    again = read_expert(
        write_expert(
            transposed, tmp_path / "e", fisher={"a": np.arange(6, dtype=np.float32).reshape(2, 3).T}
        )
    )
    assert again.digest == expert.digest
    assert all(
        np.array_equal(again.tensors()[name], value) for name, value in expert.tensors().items()
    )
    assert read_tensors(tmp_path / "e" / "fisher.safetensors")["a"].tolist() == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("rank_pattern", {"x": 4}), ("bias", "all"), ("modules_to_save", ["c"])],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tiny, tmp_path: Path, key: str, value: object
) -> None:
    folder = write_expert(make_expert(tiny), tmp_path / "e")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ExpertError, match=f"{key}=.* is not supported"):
        read_expert(folder)


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\n", "x" * 200, "\u202etxt", ".hidden"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ExpertError, match="expert name"):
        check_name(name)


def test_the_template_is_kept_and_decides_the_digest(tiny, tmp_path: Path) -> None:
    old = make_expert(tiny)
    new = replace(old, template=Template("{subject}: {body}"))
    turned = replace(old, template=Template("{body}: {subject}"))
    picture = replace(old, template=Template("{subject}: {body}", image="photo"))
    assert len({one.digest for one in (old, new, turned, picture)}) == 4
    for number, expert in enumerate((old, new, picture)):
        again = read_expert(write_expert(expert, tmp_path / str(number)))
        assert (again.template, again.digest) == (expert.template, expert.digest)
    assert "template" not in json.loads((tmp_path / "0" / "expert.json").read_text())
    path = tmp_path / "1" / "expert.json"
    path.write_text(path.read_text().replace("{subject}: {body}", "{subject}: {text}"))
    with pytest.raises(ExpertError, match="digest mismatch"):
        read_expert(tmp_path / "1")
    path.write_text(path.read_text().replace("{subject}: {text}", "{subject.__class__}"))
    with pytest.raises(ExpertError, match=r"entry 'template' \(.*expected plain \{column\}"):
        read_expert(tmp_path / "1")


def test_an_expert_of_texts_keeps_its_template(tiny, tmp_path: Path) -> None:
    expert = replace(
        make_expert(tiny),
        label_embeddings=np.zeros((2, 0), np.float32),
        max_answer_length=7,
        template=Template("summarise: {body}"),
    )
    again = read_expert(write_expert(expert, tmp_path / "e"))
    assert (again.digest, again.template) == (expert.digest, expert.template)
    assert again.scores_texts


def test_metrics_do_not_change_the_digest(tiny) -> None:
    expert = make_expert(tiny)
    assert replace(expert, metrics={"accuracy": 1.0}).digest == expert.digest
    assert replace(expert, scaling=1.0).digest != expert.digest


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) / 7).astype(np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("kind", "site", "shapes", "digest"),
    [
        ("lora", "query", {"lora_A": (2, 3), "lora_B": (4, 2)}, "808a8f393030dd39"),
        ("prefix", "attention", {"key": (2, 3), "value": (2, 3)}, "0336e19f76a8c31e"),
        ("prompt", "words", {"prompt": (2, 3)}, "270c1468f818ba9e"),
    ],
)
def test_digests_stay_what_they_were(
    kind: str, site: str, shapes: dict[str, tuple[int, ...]], digest: str
) -> None:
    """Golden digests: published experts and the stores of running servers are named by them."""
    expert = Expert(
        name="e",
        backbone_digest="sha256:0",
        sites={
            f"layer.{layer}.{site}": {name: ramp(*shape) for name, shape in shapes.items()}
            for layer in (10, 2)
        },
        scaling=2.0 if kind == "lora" else 1.0,
        labels=("a", "b"),
        label_texts=("x", "y"),
        label_embeddings=ramp(2, 3),
        logit_scale=20.0,
        max_length=8,
        kind=kind,
    )
    assert expert.digest.startswith(f"sha256:{digest}")


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_an_expert_written_before_pefts_format_was_used_is_read(kind: str, tmp_path: Path) -> None:
    sites = {
        "prefix": {f"layer.{layer}": {"key": ramp(2, 3), "value": ramp(2, 3)} for layer in (0, 1)},
        "prompt": {"words": {"prompt": ramp(2, 3)}},
    }
    expert = Expert(
        name="e",
        backbone_digest="sha256:0",
        sites=sites[kind],
        scaling=1.0,
        labels=("a",),
        label_texts=("x",),
        label_embeddings=ramp(1, 3),
        logit_scale=20.0,
        max_length=8,
        kind=kind,
        peft=False,
    )
    folder = write_expert(expert, tmp_path / "e")
    assert (folder / "expert.safetensors").is_file()
    assert read_expert(folder).digest == expert.digest
