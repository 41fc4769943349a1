"""The watcher serves what the manifest names, and keeps the old experts where it cannot."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidep.artifacts import Manifest
from pidep.errors import ExpertError
from pidep.experts.folder import Expert, write_expert
from pidep.experts.mixed import Served
from pidep.runtime import Bank
from pidep.runtime.bank import Resident
from pidep.serving import ExpertStore
from pidep.serving.watcher import Watcher
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_small_bank

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(write_small_bank(tmp_path / "repo"))


@pytest.fixture
def store(bank: Bank) -> ExpertStore:
    return ExpertStore(bank.store)


def until(holds: Callable[[], bool]) -> None:
    """Wait until the condition holds; fail after 20 s."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_empty_store_serves_nobody(bank: Bank, store: ExpertStore) -> None:
    watcher = Watcher(bank, store)
    watcher.refresh()
    assert watcher.residents.by_name == {}


def test_it_serves_the_manifest(bank: Bank, store: ExpertStore) -> None:
    digest = store.publish(small_expert(), "film").new
    watcher = Watcher(bank, store)
    watcher.refresh()
    assert watcher.residents.digests == {"film": digest}
    new = store.publish(small_expert(seed=1), "film").new
    other = store.publish(small_expert(name="book", seed=2), "book").new
    watcher.refresh()
    assert watcher.residents.digests == {"film": new, "book": other}


def test_a_manifest_that_did_not_change_is_not_loaded_again(bank: Bank, store: ExpertStore) -> None:
    store.publish(small_expert(), "film")
    watcher = Watcher(bank, store)
    watcher.refresh()
    residents = watcher.residents
    watcher.refresh()
    assert watcher.residents is residents


def test_residents_of_a_running_batch_never_change(bank: Bank, store: ExpertStore) -> None:
    old = store.publish(small_expert(), "film").new
    watcher = Watcher(bank, store)
    watcher.refresh()
    taken = watcher.residents
    (slot,) = taken.by_name["film"].slots
    factors = {name: value.numpy()[slot.number].copy() for name, value in taken.values.items()}
    store.publish(small_expert(seed=1), "film")
    watcher.refresh()
    assert watcher.residents is not taken
    assert taken.digests == {"film": old}
    for name, value in taken.values.items():
        np.testing.assert_array_equal(value.numpy()[slot.number], factors[name])


def test_a_broken_version_leaves_the_old_one_serving(
    bank: Bank, store: ExpertStore, caplog: pytest.LogCaptureFixture
) -> None:
    old = store.publish(small_expert(), "film").new
    watcher = Watcher(bank, store)
    watcher.refresh()
    new = store.publish(small_expert(seed=1), "film").new
    weights = store.version(new) / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with caplog.at_level(logging.ERROR):
        watcher.refresh()
        watcher.refresh()
    assert watcher.residents.digests == {"film": old}
    # logged once: the reason stays the same
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(f"film: version {new[:19]}… is refused: versions/")
    assert str(store.folder) not in said[0]
    weights.write_bytes(whole)
    until(lambda: refreshed(watcher) == {"film": new})


def refreshed(watcher: Watcher) -> dict[str, str]:
    watcher.refresh()
    return watcher.residents.digests


def damage_weights(store: ExpertStore, digest: str) -> None:
    (store.version(digest) / WEIGHTS).write_bytes(b"{")


def lose(store: ExpertStore, digest: str) -> None:
    shutil.rmtree(store.version(digest))


def of_another_bank(store: ExpertStore, digest: str) -> None:
    shutil.rmtree(store.version(digest))
    stranger = replace(small_expert(seed=1), backbone_digest="sha256:other")
    write_expert(stranger, store.version(digest))


def fifo(store: ExpertStore, digest: str) -> None:
    (store.version(digest) / WEIGHTS).unlink()
    os.mkfifo(store.version(digest) / WEIGHTS)


def endless(store: ExpertStore, digest: str) -> None:
    (store.version(digest) / "expert.json").unlink()
    (store.version(digest) / "expert.json").symlink_to("/dev/zero")


def loop(store: ExpertStore, digest: str) -> None:
    shutil.rmtree(store.version(digest))
    store.version(digest).symlink_to(store.version(digest))


def deep(store: ExpertStore, digest: str) -> None:
    (store.version(digest) / "expert.json").write_text('{"metrics":' * 100_000)


