"""Records: written files are read back equal, old files are read, a wrong file is one
clear line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts import (
    BankRecord,
    GroupRecord,
    Manifest,
    MergedRecord,
    Parity,
    VisionRecord,
)
from pidep.errors import ServingError
from pidep.inputs.images import Preprocess

GOLDEN = Path(__file__).parent / "golden"
PARITY = Parity(
    rows=8,
    max_abs=1e-6,
    max_relative=1e-5,
    argmax_flips=0,
    metric="accuracy",
    metric_torch=0.875,
    metric_exported=0.875,
)
PREPROCESS = Preprocess(size=64, fit="pad")
VISION = VisionRecord(
    graph_digest="sha256:2",
    preprocess=PREPROCESS,
    preprocess_digest=PREPROCESS.digest,
    num_tokens=4,
    width=16,
    relative_error=1e-7,
)
BANK = BankRecord(
    backbone="tiny",
    backbone_digest="sha256:0",
    also_fitting=("sha256:1",),
    graph_digest="sha256:3",
    hidden_size=16,
    max_positions=32,
    max_rank=4,
    expert_store="../../../expert_store",
    groups=(GroupRecord(input="lora_a_16", factor="A", width=16, sites=("layer.0", "layer.1")),),
    parity={"film": PARITY},
    vision=VISION,
)
MERGED = MergedRecord(
    expert="film",
    digest="sha256:4",
    labels=("negative", "positive"),
    max_length=12,
    backbone_digest="sha256:0",
    graph_digest="sha256:3",
    parity=PARITY,
)
MANIFEST = Manifest(revision=7, aliases={"book": "sha256:5", "film": "sha256:4"})
RECORDS = [("bank.json", BANK), ("merged.json", MERGED), ("manifest.json", MANIFEST)]


@pytest.mark.parametrize(("name", "record"), RECORDS)
def test_what_is_written_is_read_back(tmp_path: Path, name: str, record: Any) -> None:
    record.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert type(record).read(tmp_path) == record


@pytest.mark.parametrize(("name", "record"), RECORDS)
def test_the_bytes_are_golden(tmp_path: Path, name: str, record: Any) -> None:
    """Servers of other releases read these files, so a changed byte must be a decision."""
    record.write(tmp_path)
    assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("name", ["bank", "merged"])
def test_files_of_the_first_release_are_read(name: str, tmp_path: Path) -> None:
    """The files as `pidep export` wrote them before there were schemas."""
    path = tmp_path / f"{name}.json"
    path.write_bytes((GOLDEN / f"old-{name}.json").read_bytes())
    record: Any = (BankRecord if name == "bank" else MergedRecord).read(tmp_path)
    written = json.loads(path.read_text())
    assert record.graph_digest == written["graph_digest"]
    record.write(tmp_path)
    assert json.loads(path.read_text()) == written


def test_a_manifest_is_read_under_both_keys(tmp_path: Path) -> None:
    for key in ("generation", "revision"):
        content = {"schema": 1, key: 7, "aliases": MANIFEST.aliases}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        assert Manifest.read(tmp_path) == MANIFEST


def test_an_absent_manifest_is_empty(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) == Manifest(revision=0, aliases={})


def test_naming_counts_changes_only() -> None:
    assert MANIFEST.naming({"film": "sha256:4"}) is MANIFEST
    more = MANIFEST.naming({"art": "sha256:9"})
    assert more.revision == 8
    assert list(more.aliases) == ["art", "book", "film"]


def test_the_backbones_of_a_bank_begin_with_its_own() -> None:
    assert BANK.backbones == ("sha256:0", "sha256:1")


def test_the_store_is_beside_the_repository_wherever_that_is(tmp_path: Path) -> None:
    version = tmp_path / "repo" / "pidep_bank" / "1"
    assert BANK.store(version) == tmp_path / "expert_store"


def test_a_store_behind_links_that_lead_to_themselves_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    record = BANK.model_copy(update={"expert_store": "loop/store"})
    with pytest.raises(ServingError, match=r"loop/store: no expert store"):
        record.store(tmp_path)


def test_a_group_of_another_kind_says_so() -> None:
    lora, other = BANK.groups[0], BANK.groups[0].model_copy(update={"kind": "adapter"})
    assert "kind" not in lora.model_dump()
    assert other.model_dump()["kind"] == "adapter"


DAMAGE = [
    ("bank.json", "{", r"bank\.json: malformed \(Expecting property.*\); make it again with"),
    ("bank.json", "[]", r"bank\.json: malformed \(content: Input should be a valid dictionary"),
    ("bank.json", '{"schema": 2}', r"malformed \(schema: Input should be 1, found '2'\)"),
    ("bank.json", b"\xff", r"bank\.json: malformed \(.*can't decode"),
    ("bank.json", "[" * 100_000, r"malformed \(nested too deeply\); make it again"),
    (
        "manifest.json",
        '{"schema": 1, "generation": 1e999, "aliases": {}}',
        r"damaged manifest \(generation: .*, found 'inf'\); restore it",
    ),
    (
        "manifest.json",
        '{"schema": 1, "generation": ' + "9" * 5001 + ', "aliases": {}}',
        r"damaged manifest \(9+… has more than 64 bits\)",
    ),
    ("manifest.json", '{"a":' * 100_000, r"damaged manifest \(nested too deeply\); restore it"),
    ("merged.json", "{}", r"merged\.json: malformed \(expert: Field required\); make it again"),
    ("manifest.json", "{}", r"damaged manifest \(revision: Field required\); restore it"),
    (
        "manifest.json",
        '{"schema": 1, "generation": 1, "aliases": {"../x": "sha256:0"}}',
        r"damaged manifest \(aliases\.\.\./x",
    ),
    (
        "manifest.json",
        '{"schema": 1, "generation": 1, "aliases": {}, "more": 1}',
        r"damaged manifest \(more: Extra inputs are not permitted",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    kind: Any = {"bank.json": BankRecord, "merged.json": MergedRecord}.get(name, Manifest)
    with pytest.raises(ServingError, match=message) as caught:
        kind.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [(BankRecord, "bank"), (MergedRecord, "merged")])
def test_a_missing_record_says_how_to_make_it(tmp_path: Path, kind: Any, name: str) -> None:
    message = rf"{name}\.json: no such file; make .*pidep export --form {name}"
    with pytest.raises(ServingError, match=message):
        kind.read(tmp_path)


def test_a_vision_record_with_a_wrong_preprocess_is_malformed(tmp_path: Path) -> None:
    BANK.write(tmp_path)
    path = tmp_path / "bank.json"
    content = json.loads(path.read_text())
    content["vision"]["preprocess"] = {"colour": 1}
    path.write_text(json.dumps(content))
    with pytest.raises(ServingError, match=r"malformed \(vision\.preprocess: .*colour"):
        BankRecord.read(tmp_path)
