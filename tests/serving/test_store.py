"""The store: whole versions, one manifest, nothing half done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts import Manifest
from pidep.errors import ExpertError, ServingError
from pidep.experts.folder import Expert, write_expert
from pidep.experts.mixed import MixedExpert
from pidep.inputs.template import Template
from pidep.serving import ExpertStore
from tests.cli.run import contents
from tests.serving.experts import small_expert

Fail = Callable[[str], None]


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore(tmp_path / "store")


def test_the_manifests_bytes_are_golden(store: ExpertStore) -> None:
    expert = small_expert()
    store.publish(expert, "film")
    store.publish(expert, "Book.v-2")
    assert store.manifest_path.read_text() == (
        "{\n"
        '  "schema": 1,\n'
        '  "generation": 2,\n'
        '  "aliases": {\n'
        f'    "Book.v-2": "{expert.digest}",\n'
        f'    "film": "{expert.digest}"\n'
        "  }\n"
        "}\n"
    )


def test_what_is_published_is_loaded(store: ExpertStore) -> None:
    first, second = small_expert(), small_expert(name="book", seed=1)
    assert store.publish(first, "film").new == first.digest
    store.publish(second, "book")
    assert store.load(first.digest).digest == first.digest
    found = {name: expert.digest for name, expert in store.published().items()}
    assert found == {"film": first.digest, "book": second.digest}


def test_publishing_again_changes_nothing(store: ExpertStore) -> None:
    expert = small_expert()
    store.publish(expert, "film")
    before = contents(store.folder)
    store.publish(expert, "film")
    assert contents(store.folder) == before
    assert store.manifest().revision == 1


def test_a_new_version_keeps_the_old_one(store: ExpertStore) -> None:
    old, new = small_expert(), small_expert(seed=1)
    store.publish(old, "film")
    store.publish(new, "film")
    assert store.manifest() == Manifest(revision=2, aliases={"film": new.digest})
    assert store.load(old.digest).digest == old.digest


def test_a_damaged_version_is_written_anew(store: ExpertStore) -> None:
    expert = small_expert()
    digest = store.publish(expert, "film").new
    (store.version(digest) / "labels.safetensors").write_bytes(b"")
    with pytest.raises(ExpertError):
        store.load(digest)
    store.publish(expert, "film")
    assert store.load(digest).digest == digest


def test_a_version_of_another_digest_is_refused(store: ExpertStore) -> None:
    digest = store.publish(small_expert(), "film").new
    write_expert(small_expert(seed=9), store.version(digest))
    with pytest.raises(ExpertError, match=r"holds sha256:.*, expected sha256:.*; publish it again"):
        store.load(digest)


def test_a_name_that_cannot_be_a_folder_is_refused(store: ExpertStore) -> None:
    with pytest.raises(ExpertError, match=r"expert name '\.\./film'"):
        store.publish(small_expert(), "../film")
    assert not store.folder.exists()


def test_a_damaged_manifest_is_not_written_over(store: ExpertStore) -> None:
    store.folder.mkdir()
    store.manifest_path.write_text("{")
    with pytest.raises(ServingError, match="damaged manifest"):
        store.publish(small_expert(), "film")
    assert store.manifest_path.read_text() == "{"
    assert not (store.folder / "versions").exists()


def stage_and_fail(store: ExpertStore, expert: Expert) -> None:
    with store.staged({"film": expert}):
        assert store.load(expert.digest).digest == expert.digest
        raise RuntimeError("the next step")


def test_an_error_before_the_commit_leaves_the_store_as_it_was(store: ExpertStore) -> None:
    store.publish(small_expert(), "film")
    before = contents(store.folder)
    with pytest.raises(RuntimeError, match="the next step"):
        stage_and_fail(store, small_expert(seed=1))
    assert contents(store.folder) == before


def test_an_error_leaves_a_version_that_is_published_already(store: ExpertStore) -> None:
    expert = small_expert()
    store.publish(expert, "book")
    with pytest.raises(RuntimeError, match="the next step"):
        stage_and_fail(store, expert)
    assert store.manifest().aliases == {"book": expert.digest}
    assert store.load(expert.digest).digest == expert.digest


def test_a_manifest_that_cannot_be_written_leaves_the_store_as_it_was(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(small_expert(), "film")
    before, replace = contents(store.folder), os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "manifest.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.publish(small_expert(seed=1), "film")
    assert contents(store.folder) == before


def test_a_store_that_was_changed_meanwhile_is_not_changed_again(store: ExpertStore) -> None:
    before = store.manifest()
    store.publish(small_expert(), "film")
    experts = {"book": small_expert(seed=1)}
    with pytest.raises(ServingError, match="expected revision 0, found 1; run the command again"):
        with store.staged(experts, since=before):
            pytest.fail("the block must not run")
    assert set(store.manifest().aliases) == {"film"}


def test_a_lost_manifest_beside_versions_is_not_written_over(store: ExpertStore) -> None:
    """A new manifest would name one expert and drop all others."""
    store.publish(small_expert(), "film")
    store.publish(small_expert(name="book", seed=1), "book")
    whole = store.manifest_path.read_bytes()
    store.manifest_path.unlink()
    before = contents(store.folder)
    message = r"manifest\.json: is gone, .* restore it, or move .*versions away and publish every"
    with pytest.raises(ServingError, match=message):
        store.publish(small_expert(name="art", seed=2), "art")
    with pytest.raises(ServingError, match=message):
        store.manifest()
    assert contents(store.folder) == before
    store.manifest_path.write_bytes(whole)
    store.publish(small_expert(name="art", seed=2), "art")
    assert list(store.manifest().aliases) == ["art", "book", "film"]


def test_a_link_that_leads_nowhere_is_a_lost_manifest(store: ExpertStore) -> None:
    store.publish(small_expert(), "film")
    store.manifest_path.unlink()
    store.manifest_path.symlink_to("elsewhere.json")
    with pytest.raises(ServingError, match="is gone"):
        store.publish(small_expert(seed=1), "film")
    assert store.manifest_path.is_symlink()


def test_a_crash_before_the_first_commit_is_harmless(store: ExpertStore, tmp_path: Path) -> None:
    """As after `kill -9`: the version is there, and the manifest names nobody."""
    expert = small_expert()
    with store.staged({"film": expert}):
        shutil.copytree(store.folder, tmp_path / "crashed")
    shutil.rmtree(store.folder)
    (tmp_path / "crashed").rename(store.folder)
    assert store.load(expert.digest).digest == expert.digest
    assert store.manifest().aliases == {}
    store.publish(expert, "film")
    assert store.manifest().aliases == {"film": expert.digest}


def test_an_error_in_a_new_store_leaves_no_manifest(store: ExpertStore) -> None:
    with pytest.raises(RuntimeError, match="the next step"):
        stage_and_fail(store, small_expert())
    assert not store.manifest_path.exists()
    assert store.manifest().aliases == {}


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda version: shutil.rmtree(version),
        lambda version: (version / "expert.json").unlink(),
        lambda version: (version / "expert.json").write_text("{"),
        lambda version: (shutil.rmtree(version), version.write_text("a file")),
        lambda version: (shutil.rmtree(version), os.mkfifo(version)),
        lambda version: (shutil.rmtree(version), version.symlink_to(version)),
    ],
)
def test_anything_in_a_versions_place_is_healed_by_publishing_again(
    store: ExpertStore, damage: Damage
) -> None:
    digest = store.publish(small_expert(), "film").new
    revision = store.manifest().revision
    damage(store.version(digest))
    with pytest.raises(ExpertError):
        store.load(digest)
    assert store.published() == {}
    store.publish(small_expert(), "film")
    assert store.load(digest).digest == digest
    assert store.manifest().revision == revision


def test_putting_back_is_a_compare_and_set(store: ExpertStore) -> None:
    old, new, other = (small_expert(seed=seed) for seed in range(3))
    first = store.publish(old, "film")
    assert (first.old, first.new) == (None, old.digest)
    done = store.publish(new, "film")
    store.publish(other, "book")
    assert store.put_back(done)
    assert store.manifest().aliases == {"film": old.digest, "book": other.digest}
    assert not store.put_back(done)
    assert store.put_back(first)
    assert store.manifest().aliases == {"book": other.digest}
    assert store.put_back(store.publish(other, "book"))
    assert store.manifest().aliases == {"book": other.digest}


MAIL = Template("{subject}: {body}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": ("bad", "good")},
            r"'film': is expert 'film' \(sha256:.*, labels negative, positive\), and this is "
            r"expert 'book' \(sha256:.*, labels bad, good\); .*`allow_new_labels`",
        ),
        ({"labels": ("positive", "negative")}, "labels negative, positive.*labels positive, neg"),
        ({"labels": (), "label_embeddings": np.zeros((0, 4), np.float32)}, "without labels"),
    ],
)
def test_a_name_gets_other_labels_only_when_told(
    store: ExpertStore, changes: dict[str, Any], message: str
) -> None:
    store.publish(small_expert(), "film")
    texts = tuple(f"a {label} film" for label in changes["labels"])
    other = replace(small_expert(name="book", seed=1), label_texts=texts, **changes)
    before = contents(store.folder)
    with pytest.raises(ExpertError, match=message):
        store.publish(other, "film")
    assert contents(store.folder) == before
    assert store.publish(other, "book").new == other.digest
    assert store.publish(other, "film", allow_new_labels=True).new == other.digest


def test_a_name_gets_another_template_only_when_told(store: ExpertStore) -> None:
    store.publish(small_expert(), "film")
    mail = replace(small_expert(seed=1), template=MAIL)
    # The old expert has none: its clients send texts, which go on working.
    store.publish(mail, "film")
    for other in (Template("{text}"), None):
        with pytest.raises(ExpertError, match=r"template '\{subject\}: \{body\}'.*`allow_new_"):
            store.publish(replace(small_expert(seed=2), template=other), "film")
    store.publish(replace(small_expert(seed=3), template=MAIL), "film")


def test_a_damaged_version_is_replaced_whatever_its_labels_were(store: ExpertStore) -> None:
    digest = store.publish(small_expert(), "film").new
    (store.version(digest) / "labels.safetensors").unlink()
    other = replace(small_expert(seed=1), labels=("bad", "good"))
    assert store.publish(other, "film").new == other.digest


def mixture_of(*parts: Expert, name: str = "both") -> MixedExpert:
    share = 1 / len(parts)
    head = replace(parts[0], name=name, sites={}, scaling=1.0)
    return MixedExpert(head, parts, {"layer.0": (share,) * len(parts)})


def versions(store: ExpertStore) -> set[str]:
    return {f"sha256:{path.name}" for path in (store.folder / "versions").iterdir()}


def test_the_parts_of_a_mixture_are_versions_that_others_share(store: ExpertStore) -> None:
    a, b, c = (small_expert(name=name, seed=seed) for seed, name in enumerate("abc"))
    store.publish(a, "a")
    ab, bc = mixture_of(a, b), mixture_of(b, c, name="other")
    store.publish(ab, "both")
    store.publish(bc, "other")
    assert versions(store) == {one.digest for one in (a, b, c, ab, bc)}
    assert store.references(ab.digest) == (a.digest, b.digest)
    assert store.references(a.digest) == ()
    found = store.load(ab.digest)
    assert isinstance(found, MixedExpert)
    assert found.digest == ab.digest
    assert set(store.published()) == {"a", "both", "other"}


def test_an_error_removes_only_the_parts_that_nobody_else_names(store: ExpertStore) -> None:
    a, b, c = (small_expert(name=name, seed=seed) for seed, name in enumerate("abc"))
    store.publish(mixture_of(a, b), "both")
    before = contents(store.folder)
    with pytest.raises(RuntimeError), store.staged({"other": mixture_of(b, c)}):
        raise RuntimeError
    assert contents(store.folder) == before


def test_a_damaged_part_is_reported_and_written_anew(store: ExpertStore) -> None:
    a, b = (small_expert(name=name, seed=seed) for seed, name in enumerate("ab"))
    both = mixture_of(a, b)
    store.publish(both, "both")
    shutil.rmtree(store.version(b.digest))
    with pytest.raises(ExpertError, match="no such expert folder"):
        store.load(both.digest)
    assert store.published() == {}
    store.publish(both, "both")
    assert store.load(both.digest).digest == both.digest


def test_a_mixture_keeps_the_meaning_of_its_name(store: ExpertStore) -> None:
    a, b = (small_expert(name=name, seed=seed) for seed, name in enumerate("ab"))
    store.publish(a, "film")
    store.publish(mixture_of(a, b), "film")
    other = replace(mixture_of(a, b), head=replace(a, sites={}, labels=("no", "yes")))
    with pytest.raises(ExpertError, match="would get other answers"):
        store.publish(other, "film")