@pytest.mark.parametrize(
    "damage", [damage_weights, lose, of_another_bank, fifo, endless, loop, deep]
)
def test_one_bad_version_is_refused_and_all_others_are_served_also_at_a_start(
    bank: Bank, store: ExpertStore, damage: Callable[[ExpertStore, str], None]
) -> None:
    film = store.publish(small_expert(), "film").new
    running = Watcher(bank, store)
    running.refresh()
    bad = store.publish(small_expert(seed=1), "bad").new
    book = store.publish(small_expert(name="book", seed=2), "book").new
    damage(store, bad)
    for watcher in (running, Watcher(bank, store)):
        watcher.refresh()
        assert watcher.residents.digests == {"film": film, "book": book}
        assert watcher.residents.refused["bad"]["digest"] == bad
        (answer,) = bank.run(watcher.residents, ["good"], ["bad"])
        assert isinstance(answer, ExpertError)
        assert f"expert 'bad' is not served: its version {bad[:19]}… is refused" in str(answer)
        assert str(store.folder) not in str(answer)
    # The same expert published again heals both, and needs no change of the manifest.
    store.publish(small_expert(seed=1), "bad")
    for watcher in (running, Watcher(bank, store)):
        watcher.refresh()
        assert watcher.residents.digests == {"film": film, "book": book, "bad": bad}
        assert watcher.residents.refused == {}


def test_an_expert_whose_answers_are_not_finite_is_never_exposed(
    bank: Bank, store: ExpertStore
) -> None:
    """Weights of 3e38 are finite, and their sum is not."""
    good = store.publish(small_expert(), "film").new
    watcher = Watcher(bank, store)
    watcher.refresh()
    expert = small_expert(seed=1)
    huge = {**expert.sites["layer.0"], "lora_A": np.full((2, 4), 3e38, np.float32)}
    bad = store.publish(replace(expert, scaling=1.0, sites={"layer.0": huge}), "film").new
    other = store.publish(small_expert(name="book", seed=2), "book").new
    watcher.refresh()
    assert watcher.residents.digests == {"film": good, "book": other}
    assert watcher.residents.refused["film"] == {
        "digest": bad,
        "reason": f"the answer of {bad[:19]} is not finite; its numbers overflow, train it again",
    }


def test_a_digest_that_leaves_the_store_is_refused(bank: Bank, store: ExpertStore) -> None:
    film = store.publish(small_expert(), "film").new
    aliases = {"film": film, "evil": "sha256:../../elsewhere", "empty": ""}
    Manifest(revision=2, aliases=aliases).write(store.folder)
    watcher = Watcher(bank, store)
    watcher.refresh()
    assert watcher.residents.digests == {"film": film}
    assert "is no digest" in watcher.residents.refused["evil"]["reason"]
    assert "is no digest" in watcher.residents.refused["empty"]["reason"]


def huge_number(path: Path) -> None:
    path.write_text('{"schema": 1, "generation": 1e999, "aliases": {}}')


def long_number(path: Path) -> None:
    path.write_text('{"schema": 1, "generation": ' + "9" * 5001 + ', "aliases": {}}')


def deep_json(path: Path) -> None:
    path.write_text('{"aliases":' * 100_000)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    "damage",
    [huge_number, long_number, deep_json, os.mkfifo, a_folder, a_device, a_loop, a_terabyte],
)
def test_the_watcher_outlives_anything_in_place_of_the_manifest(
    bank: Bank, store: ExpertStore, damage: Callable[[Path], None]
) -> None:
    film = store.publish(small_expert(), "film").new
    good = store.manifest_path.read_bytes()
    watcher = Watcher(bank, store)
    watcher.start()
    try:
        store.manifest_path.unlink()
        damage(store.manifest_path)
        until(lambda: "manifest.json" in watcher.status()["fault"])
        assert watcher.is_alive
        assert watcher.residents.digests == {"film": film}
        aside = store.folder / "aside"
        store.manifest_path.rename(aside)
        store.manifest_path.write_bytes(good)
        new = store.publish(small_expert(seed=1), "film").new
        until(lambda: watcher.residents.digests == {"film": new})
        assert watcher.status()["fault"] == ""
    finally:
        watcher.stop()


