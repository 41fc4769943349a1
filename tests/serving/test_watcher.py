"""The watcher serves what the manifest names, and keeps the old experts where it cannot."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pidep.artifacts import Manifest
from pidep.runtime import Bank
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
    assert watcher.residents.rows == {}


def test_it_serves_the_manifest(bank: Bank, store: ExpertStore) -> None:
    digest = store.publish(small_expert(), "film")
    watcher = Watcher(bank, store)
    watcher.refresh()
    assert watcher.residents.digests == {"film": digest}
    new = store.publish(small_expert(seed=1), "film")
    other = store.publish(small_expert(name="book", seed=2), "book")
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
    old = store.publish(small_expert(), "film")
    watcher = Watcher(bank, store)
    watcher.refresh()
    taken = watcher.residents
    factors = {name: array.copy() for name, array in taken.factors.items()}
    store.publish(small_expert(seed=1), "film")
    watcher.refresh()
    assert watcher.residents is not taken
    assert taken.digests == {"film": old}
    assert all((array == factors[name]).all() for name, array in taken.factors.items())


def test_a_broken_version_leaves_the_old_one_serving(
    bank: Bank, store: ExpertStore, caplog: pytest.LogCaptureFixture
) -> None:
    old = store.publish(small_expert(), "film")
    watcher = Watcher(bank, store)
    watcher.refresh()
    new = store.publish(small_expert(seed=1), "film")
    weights = store.version(new) / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with caplog.at_level(logging.ERROR):
        watcher.refresh()
        watcher.refresh()
    assert watcher.residents.digests == {"film": old}
    # logged once: the refused manifest is not tried again
    said = [record.message.split(":")[0] for record in caplog.records]
    assert said == ["store kept at revision 1"]
    weights.write_bytes(whole)
    store.publish(small_expert(name="book", seed=2), "book")
    watcher.refresh()
    assert watcher.residents.digests["film"] == new


def test_an_expert_that_does_not_fit_leaves_the_old_ones_serving(
    bank: Bank, store: ExpertStore
) -> None:
    old = store.publish(small_expert(), "film")
    watcher = Watcher(bank, store)
    watcher.refresh()
    store.publish(replace(small_expert(seed=1), backbone_digest="sha256:other"), "book")
    watcher.refresh()
    assert watcher.residents.digests == {"film": old}


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_lost_manifest_leaves_the_old_experts_serving(
    bank: Bank, store: ExpertStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    old = store.publish(small_expert(), "film")
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
    assert watcher.residents.rows == {}


def test_it_follows_until_it_is_stopped(bank: Bank, store: ExpertStore) -> None:
    watcher = Watcher(bank, store)
    watcher.start()
    try:
        digest = store.publish(small_expert(), "film")
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
