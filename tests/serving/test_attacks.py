"""One client, or one expert, must not harm the others: attacks on the real Triton Server."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts import BankRecord, Manifest
from pidep.errors import ServingError
from pidep.experts.folder import Expert, write_expert
from pidep.export.config_pbtxt import bank_config
from pidep.export.recipe import shipped
from pidep.files.tensor_file import tensor_bytes
from pidep.serving import AsyncClient, Client, ExpertStore, Request
from pidep.serving.server import TritonServer, free_ports
from pidep.serving.swap import swap_expert
from tests.serving.experts import small_expert
from tests.serving.small_bank import NEW, WIDTH, write_small_bank

pytestmark = pytest.mark.server

FILM, BOOK = small_expert(), small_expert(name="book", seed=1)
GOOD_CLIENTS, BAD_CLIENTS, TIMES = 4, 2, 40


@dataclass
class Served:
    """A running server with its repository and store."""

    server: TritonServer
    repo: Path
    store: ExpertStore

    def client(self) -> Client:
        return Client(self.server.grpc_url)

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.status()

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status for which it holds; fails after 30 s."""
        deadline = time.monotonic() + 30
        while not holds(status := self.status()):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A small bank with two good experts, and one that was damaged before the start."""
    root = tmp_path_factory.mktemp("attacked")
    folder = write_small_bank(root / "repo")
    (folder.parent / "config.pbtxt").write_text(
        bank_config("pidep_bank", max_batch_size=64, hidden_size=WIDTH)
    )
    shutil.copyfile(shipped("model.py"), folder / "model.py")
    BankRecord.read(folder).sealed(folder).write(folder)
    store = ExpertStore(root / "expert_store")
    store.publish(FILM, "film")
    store.publish(BOOK, "book")
    broken = store.publish(small_expert(name="broken", seed=9), "broken").new
    (store.version(broken) / "labels.safetensors").write_bytes(b"")
    with TritonServer(root / "repo", free_ports(), ready_within_s=100) as server:
        yield Served(server, root / "repo", store)


def traffic(served: Served, text: str, name: str) -> tuple[int, list[str]]:
    """Number of answers, and the errors, of a client that sends `TIMES` requests."""
    answered, errors = 0, []
    with served.client() as client:
        for _ in range(TIMES):
            try:
                client.infer([Request(text, name)])
                answered += 1
            except ServingError as error:
                errors.append(str(error))
    return answered, errors


def under_fire(served: Served, evil: list[tuple[str, str]]) -> list[tuple[int, list[str]]]:
    """Every request of good clients is answered while others misbehave; what the others got."""
    with ThreadPoolExecutor(GOOD_CLIENTS + len(evil)) as pool:
        good = [
            pool.submit(traffic, served, "good film", ("film", "book")[at % 2])
            for at in range(GOOD_CLIENTS)
        ]
        bad = [pool.submit(traffic, served, *one) for one in evil]
        assert [one.result() for one in good] == [(TIMES, [])] * GOOD_CLIENTS
        return [one.result() for one in bad]


def test_one_bad_version_at_the_start_leaves_all_other_names_served(served: Served) -> None:
    status = served.status()
    assert status["ready"]
    assert status["served"] == {"book": BOOK.digest, "film": FILM.digest}
    assert list(status["refused"]) == ["broken"]
    assert "labels.safetensors" in status["refused"]["broken"]["reason"]
    with served.client() as client:
        with pytest.raises(
            ServingError, match=r"expert 'broken' is not served: its version sha256"
        ):
            client.infer([Request("good", "broken")])


@pytest.mark.parametrize("name", ["film", "@backbone"])
def test_a_token_that_the_graph_does_not_have_fails_its_own_requests(
    served: Served, name: str
) -> None:
    evil = under_fire(served, [(f"good {NEW} film", name)] * BAD_CLIENTS)
    for answered, errors in evil:
        assert answered == 0
        assert len(errors) == TIMES
        assert all("the row cannot be answered" in error for error in errors)


def test_a_long_text_to_the_backbone_is_cut_and_harms_nobody(served: Served) -> None:
    evil = under_fire(served, [("good film very bad " * 1000, "@backbone")] * BAD_CLIENTS)
    assert evil == [(TIMES, [])] * BAD_CLIENTS


def written_anyway(store: ExpertStore, good: Expert, **change: Any) -> str:
    """A version that pidep would not write, as another program could; its digest."""
    bad = replace(good, **change)
    folder = store.version(bad.digest)
    write_expert(good, folder)
    record = json.loads((folder / "expert.json").read_text())
    plain = {key: value for key, value in change.items() if key != "label_embeddings"}
    (folder / "expert.json").write_text(json.dumps({**record, **plain, "digest": bad.digest}))
    labels = {"label_embeddings": bad.label_embeddings}
    (folder / "labels.safetensors").write_bytes(tensor_bytes(labels))
    return bad.digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label_embeddings": np.eye(2, 5, dtype=np.float32)}, "have width 5, the backbone's"),
        ({"labels": (0, 1)}, "'labels.0'"),
        ({"max_length": 100_000}, "max_length is 100000"),
        ({"max_length": 0}, "max_length is 0"),
        ({"logit_scale": 1e39}, "logit_scale is 1e+39"),
    ],
)
def test_an_expert_that_cannot_answer_is_refused_and_can_be_swapped_away(
    served: Served, change: dict[str, Any], reason: str
) -> None:
    before = served.store.manifest()
    bad = written_anyway(served.store, small_expert(name="bad", seed=5), **change)
    before.naming({"bad": bad}).write(served.store.folder)
    status = served.until(lambda status: "bad" in status["refused"])
    assert reason in status["refused"]["bad"]["reason"]
    assert status["served"] == {"book": BOOK.digest, "film": FILM.digest}
    under_fire(served, [("good", "bad")])
    good = small_expert(name="bad", seed=6)
    assert swap_expert("bad", good, served.repo, served.server.grpc_url).new_digest == good.digest
    served.store.manifest().naming({"bad": None}).write(served.store.folder)
    served.until(lambda status: "bad" not in status["served"])


def test_weights_that_overflow_are_not_swapped_in(served: Served) -> None:
    expert = small_expert(seed=7)
    huge = {**expert.sites["layer.0"], "lora_A": np.full((2, 4), 3e38, np.float32)}
    bad = replace(expert, scaling=1.0, sites={"layer.0": huge})
    with pytest.raises(
        ServingError, match=r"the server refuses .* is not finite.*'film' is sha256"
    ):
        swap_expert("film", bad, served.repo, served.server.grpc_url, timeout_s=30)
    assert served.store.manifest().aliases["film"] == FILM.digest
    assert under_fire(served, []) == []
    assert served.status()["served"]["film"] == FILM.digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text('{"schema": 1, "generation": 1e999, "aliases": {}}'),
        lambda path: path.write_text('{"aliases":' * 100_000),
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
    ],
)
def test_whatever_lies_in_the_manifests_place_the_server_goes_on_and_heals(
    served: Served, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    path = served.store.manifest_path
    whole = path.read_bytes()
    path.unlink()
    damage(path)
    try:
        status = served.until(lambda status: "manifest.json" in status["fault"])
        assert status["ready"]
        assert status["served"] == {"book": BOOK.digest, "film": FILM.digest}
    finally:
        path.rename(tmp_path / "aside")
        path.write_bytes(whole)
    healed = served.until(lambda status: not status["fault"])
    assert healed["revision"] == Manifest.read(served.store.folder).revision


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_answer_names_its_expert_and_its_entry(served: Served, protocol: Any) -> None:
    url = served.server.grpc_url if protocol == "grpc" else served.server.http_url
    entry = BankRecord.read(served.repo / "pidep_bank" / "1").entry_digest
    with Client(url, protocol=protocol) as client:
        (result,) = client.infer([Request("good", "film")])
        assert (result.digest, result.entry) == (FILM.digest, entry)
        assert client.status()["entry"] == entry

    async def asked() -> dict[str, Any]:
        async with AsyncClient(url, protocol=protocol) as client:
            return await client.status()

    assert asyncio.run(asked())["served"] == served.status()["served"]


def test_a_client_of_an_older_release_goes_on(served: Served) -> None:
    """It asks for four outputs by name, and knows nothing of the others."""
    triton = importlib.import_module("tritonclient.grpc")
    inputs = []
    for name, value in (("TEXT", b"good"), ("EXPERT", b"film")):
        inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[value]], dtype=object))
    wanted = [triton.InferRequestedOutput(one) for one in ("SCORES", "LABELS", "LABEL", "DIGEST")]
    with triton.InferenceServerClient(served.server.grpc_url) as client:
        response = client.infer("pidep_bank", inputs, outputs=wanted)
        assert [one.name for one in response.get_response().outputs] == [
            "SCORES",
            "LABELS",
            "LABEL",
            "DIGEST",
        ]
