"""Folders are replaced whole or not at all, also where a rename fails half way."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

from pidep.files.atomic_write import atomic_folder, in_place, temporary_sibling
from tests.cli.run import contents


@pytest.fixture(params=["exchange", "renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to replace a folder: one system call, or two renames where the call is missing."""
    if request.param == "renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    return str(request.param)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder with a file in it."""
    folder = tmp_path / "room" / "target"
    folder.mkdir(parents=True)
    (folder / "was").write_text("old")
    return folder


def fill(target: Path) -> None:
    with atomic_folder(target) as made:
        (made / "deep").mkdir()
        (made / "deep" / "is").write_text("new")


NEW = {"target": None, "target/deep": None, "target/deep/is": b"new"}


def test_a_folder_appears_whole(tmp_path: Path, way: str) -> None:
    fill(tmp_path / "room" / "target")
    assert contents(tmp_path / "room") == NEW


def test_a_folder_is_replaced_and_nothing_stays_beside_it(target: Path, way: str) -> None:
    fill(target)
    assert contents(target.parent) == NEW
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_error_while_it_is_filled_leaves_the_old_one(target: Path, way: str) -> None:
    def fill_half() -> None:
        with atomic_folder(target) as made:
            (made / "is").write_text("new")
            raise RuntimeError("half way")

    before = contents(target.parent)
    with pytest.raises(RuntimeError, match="half way"):
        fill_half()
    assert contents(target.parent) == before


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_one(
    target: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    before, rename, calls = contents(target.parent), os.rename, 0

    def failing_rename(source: Any, to: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        rename(source, to)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(OSError, match="No space left"):
        fill(target)
    assert calls >= failing
    assert contents(target.parent) == before


def test_a_first_rename_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_rename(source: Any, to: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path / "room" / "target")
    assert contents(tmp_path / "room") == {}


@pytest.mark.parametrize("exists", [True, False])
def test_an_error_after_the_replacement_puts_the_old_one_back(
    tmp_path: Path, way: str, exists: bool
) -> None:
    target = tmp_path / "room" / "target"
    if exists:
        target.mkdir(parents=True)
        (target / "was").write_text("old")
    else:
        target.parent.mkdir()
    before = contents(tmp_path / "room")

    def replace_then_fail() -> None:
        with temporary_sibling(target) as new:
            (new / "is").write_text("new")
            with in_place(target, new):
                assert contents(target) == {"is": b"new"}
                raise RuntimeError("the next step")

    with pytest.raises(RuntimeError, match="the next step"):
        replace_then_fail()
    assert contents(tmp_path / "room") == before


def test_a_file_or_a_link_in_its_place_is_replaced(tmp_path: Path, way: str) -> None:
    room, elsewhere = tmp_path / "room", tmp_path / "elsewhere"
    room.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    for make in (lambda path: path.touch(), lambda path: path.symlink_to(elsewhere)):
        make(room / "target")
        fill(room / "target")
        assert contents(room) == NEW
        (room / "target" / "deep" / "is").unlink()
        (room / "target" / "deep").rmdir()
        (room / "target").rmdir()
    assert (elsewhere / "kept").exists()
