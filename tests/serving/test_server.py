"""Checks before Triton Server starts. `tests/e2e` starts it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pidep.errors import ServingError, UsageError
from pidep.serving import Ports, TritonServer, free_ports
from pidep.serving.server import models_in
from tests.serving.small_bank import write_small_bank, write_small_merged


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A bank, and a merged model for NVIDIA's onnxruntime backend."""
    write_small_bank(tmp_path / "repo")
    merged = write_small_merged(tmp_path / "repo").parent
    (merged / "config.pbtxt").write_text('name: "film" backend: "onnxruntime"')
    return tmp_path / "repo"


def test_models_are_found_by_their_configuration(repo: Path) -> None:
    (repo / "README.md").touch()
    (repo / "notes").mkdir()
    assert models_in(repo) == ["film", "pidep_bank"]


def test_an_entry_that_is_being_written_is_no_model(repo: Path) -> None:
    (repo / ".film.x1y2").mkdir()
    (repo / ".film.x1y2" / "config.pbtxt").touch()
    assert models_in(repo) == ["film", "pidep_bank"]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("pidep_bank/1/bank.json", r"pidep_bank: no bank\.json or merged\.json in version 1"),
        ("film/1/model.onnx", r"film: version 1 lacks model\.onnx; export it again"),
        ("pidep_bank/1/model.py", r"pidep_bank: version 1 lacks model\.py; export it again"),
    ],
)
def test_an_incomplete_model_is_refused(repo: Path, lost: str, message: str) -> None:
    """Triton Server would hang on this model."""
    (repo / lost).unlink()
    with pytest.raises(UsageError, match=message):
        models_in(repo)
    with pytest.raises(UsageError, match=message):
        TritonServer(repo, free_ports()).start()


@pytest.mark.parametrize("made", [False, True])
def test_a_repository_without_models_is_refused(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "repo").mkdir()
    with pytest.raises(UsageError, match="make one with pidep export"):
        models_in(tmp_path / "repo")


@pytest.mark.parametrize("name", ["my film", "modèle", "a;b"])
def test_a_name_that_the_stub_cannot_read_is_refused(repo: Path, name: str) -> None:
    (repo / "film").rename(repo / name)
    with pytest.raises(UsageError, match=r"ASCII letters, digits and \. _ - only; rename"):
        models_in(repo)


@pytest.mark.parametrize("what", ["HTTP", "gRPC", "metrics"])
def test_a_taken_port_is_named_before_anything_is_started(repo: Path, what: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        ports = Ports(**{**vars(free_ports()), what.lower(): number})
        message = rf"{what} port 127\.0\.0\.1:{number} is taken"
        with pytest.raises(ServingError, match=message):
            TritonServer(repo, ports).start()