def test_the_status_tells_a_watcher_that_follows_from_one_that_does_not(
    bank: Bank, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(bank, store)
    assert not watcher.status()["ready"]
    watcher.start()
    status = watcher.status()
    assert status["ready"]
    assert (status["revision"], status["served"], status["refused"]) == (0, {}, {})
    # A thread that hangs on a dead disk: it is alive, and gives no sign any more.
    release = threading.Event()
    monkeypatch.setattr("pidep.serving.watcher.HUNG_S", 0.2)
    monkeypatch.setattr(store, "manifest", lambda: release.wait(20) and Manifest.read(store.folder))
    until(lambda: not watcher.is_alive)
    assert not watcher.status()["ready"]
    release.set()
    until(lambda: watcher.is_alive)
    watcher.stop()
    assert not watcher.is_alive


def test_an_expert_that_the_bank_cannot_pack_leaves_all_others_served(
    bank: Bank, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = store.publish(small_expert(), "film").new
    book = store.publish(small_expert(name="book", seed=2), "book").new
    place = bank.place

    def failing(served: Served, *, digest: str) -> Resident:
        if digest == book:
            raise IndexError("an array has too few axes")
        return place(served, digest=digest)

    monkeypatch.setattr(bank, "place", failing)
    watcher = Watcher(bank, store)
    watcher.refresh()
    assert watcher.residents.digests == {"film": film}
    assert watcher.residents.refused == {
        "book": {"digest": book, "reason": "an array has too few axes"}
    }


def test_a_retry_that_fails_again_packs_nothing(bank: Bank, store: ExpertStore) -> None:
    store.publish(small_expert(), "film")
    bad = store.publish(small_expert(seed=1), "bad").new
    damage_weights(store, bad)
    watcher = Watcher(bank, store)
    watcher.refresh()
    held, used = watcher.residents.by_name, bank.arena.used
    os.utime(store.version(bad))  # its folder looks new, so it is tried again
    watcher.refresh()
    assert watcher.residents.by_name is held
    assert bank.arena.used == used == 1
    assert list(watcher.residents.refused) == ["bad"]


def test_a_panic_while_a_version_is_read_is_that_names_fault(
    bank: Bank, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As one of a Rust package."""

    film = store.publish(small_expert(), "film").new
    book = store.publish(small_expert(name="book", seed=2), "book").new
    load = store.load

    def panicking(digest: str) -> Expert:
        if digest == book:
            raise Panic("index out of bounds")
        return load(digest)

    monkeypatch.setattr(store, "load", panicking)
    watcher = Watcher(bank, store)
    watcher.refresh()
    assert watcher.residents.digests == {"film": film}
    assert watcher.residents.refused["book"]["reason"] == "index out of bounds"


def test_an_expert_that_does_not_fit_leaves_the_old_ones_serving(
    bank: Bank, store: ExpertStore
) -> None:
    old = store.publish(small_expert(), "film").new
    watcher = Watcher(bank, store)
    watcher.refresh()
    store.publish(replace(small_expert(seed=1), backbone_digest="sha256:other"), "book")
    watcher.refresh()
    assert watcher.residents.digests == {"film": old}


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_lost_manifest_leaves_the_old_experts_serving(
    bank: Bank, store: ExpertStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    old = store.publish(small_expert(), "film").new
    watcher = Watcher(bank, store)
    watcher.refresh()
    if damage == "gone":
        store.manifest_path.unlink()
    else:
        store.manifest_path.write_text("{")
    watcher.refresh()
    assert watcher.residents.digests == {"film": old}
    assert "restore it" in caplog.text


def test_a_name_that_is_taken_out_is_no_longer_served(bank: Bank, store: ExpertStore) -> None:
    store.publish(small_expert(), "film")
    watcher = Watcher(bank, store)
    watcher.refresh()
    Manifest(revision=2, aliases={}).write(store.folder)
    watcher.refresh()
    assert watcher.residents.by_name == {}


def test_it_follows_until_it_is_stopped(bank: Bank, store: ExpertStore) -> None:
    watcher = Watcher(bank, store)
    watcher.start()
    try:
        digest = store.publish(small_expert(), "film").new
        until(lambda: watcher.residents.digests == {"film": digest})
    finally:
        watcher.stop()
    watcher.stop()
    store.publish(small_expert(seed=1), "film")
    time.sleep(0.1)
    assert watcher.residents.digests == {"film": digest}


def test_a_change_that_the_clock_hides_is_seen(bank: Bank, store: ExpertStore) -> None:
    """A manifest with the same size, inode and times, as after a clock was set back."""
    first, second = small_expert(), small_expert(seed=1)
    store.publish(first, "film")
    store.publish(second, "other")
    watcher = Watcher(bank, store)
    watcher.start()
    try:
        text = store.manifest_path.read_text()
        stat = store.manifest_path.stat()
        swapped = text.replace(first.digest, "x").replace(second.digest, first.digest)
        with open(store.manifest_path, "r+") as stream:
            stream.write(swapped.replace("x", second.digest))
        os.utime(store.manifest_path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        wanted = {"film": second.digest, "other": first.digest}
        until(lambda: watcher.residents.digests == wanted)
    finally:
        watcher.stop()
