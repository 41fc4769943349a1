"""The folder in which a server runs: paths that it can read, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pidep.serving.staging import StagingFolder, is_plain


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("path", ["/srv/model_repo", "/a.b/c-d_e"])
def test_a_plain_path_is_used_as_it_is(temporary: Path, path: str) -> None:
    assert is_plain(path)
    folder = StagingFolder()
    assert folder.plain(Path(path)) == Path(path)
    folder.remove()


@pytest.mark.parametrize("name", ["my models", "modèles", "a;b", "a$b", "a'b", "模型", "a\nb"])
def test_another_path_is_reached_by_a_plain_link(temporary: Path, name: str) -> None:
    repo = temporary / name
    repo.mkdir()
    folder = StagingFolder()
    plain = folder.plain(repo)
    assert is_plain(str(plain))
    assert plain.resolve() == repo
    folder.remove()
    assert repo.is_dir()


def test_a_temporary_folder_with_a_space_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "tm p").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "tm p"))
    folder = StagingFolder()
    assert is_plain(str(folder.path))
    folder.remove()


def test_removing_takes_the_servers_shared_memory_along(temporary: Path) -> None:
    first, second = StagingFolder(), StagingFolder()
    regions = [Path("/dev/shm") / f"{one.path.name}-region" for one in (first, second)]
    for region in regions:
        region.touch()
    first.remove()
    assert not first.path.exists()
    assert [region.exists() for region in regions] == [False, True]
    second.remove()
    assert not regions[1].exists()


def test_what_a_killed_process_left_is_removed_by_the_next(temporary: Path) -> None:
    code = """
import os, sys, tempfile
from pidep.serving.staging import StagingFolder
tempfile.tempdir = sys.argv[1]
print(StagingFolder().path, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, temporary], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert done.returncode == -9
    assert left.is_dir()
    running = StagingFolder()
    assert not left.exists()
    later = StagingFolder()
    assert running.path.is_dir()
    running.remove()
    later.remove()


def test_a_folder_of_that_name_without_a_lock_stays(temporary: Path) -> None:
    """Such a folder is not finished yet, or belongs to another program."""
    (temporary / "pidep-triton-other").mkdir()
    StagingFolder().remove()
    assert (temporary / "pidep-triton-other").is_dir()
