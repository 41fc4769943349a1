"""The real Triton Server on a bank: stock clients, plain HTTP, swaps under traffic."""

import asyncio
import json
import threading
import time
import urllib.request
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from pidep.deployment.release import release_bank
from pidep.errors import ServingError
from pidep.experts.folder import write_expert
from pidep.export import Source, export_merged, load_recipe
from pidep.inputs.template import Template
from pidep.serving import AsyncClient, Client, Request
from pidep.serving.server import Ports, TritonServer, free_ports
from pidep.serving.swap import swap_expert
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from pidep.tuning.predict_file import predict_file
from pidep.tuning.settings import PredictSettings
from tests.conftest import make_expert, png

pytestmark = pytest.mark.server
TASK = Task.model_validate(
    {
        "name": "film",
        "labels": {"negative": "negative", "positive": "positive"},
        "data": {"path": "unused.jsonl"},
    }
)
ROWS = Split(["the film was good", "awful", "a very bad film", "great film"], [1, 0, 0, 1])


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    from pidep.backbones.load import load_backbone

    backbone = load_backbone(str(tiny_folder))
    repo = tmp_path_factory.mktemp("served") / "model_repo"
    experts = {
        name: make_expert(backbone, name=name, seed=seed)
        for seed, name in enumerate(("film", "book"))
    }
    experts["film"] = replace(experts["film"], template=Template("the {subject} was {verdict}"))
    recipe = load_recipe("onnx-cpu")
    release_bank(
        [Source(expert, TASK, ROWS) for expert in experts.values()],
        repo,
        recipe,
        max_rank=4,
    )
    export_merged(Source(experts["film"], TASK, ROWS), repo, load_recipe("onnx-cpu"))
    with TritonServer(repo, free_ports()) as server:
        yield server, repo, experts, backbone


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_mixed_batch_equals_its_rows_alone(served, protocol) -> None:
    server, _, experts, _ = served
    rows = [
        Request(text, name)
        for text, name in zip(ROWS.rows, ("film", "book", "book", "film"), strict=True)
    ]
    with Client(
        server.grpc_url if protocol == "grpc" else server.http_url, protocol=protocol
    ) as client:
        together = client.infer(rows)
        for row, mixed in zip(rows, together, strict=True):
            (alone,) = client.infer([row])
            assert alone.digest == mixed.digest == experts[row.expert].digest
            assert alone.label == mixed.label
            np.testing.assert_allclose(
                list(alone.scores.values()), list(mixed.scores.values()), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_asyncio_client_gets_the_answers_of_the_blocking_one(served, protocol) -> None:
    server, *_ = served
    url = server.grpc_url if protocol == "grpc" else server.http_url
    rows = [Request(text, "film") for text in ROWS.rows]
    candidates = [Request("good", ""), Request("bad", "")]
    with Client(url, protocol=protocol) as client:
        expected = [client.infer([row]) for row in rows], client.choose(rows[0], candidates)

    async def asked():
        async with AsyncClient(url, protocol=protocol) as client:
            # One request after the other: a batch of several rounds may answer in another order.
            found = [await client.infer([row]) for row in rows]
            choice = await client.choose(rows[0], candidates)
            streamed = [result.label async for result in client.stream(rows, batch_size=3)]
            with pytest.raises(ServingError, match="unknown expert 'nope'"):
                await client.infer([Request("x", "nope")])
            at_once = await asyncio.gather(*(client.infer([row]) for row in rows * 4))
            return (found, choice), streamed, at_once

    found, streamed, at_once = asyncio.run(asked())
    assert found == expected
    assert streamed == [result.label for (result,) in expected[0]]
    assert [result.label for (result,) in at_once] == streamed * 4


def test_merged_and_bank_agree(served) -> None:
    server, _, _, _ = served
    with Client(server.grpc_url) as bank, Client(server.grpc_url, model="film") as merged:
        for text in ROWS.rows:
            (first,), (second,) = (
                bank.infer([Request(text, "film")]),
                merged.infer([Request(text, "")]),
            )
            assert first.digest == second.digest
            np.testing.assert_allclose(
                list(first.scores.values()), list(second.scores.values()), atol=1e-5, rtol=0
            )


def test_plain_http_gets_an_answer(served) -> None:
    server, _, experts, _ = served
    body = {
        "inputs": [
            {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["great"]},
            {"name": "EXPERT", "shape": [1, 1], "datatype": "BYTES", "data": ["film"]},
        ]
    }
    with urllib.request.urlopen(
        f"http://{server.http_url}/v2/models/pidep_bank/infer",
        json.dumps(body).encode(),
        timeout=10,
    ) as response:
        outputs = {output["name"]: output["data"] for output in json.load(response)["outputs"]}
    assert outputs["DIGEST"] == [experts["film"].digest]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", ["pidep_bank", "film"])
def test_a_stock_client_sends_columns_in_the_place_of_texts(served, protocol, model) -> None:
    server, *_ = served
    triton = import_module(f"tritonclient.{protocol}")
    client = triton.InferenceServerClient(
        server.grpc_url if protocol == "grpc" else server.http_url
    )

    def ask(**tensors: list[str]):
        inputs = []
        for name, values in tensors.items():
            inputs.append(triton.InferInput(name, [len(values), 1], "BYTES"))
            inputs[-1].set_data_from_numpy(np.array([[one] for one in values], dtype=object))
        return client.infer(model, inputs)

    bank = {"EXPERT": ["film", "film"]} if model == "pidep_bank" else {}
    rows = [{"subject": "film", "verdict": "great"}, {"verdict": "awful", "subject": "great film"}]
    texts = ["the film was great", "the great film was awful"]
    as_text = ask(TEXT=texts, **bank)
    as_columns = ask(COLUMNS=[json.dumps(row) for row in rows], **bank)
    for name in ("SCORES", "LABELS", "LABEL", "DIGEST"):
        np.testing.assert_array_equal(as_columns.as_numpy(name), as_text.as_numpy(name))
    asked = [Request(columns=row, expert="film") for row in rows]
    with Client(server.grpc_url, model=model) as ours:
        found = np.float32([list(result.scores.values()) for result in ours.infer(asked)])
    np.testing.assert_array_equal(found, as_text.as_numpy("SCORES"))
    for column, message in (
        ({"subject": "film"}, "row 2: no column 'verdict'"),
        ({**rows[1], "year": 1999}, "row 2: unknown column 'year'"),
        ({"subject": " ", "verdict": ""}, "row 2: the text is empty"),
    ):
        with pytest.raises(InferenceServerException, match=message) as caught:
            ask(COLUMNS=[json.dumps(rows[0]), json.dumps(column)], **bank)
        assert str(caught.value.status()) in ("StatusCode.INVALID_ARGUMENT", "400")
    with pytest.raises(InferenceServerException, match="row 1: expected a text"):
        ask(TEXT=["", "a film"], **bank)


def test_predict_answers_a_file_as_the_server_answers_its_columns(served, tmp_path) -> None:
    server, _, experts, backbone = served
    write_expert(experts["film"], tmp_path / "run" / "expert")
    rows = [{"subject": "film", "verdict": "great"}, {"subject": "great film", "verdict": "bad"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    offline = predict_file(PredictSettings(run=tmp_path / "run", file=file), backbone=backbone)
    with Client(server.grpc_url) as client:
        online = client.infer([Request(columns=row, expert="film") for row in rows])
    for one, other in zip(offline.answers, online, strict=True):
        assert (one.label, one.digest) == (other.label, other.digest)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_an_unknown_expert_is_named_and_neighbours_go_on(served) -> None:
    server, _, _, _ = served
    with Client(server.grpc_url) as client:
        with pytest.raises(
            ServingError, match="unknown expert 'nope'; this server has: book, film"
        ):
            client.infer([Request("x", "nope")])
        assert client.infer([Request("x", "film")])


def test_a_text_model_refuses_images(served) -> None:
    server, _, _, _ = served
    with Client(server.grpc_url) as client:
        with pytest.raises(ServingError, match="IMAGE"):
            client.infer([Request("good", "film", png(0))])
        assert client.infer([Request("good", "film")])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_giant_texts_are_refused_and_neighbours_are_answered(served, protocol) -> None:
    """10 MB of text would keep the server busy for half a minute."""
    server, _, experts, _ = served
    url = server.grpc_url if protocol == "grpc" else server.http_url
    refused: list[str] = []
    attackers = [
        ([Request("good film " * 10**6, "film")], r"max_text_bytes\), found 10000000"),
        ([Request("good", "film" * 10**6)], r"max_text_bytes\), found 4000000"),
        ([Request("good film " * 6000, "film")] * 20, r"max_request_text_bytes\), found 1080000"),
        # Triton Server's own limit, from config.pbtxt.
        ([Request("good", "film")] * 65, r"batch-size must be <= 64"),
    ]

    def attack() -> None:
        with Client(url, protocol=protocol) as client:
            for rows, message in attackers:
                with pytest.raises(ServingError, match=message) as error:
                    client.infer(rows)
                refused.append(str(error.value))

    thread = threading.Thread(target=attack)
    thread.start()
    with Client(url, protocol=protocol) as client:
        while thread.is_alive():
            (result,) = client.infer([Request("good", "film")])
            assert result.digest == experts["film"].digest
    thread.join()
    assert len(refused) == len(attackers)


def test_a_refusal_has_the_code_of_a_wrong_request(served) -> None:
    server, *_ = served
    rows = [Request("a" * 70_000, "film")]
    with Client(server.grpc_url) as client, pytest.raises(ServingError) as error:
        client.infer(rows)
    assert error.value.__cause__.status() == "StatusCode.INVALID_ARGUMENT"
    with Client(server.http_url, protocol="http") as client, pytest.raises(ServingError) as error:
        client.infer(rows)
    assert error.value.__cause__.status() == "400"


def test_swaps_under_traffic_lose_nothing(served) -> None:
    server, repo, experts, backbone = served
    other = make_expert(backbone, name="film", seed=11)
    versions = [experts["film"], replace(other, template=experts["film"].template)]
    known = {expert.digest for expert in versions}
    stop = threading.Event()
    sent, answered, wrong, failed = [0] * 4, [0] * 4, [], []

    def traffic(worker: int) -> None:
        with Client(server.grpc_url) as client:
            while not stop.is_set():
                sent[worker] += 1
                try:
                    (result,) = client.infer([Request("the film was good", "film")])
                    answered[worker] += 1
                    if result.digest not in known:
                        wrong.append(result.digest)
                except ServingError as error:
                    failed.append(str(error))

    threads = [threading.Thread(target=traffic, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    try:
        for index in range(50):
            target = versions[(index + 1) % 2]
            assert swap_expert("film", target, repo, server.grpc_url).new_digest == target.digest
    finally:
        time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert not wrong
    assert sum(sent) == sum(answered)
    assert sum(sent) > 50


def test_a_taken_port_is_one_clear_line(served) -> None:
    server, repo, _, _ = served
    with pytest.raises(ServingError, match=rf"HTTP port 127\.0\.0\.1:{server.ports.http} is taken"):
        TritonServer(repo, Ports(http=server.ports.http)).start()


def test_a_swap_without_a_server_publishes_nothing(served) -> None:
    _, repo, _, backbone = served
    store = (repo / ".." / "expert_store" / "manifest.json").read_bytes()
    with pytest.raises(ServingError):
        swap_expert(
            "film",
            make_expert(backbone, seed=5),
            repo,
            f"127.0.0.1:{free_ports().grpc}",
            timeout_s=2,
        )
    assert (repo / ".." / "expert_store" / "manifest.json").read_bytes() == store
