"""A swap publishes an expert that fits, and returns with the server's own answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.errors import ExpertError, ServingError, UnreachableError
from pidep.experts.folder import Expert
from pidep.serving import Client, ExpertStore, Request, routes, swap_expert
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
        (response,) = backend_utils.responses(
            model, [backend_utils.Request(asked.tensors, tuple(asked.outputs))]
        )
        if response.error is not None:
            raise Refused(response.error.text)
        arrays: dict[str, np.ndarray] = response.arrays
        return arrays

    with stub_server("grpc", answer) as stub:
        yield stub
    model.finalize()


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
    repo: Path, store: ExpertStore, change: dict[str, Any], message: str
) -> None:
    store.publish(small_expert(), "film")
    with untouched(repo.parent), pytest.raises(ExpertError, match=message):
        swap_expert("film", replace(small_expert(seed=1), **change), repo, nobody())


def test_a_repository_without_a_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"bank\.json: no such file; make it with"):
        swap_expert("film", small_expert(), tmp_path, nobody())


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


def test_a_swap_of_a_name_with_a_canary_replaces_the_stable_version(
    repo: Path, store: ExpertStore, served: Stub
) -> None:
    store.publish(small_expert(), "film")
    canary = routes.set_canary(store, "film", small_expert(seed=2), weight=0.999).after
    assert canary is not None
    new = small_expert(seed=1)
    assert swap_expert("film", new, repo, served.url).new_digest == new.digest
    assert store.manifest().routes["film"] == canary.with_stable(new.digest)


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
    before = small_expert(seed=1)
    store.publish(before, "film")
    message = (
        r"swap 'film': published sha256:.* but after 0\.3 s the server answered sha256:film; "
        rf"is it serving this repository\? See its log; 'film' is {before.digest[:19]}… again"
    )
    with stub_server("grpc") as elsewhere:
        with pytest.raises(ServingError, match=message):
            swap_expert("film", small_expert(), repo, elsewhere.url, timeout_s=0.3)
        assert store.manifest().aliases == {"film": before.digest}
        with pytest.raises(ServingError, match="'new' is not served"):
            swap_expert("new", small_expert(), repo, elsewhere.url, timeout_s=0.3)
    assert store.manifest().aliases == {"film": before.digest}


def overflowing() -> Expert:
    """Every number is finite, and no answer is."""
    expert = small_expert(seed=1)
    factors = {**expert.sites["layer.0"], "lora_A": np.full((2, 4), 3e38, np.float32)}
    return replace(expert, scaling=1.0, sites={"layer.0": factors})


def test_an_expert_that_answers_nan_is_refused_at_once_and_the_name_goes_back(
    repo: Path, store: ExpertStore, served: Stub
) -> None:
    good, bad = small_expert(), overflowing()
    swap_expert("film", good, repo, served.url)
    started = time.monotonic()
    message = (
        rf"swap 'film': the server refuses {bad.digest[:19]}…: the answer of .* is not finite.*; "
        rf"'film' is {good.digest[:19]}… again"
    )
    with pytest.raises(ServingError, match=message):
        swap_expert("film", bad, repo, served.url, timeout_s=60)
    assert time.monotonic() - started < 20
    assert store.manifest().aliases == {"film": good.digest}
    with Client(served.url) as client:
        assert client.infer([Request("good", "film")])[0].digest == good.digest
        deadline = time.monotonic() + 20
        while client.status()["refused"]:
            assert time.monotonic() < deadline


def test_a_bad_expert_can_be_swapped_away(repo: Path, store: ExpertStore, served: Stub) -> None:
    """An error is an answer: the server lives, and another version can take the place."""
    store.publish(overflowing(), "film")
    with Client(served.url) as client:
        with pytest.raises(ServingError, match="'film'"):
            client.infer([Request("good", "film")])
    done = swap_expert("film", small_expert(), repo, served.url)
    assert (done.old_digest, done.new_digest) == (overflowing().digest, small_expert().digest)


def test_a_failed_swap_leaves_the_change_of_another_process(repo: Path, store: ExpertStore) -> None:
    other, third = small_expert(seed=7), small_expert(name="book", seed=8)

    def answer(asked: Asked) -> dict[str, np.ndarray]:
        if store.manifest().aliases:  # the swap has published; somebody else swaps, too
            store.publish(other, "film")
            store.publish(third, "book")
        raise Refused("no")

    with stub_server("grpc", answer) as elsewhere:
        with pytest.raises(ServingError, match="another process has changed 'film' meanwhile"):
            swap_expert("film", small_expert(), repo, elsewhere.url, timeout_s=0.5)
    assert store.manifest().aliases == {"film": other.digest, "book": third.digest}


def test_a_failed_swap_keeps_what_was_published_under_other_names(
    repo: Path, store: ExpertStore
) -> None:
    old, third = small_expert(seed=7), small_expert(name="book", seed=8)
    store.publish(old, "film")

    def answer(asked: Asked) -> dict[str, np.ndarray]:
        if store.manifest().revision == 2:
            store.publish(third, "book")
        raise Refused("no")

    with stub_server("grpc", answer) as elsewhere:
        with pytest.raises(ServingError, match=r"'film' is sha256:.* again"):
            swap_expert("film", small_expert(), repo, elsewhere.url, timeout_s=0.5)
    assert store.manifest().aliases == {"film": old.digest, "book": third.digest}


def test_a_server_that_does_not_answer_in_time_is_not_swapped_to(
    repo: Path, store: ExpertStore
) -> None:
    with stub_server("grpc") as silent, untouched(repo.parent):
        silent.delay_s = 20
        with pytest.raises(UnreachableError, match=r"no answer within 0\.3 s"):
            swap_expert("film", small_expert(), repo, silent.url, timeout_s=0.3)
