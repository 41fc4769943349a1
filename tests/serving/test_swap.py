"""A swap publishes an expert that fits, and returns with the server's own answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.errors import ExpertError, ServingError
from pidep.serving import ExpertStore, publish_expert, swap_expert
from pidep.serving.triton_model import TritonPythonModel
from tests.cli.run import nobody, untouched
from tests.serving import backend_utils
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_small_bank
from tests.serving.stub_server import Asked, Refused, Stub, stub_server


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    write_small_bank(tmp_path / "repo")
    return tmp_path / "repo"


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore(tmp_path / "expert_store")


@pytest.fixture
def served(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The shim's model behind the stub server's protocol."""
    backend_utils.install(monkeypatch)
    model = TritonPythonModel()
    model.initialize({"model_repository": str(repo / "pidep_bank"), "model_version": "1"})

    def answer(asked: Asked) -> dict[str, np.ndarray]:
        (response,) = model.execute([backend_utils.Request(asked.tensors, tuple(asked.outputs))])
        if response.error is not None:
            raise Refused(response.error.text)
        arrays: dict[str, np.ndarray] = response.arrays
        return arrays

    with stub_server("grpc", answer) as stub:
        yield stub
    model.finalize()


def test_an_expert_is_published_under_a_name(repo: Path, store: ExpertStore) -> None:
    old, new = small_expert(), small_expert(seed=1)
    assert publish_expert("film", old, repo) == (None, old.digest)
    assert publish_expert("film", new, repo) == (old.digest, new.digest)
    assert store.manifest().aliases == {"film": new.digest}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_digest": "sha256:other"}, "made for another backbone"),
        (
            {"kind": "bitfit", "sites": {"layer.0": {"bias": np.ones(4, np.float32)}}},
            "is of kind 'bitfit'",
        ),
        ({"sites": {"layer.9": small_expert().sites["layer.0"]}}, "'layer.9' is not in the bank"),
    ],
)
def test_an_expert_that_does_not_fit_is_not_published(
    repo: Path, change: dict[str, Any], message: str
) -> None:
    publish_expert("film", small_expert(), repo)
    with untouched(repo.parent), pytest.raises(ExpertError, match=message):
        publish_expert("film", replace(small_expert(seed=1), **change), repo)


def test_a_repository_without_a_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"bank\.json: no such file; make it with"):
        publish_expert("film", small_expert(), tmp_path)


def test_a_swap_returns_when_the_server_answers_with_the_new_version(
    repo: Path, served: Stub
) -> None:
    first, second = small_expert(), small_expert(seed=1)
    done = swap_expert("film", first, repo, served.url)
    assert (done.name, done.old_digest, done.new_digest) == ("film", None, first.digest)
    done = swap_expert("film", second, repo, served.url)
    assert (done.old_digest, done.new_digest) == (first.digest, second.digest)
    assert done.seconds > 0
    assert done.to_json()["new_digest"] == second.digest


def test_a_swap_to_what_is_served_changes_nothing(
    repo: Path, store: ExpertStore, served: Stub
) -> None:
    swap_expert("film", small_expert(), repo, served.url)
    with untouched(repo.parent):
        swap_expert("film", small_expert(), repo, served.url)


def test_a_swap_of_an_expert_that_does_not_fit_publishes_nothing(repo: Path, served: Stub) -> None:
    wide = small_expert()
    factors = {"lora_A": np.zeros((5, 4), np.float32), "lora_B": np.zeros((4, 5), np.float32)}
    with untouched(repo.parent), pytest.raises(ExpertError, match=r"rank 5 .* rank <= 4"):
        swap_expert("film", replace(wide, sites={"layer.0": factors}), repo, served.url)


def test_a_swap_without_a_server_publishes_nothing(repo: Path) -> None:
    with untouched(repo.parent), pytest.raises(ServingError, match="is pidep serve running there"):
        swap_expert("film", small_expert(), repo, nobody(), timeout_s=2.0)


def test_a_server_that_goes_on_with_another_version_is_an_error(
    repo: Path, store: ExpertStore
) -> None:
    """A server of another repository: it answers, but never with the published version."""
    message = r"swap 'film': published sha256:.* after 0\.3 s the server answered sha256:film"
    with stub_server("grpc") as elsewhere, pytest.raises(ServingError, match=message):
        swap_expert("film", small_expert(), repo, elsewhere.url, timeout_s=0.3)
    assert store.manifest().aliases == {"film": small_expert().digest}
