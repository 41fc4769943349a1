"""The key of administrative calls, and who can see it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from pidep.errors import UsageError
from pidep.serving.admin_key import read_admin_key
from pidep.serving.launch_options import ADMIN_KEY_VARIABLE, admin_headers
from tests.cli.run import Done, assert_refused
from tests.serving.served import members, serving
from tests.serving.small_bank import write_served_bank

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADMIN_KEY_VARIABLE, raising=False)


def key_file(folder: Path, content: str = KEY, *, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_text(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_holds_the_key(tmp_path: Path, end: str) -> None:
    assert read_admin_key(key_file(tmp_path, KEY + end)) == KEY


def test_a_link_leads_to_the_key(tmp_path: Path) -> None:
    """Kubernetes mounts secrets as links."""
    (tmp_path / "link").symlink_to(key_file(tmp_path, mode=0o400))
    assert read_admin_key(tmp_path / "link") == KEY


def test_the_variable_holds_the_key_where_no_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_admin_key(None) is None
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, KEY)
    assert read_admin_key(None) == KEY
    with pytest.raises(UsageError, match="`admin_key_file`: PIDEP_ADMIN_KEY is set, too"):
        read_admin_key(key_file(tmp_path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o610])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, mode=mode)
    with pytest.raises(UsageError, match=rf"other users can open it .* run chmod 600 {path}"):
        read_admin_key(path)


@pytest.mark.parametrize("content", ["", "short", "0123456789abcde!", f"{KEY}\n{KEY}\n", "é" * 20])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    path = key_file(tmp_path, content)
    with pytest.raises(UsageError, match=rf"{path}: expected at least 16 letters") as found:
        read_admin_key(path)
    assert not content or content not in str(found.value)


def test_what_is_no_bounded_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent: no such file; make one with .*openssl rand"):
        read_admin_key(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"expected a plain file, found a folder"):
        read_admin_key(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(UsageError, match=r"expected a plain file, found a FIFO"):
        read_admin_key(tmp_path / "fifo")
    with pytest.raises(UsageError, match=r"has 5000 bytes, expected at most 4096"):
        read_admin_key(key_file(tmp_path, "a" * 5000))


@pytest.mark.parametrize("command", ["serve", "roll"])
def test_the_commands_refuse_it_in_a_line(
    tmp_path: Path, inside: Callable[..., Done], command: str
) -> None:
    path = key_file(tmp_path, mode=0o644)
    done = inside(command, tmp_path, "--admin-key-file", path)
    assert_refused(done, rf"{path}: holds a key, .* \(mode 0644\); run chmod 600")


@pytest.mark.server
@pytest.mark.parametrize("by", ["file", "variable"])
def test_the_key_opens_the_server_and_models_do_not_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    options = []
    if by == "variable":
        monkeypatch.setenv(ADMIN_KEY_VARIABLE, KEY)
    else:
        options = ["--admin-key-file", str(key_file(tmp_path))]
    with (
        serving(write_served_bank(tmp_path), *options) as served,
        tritonclient.grpc.InferenceServerClient(served.url) as client,
    ):
        index = client.get_model_repository_index(headers=admin_headers(KEY, "grpc"))
        assert [one.name for one in index.models] == ["pidep_bank"]
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_model_repository_index(headers=admin_headers("f" * 16, "grpc"))
        processes = members(served.folder)
        assert len(processes) == 2
        for pid in processes:
            assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
