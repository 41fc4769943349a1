"""An entry's identity: whatever decides an answer is in its digest, and is checked at load."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts import BankRecord, MergedRecord, VisionRecord
from pidep.artifacts.record import EntryRecord
from pidep.errors import ServingError
from pidep.inputs.images import Preprocess
from pidep.runtime import Bank, Merged
from tests.serving.small_bank import write_small_bank, write_small_merged

FORMS: dict[str, tuple[Callable[[Path], Path], type[EntryRecord], type[Any]]] = {
    "bank": (write_small_bank, BankRecord, Bank),
    "merged": (write_small_merged, MergedRecord, Merged),
}


@pytest.fixture(params=list(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(form: str, tmp_path: Path) -> Path:
    return FORMS[form][0](tmp_path / "repo")


def exchange_words(folder: Path) -> None:
    """Two words of one length: no size changes, every answer that has one of them does."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["film"] = words["film"], words["good"]
    path.write_text(json.dumps(tokenizer))


def change_record(folder: Path, form: str, key: str, change: Callable[[Any], Any]) -> None:
    path = folder / f"{form}.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, key: change(values[key])}))


def test_an_entry_is_opened_and_names_its_digest(form: str, folder: Path) -> None:
    record = FORMS[form][2](folder).record
    assert record.entry_digest.startswith("sha256:")
    assert (
        set(record.files)
        == {"bank": {"tokenizer.json", "model.py"}, "merged": {"tokenizer.json"}}[form]
    )


def test_words_exchanged_in_the_tokenizer_are_refused(form: str, folder: Path) -> None:
    exchange_words(folder)
    with pytest.raises(ServingError, match=r"tokenizer\.json: digest sha256:.*, expected sha256:"):
        FORMS[form][2](folder)


@pytest.mark.parametrize(
    ("form", "key", "change"),
    [
        ("merged", "labels", lambda labels: labels[::-1]),
        ("merged", "max_length", lambda length: length + 1),
        ("merged", "digest", lambda digest: digest + "0"),
        ("merged", "files", lambda files: {**files, "tokenizer.json": "sha256:0"}),
        ("bank", "groups", lambda groups: [{**one, "sites": ["layer.1"]} for one in groups]),
        ("bank", "groups", lambda groups: groups[::-1]),
        ("bank", "max_rank", lambda rank: rank + 1),
        ("bank", "max_positions", lambda positions: positions - 1),
        ("bank", "also_fitting", lambda digests: [*digests, "sha256:1"]),
        ("bank", "backbone_digest", lambda _: "sha256:other"),
        ("bank", "files", lambda files: {}),
    ],
)
def test_a_record_that_was_changed_is_refused(
    tmp_path: Path, form: str, key: str, change: Callable[[Any], Any]
) -> None:
    folder = FORMS[form][0](tmp_path / "repo")
    change_record(folder, form, key, change)
    with pytest.raises(ServingError, match=rf"{form}\.json: its content has entry digest sha256:"):
        FORMS[form][2](folder)


def test_a_sealed_record_without_its_digest_is_refused(form: str, folder: Path) -> None:
    """Whoever changes a label must not get by when the digest is deleted, too."""
    path = folder / f"{form}.json"
    values = json.loads(path.read_text())
    del values["entry_digest"]
    path.write_text(json.dumps(values))
    with pytest.raises(ServingError, match=r"expected it in the record, found none; make it again"):
        FORMS[form][2](folder)


def test_a_shim_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = write_small_bank(tmp_path / "repo")
    (folder / "model.py").write_text("# changed\n")
    with pytest.raises(ServingError, match=r"model\.py: digest .* export the model again"):
        Bank(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_plain_file_is_refused_at_once(
    form: str, folder: Path, name: str, make: Callable[[Path], None]
) -> None:
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(ServingError, match=rf"{name}: expected a plain file"):
        FORMS[form][2](folder)


def test_equal_entries_have_equal_digests_wherever_they_lie(form: str, tmp_path: Path) -> None:
    make, record, _ = FORMS[form]
    first, second = (record.read(make(tmp_path / name / "repo")) for name in ("a", "b"))
    assert first.entry_digest == second.entry_digest


def test_each_change_that_decides_an_answer_has_a_digest_of_its_own(
    form: str, folder: Path
) -> None:
    record = FORMS[form][1].read(folder)
    vision = VisionRecord(
        graph_digest="sha256:2",
        preprocess=Preprocess(size=64),
        preprocess_digest=Preprocess(size=64).digest,
        num_tokens=4,
        width=4,
    )
    padded = vision.model_copy(update={"preprocess": Preprocess(size=64, fit="pad")})
    changes: list[dict[str, Any]] = [
        {},
        {"graph_digest": "sha256:9"},
        {"vision": vision},
        {"vision": padded},
        {"files": {**(record.files or {}), "model.onnx.data": "sha256:8"}},
    ]
    found = {record.model_copy(update=change).content_digest() for change in changes}
    assert len(found) == len(changes)
    exchange_words(folder)
    assert record.sealed(folder).entry_digest not in found


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("bank", {"expert_store": "../elsewhere", "backbone": "/another/place"}),
        ("merged", {"parity": None}),
    ],
)
def test_what_decides_no_answer_is_not_in_the_digest(
    tmp_path: Path, form: str, change: dict[str, Any]
) -> None:
    record = FORMS[form][1].read(FORMS[form][0](tmp_path / "repo"))
    assert record.model_copy(update=change).content_digest() == record.entry_digest


def test_an_entry_without_a_key_that_this_release_knows_is_opened(form: str, folder: Path) -> None:
    """An older release wrote it, with the digest of the keys that it knew."""
    record, path = FORMS[form][1].read(folder), folder / f"{form}.json"
    values = json.loads(path.read_text())
    assert values.pop("schema") == 1  # has a default, as every new key has
    content = {key: value for key, value in values.items() if key not in record.no_answer}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**values, "entry_digest": f"sha256:{digest}"}))
    assert FORMS[form][2](folder).record.entry_digest == f"sha256:{digest}"


def test_an_entry_of_an_older_release_is_opened_with_a_warning(
    form: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / f"{form}.json"
    values = json.loads(path.read_text())
    del values["files"], values["entry_digest"]
    path.write_text(json.dumps(values))
    assert FORMS[form][2](folder).record.entry_digest is None
    assert "has no entry digest; export the model again" in caplog.text


def test_a_file_outside_the_entry_is_not_read(tmp_path: Path) -> None:
    folder = write_small_merged(tmp_path / "repo")
    shutil.copy(folder / "tokenizer.json", folder.parent / "outside.json")
    record = MergedRecord.read(folder)
    outside = {"files": {**(record.files or {}), "../outside.json": "sha256:0"}}
    changed = record.model_copy(update=outside)
    changed = changed.model_copy(update={"entry_digest": changed.content_digest()})
    changed.write(folder)
    with pytest.raises(ServingError, match=r"'\.\./outside\.json' is no file of the entry"):
        Merged(folder)
