"""All commands in order on a tiny backbone: tune, graph, export, serve, infer, swap, stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest

from pidep.artifacts import BankRecord
from pidep.experts.folder import read_expert
from pidep.experts.mixed import head_of
from pidep.experts.mixture_folder import read_served
from pidep.experts.resolve import resolve_served_folder
from pidep.serving.server import free_ports
from tests.cli.run import assert_refused, environment, in_turn, pidep, untouched, write_run
from tests.conftest import make_expert
from tests.e2e.line import (
    STOCK,
    TASKS,
    TEXTS,
    TUNE,
    Line,
    Traffic,
    run,
    serving,
    wait_for,
    write_task,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def tuned(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Line:
    line = Line(tmp_path_factory.mktemp("line"))
    for seed, name in enumerate(TASKS):
        write_task(line.folder, name, seed)
    common = ("--backbone", tiny_folder, "--pool", "pool", *TUNE, "--json")
    for name, done in zip(
        TASKS,
        in_turn(*(("tune", f"{name}.yaml", *common) for name in TASKS), cwd=line.folder),
        strict=True,
    ):
        assert (done.code, done.err) == (0, "")
        line.tuned[name] = json.loads(done.out)
    return line


@pytest.fixture(scope="module")
def exported(tuned: Line) -> Line:
    runs = ("runs/film", "runs/book", "--keep-rows")
    out = run(tuned.folder, "export", *runs, "--repo", "repo", "--json")
    tuned.exported = json.loads(out)
    return tuned


@pytest.fixture(scope="module")
def served(exported: Line) -> Iterator[Line]:
    (exported.folder / "tmp").mkdir()
    with serving(exported.folder, exported.ports):
        yield exported


# Tune, graph, export.


def test_tune_fills_the_pool_and_mixes_its_experts(tuned: Line) -> None:
    assert sorted(path.name for path in (tuned.folder / "pool").glob("[!.]*")) == sorted(TASKS)
    assert [len(tuned.tuned[name]["neighbours"]) for name in TASKS] == [0, 1, 2]
    assert set(tuned.tuned["film"]["metrics"]) == {
        "majority",
        "probe",
        "backbone",
        "own_expert",
        "uniform",
        "pi",
    }
    for name, result in tuned.tuned.items():
        served = read_served(resolve_served_folder(tuned.folder / "runs" / name))
        assert (served.digest, head_of(served).name) == (result["digest"], name)


def test_graph_writes_every_form_at_once(tuned: Line) -> None:
    document = json.loads(
        run(
            tuned.folder,
            "graph",
            "pool",
            "--png",
            "graph.png",
            "--graphml",
            "graph.graphml",
            "--json",
        )
    )
    graph = networkx.node_link_graph(document, edges="edges")
    again = networkx.read_graphml(tuned.folder / "graph.graphml")
    assert sorted(graph) == sorted(again) == sorted(TASKS)
    assert {frozenset(edge): graph.edges[edge]["similarity"] for edge in graph.edges} == {
        frozenset(edge): again.edges[edge]["similarity"] for edge in again.edges
    }
    assert (tuned.folder / "graph.png").read_bytes()[:4] == b"\x89PNG"


def test_export_publishes_the_bank_and_its_experts(exported: Line) -> None:
    digests = {name: exported.tuned[name]["digest"] for name in ("film", "book")}
    assert exported.exported["experts"] == digests
    manifest = json.loads((exported.folder / "expert_store" / "manifest.json").read_text())
    assert manifest["aliases"] == digests
    assert all(parity["max_abs"] < 1e-3 for parity in exported.exported["parity"].values())


# Infer.


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_texts_as_arguments_are_answered_as_pytorch_would(
    served: Line, tiny, protocol: str
) -> None:
    import torch

    from pidep.adapters.mixture import Mixture, attached

    url = served.grpc if protocol == "grpc" else served.http
    rows = served.infer(*TEXTS, "--expert", "film", "--url", url, "--protocol", protocol, "--json")
    expert = read_expert(served.folder / "runs" / "film" / "expert")
    with attached(tiny.model, Mixture.of([expert])):
        logits = (
            expert.logit_scale
            * tiny.encode(TEXTS, max_length=12)
            @ torch.from_numpy(expert.label_embeddings).T
        )
    np.testing.assert_allclose(
        [list(row["scores"].values()) for row in rows],
        torch.softmax(logits, 1).numpy(),
        atol=1e-5,
        rtol=0,
    )
    assert {(row["expert"], row["digest"], tuple(row["scores"])) for row in rows} == {
        ("film", served.tuned["film"]["digest"], expert.labels)
    }
    assert all(row["label"] == max(row["scores"], key=row["scores"].get) for row in rows)
    bank = BankRecord.read(served.folder / "repo" / "pidep_bank" / "1")
    assert {row["entry"] for row in rows} == {bank.entry_digest}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_jsonl_rows_keep_their_order_and_their_expert(served: Line, protocol: str) -> None:
    url = served.grpc if protocol == "grpc" else served.http
    wanted = [(text, name) for text in TEXTS for name in ("film", None)]
    stdin = "".join(
        json.dumps({"text": text, "expert": name} if name else {"text": text}) + "\n\n"
        for text, name in wanted
    )
    rows = served.infer(
        "--expert", "book", "--url", url, "--protocol", protocol, "--batch-size", 3, stdin=stdin
    )
    assert [row["expert"] for row in rows] == [name or "book" for _, name in wanted]
    assert [row["digest"] for row in rows] == [
        served.tuned[name or "book"]["digest"] for _, name in wanted
    ]
    assert len({tuple(row["scores"].values()) for row in rows}) == len(rows), (
        "every pair of text and expert has its own answer"
    )


def test_wrong_rows_stay_alone_where_asked_for(served: Line) -> None:
    rows = [{"text": TEXTS[0], "expert": name} for name in ("film", "nobody", "book")]
    stdin = "".join(json.dumps(row) + "\n" for row in rows)
    command = ("infer", "--url", served.grpc, "--keep-going", "--batch-size", 2, "--in-flight", 2)
    done = pidep(*command, cwd=served.folder, stdin=stdin)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "1 of 3 rows were not answered; the answers say why" in done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [bool(row["error"]) for row in found] == [False, True, False]
    assert found[1]["error"].startswith("NOT_FOUND: unknown expert 'nobody'")
    assert found[2]["digest"] == served.tuned["book"]["digest"]


def test_a_table_for_people(served: Line) -> None:
    out = run(served.folder, "infer", TEXTS[0], "--expert", "film", "--url", served.grpc)
    (row,) = [line for line in out.splitlines() if TEXTS[0] in line]
    assert served.tuned["film"]["digest"][:19] in row


def test_an_unknown_expert_is_one_line(served: Line) -> None:
    done = pidep("infer", "x", "--expert", "flim", "--url", served.grpc, cwd=served.folder)
    assert_refused(done, r"unknown expert 'flim'; this server has: book, film", code=1)


def test_the_metrics_have_experts_and_versions(served: Line) -> None:
    # The first batch is counted after its replies, and before those of the second.
    for _ in range(2):
        served.infer(TEXTS[0], "--expert", "film", "--url", served.grpc, "--json")
    url = f"http://127.0.0.1:{served.ports.metrics}/metrics"
    lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
    (rows,) = (line for line in lines if line.startswith("pidep_rows_total") and '"film"' in line)
    assert f'version="{served.tuned["film"]["digest"][:19]}"' in rows
    assert float(rows.split()[-1]) >= 1
    assert any(line.startswith("pidep_batch_seconds_bucket") for line in lines)
    own = [line for line in lines if line.startswith("pidep_")]
    found = {line.partition("{")[0]: float(line.split()[-1]) for line in own}
    assert found["pidep_resident_experts"] == 2
    assert found["pidep_store_revision"] >= 1


def test_curl_gets_an_answer(served: Line) -> None:
    rows = {"TEXT": TEXTS, "EXPERT": ["film", "book"] * 2}
    inputs = [
        {"name": name, "shape": [4, 1], "datatype": "BYTES", "data": data}
        for name, data in rows.items()
    ]
    body, url = json.dumps({"inputs": inputs}), f"http://{served.http}/v2/models/pidep_bank/infer"
    if shutil.which("curl"):
        answer = subprocess.run(
            ["curl", "-sSf", "-d", "@-", url],
            input=body,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    else:
        answer = urllib.request.urlopen(url, body.encode(), timeout=10).read()
    outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
    assert outputs["DIGEST"] == [served.tuned[name]["digest"] for name in rows["EXPERT"]]
    assert len(outputs["SCORES"]) == 8


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_client_of_node_gets_an_answer(served: Line) -> None:
    script = Path(__file__).parents[2] / "examples" / "clients" / "ask.mjs"

    def asked(expert: str) -> subprocess.CompletedProcess[str]:
        command = ["node", str(script), f"http://{served.http}", TEXTS[0], expert]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    answer = json.loads(asked("film").stdout)
    (expected,) = served.infer(TEXTS[0], "--expert", "film", "--url", served.grpc, "--json")
    assert (answer["label"], answer["digest"]) == (expected["label"], expected["digest"])
    assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    refused = asked("nobody")
    assert refused.returncode == 1
    assert refused.stderr.startswith("404: unknown expert 'nobody'")


def test_a_stock_client_gets_an_answer_without_pidep(served: Line) -> None:
    command = [sys.executable, "-c", STOCK, served.grpc]
    done = subprocess.run(
        command,
        cwd=served.folder,
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        timeout=60,
    )
    found = json.loads(done.stdout)
    assert found["DIGEST"] == [served.tuned["film"]["digest"]]
    assert found["LABELS"] == ["negative", "positive"]
    assert sum(found["SCORES"]) == pytest.approx(1, abs=1e-6)


def test_a_live_server_is_verified(served: Line) -> None:
    command = ("verify", "repo/pidep_bank", "--url", served.grpc)
    found = json.loads(run(served.folder, *command, "--json"))
    assert [one["name"] for one in found] == ["book", "film"]
    for one in found:
        assert (one["fault"], one["digest"]) == ("", served.tuned[one["name"]]["digest"])
        assert one["max_abs"] < 1e-3
    swap = ("--repo", "repo", "--url", served.grpc)
    run(served.folder, "swap", "film", "runs/film/own", *swap)
    done = pidep(*command, cwd=served.folder)
    run(served.folder, "swap", "film", "runs/film", *swap)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "expert 'film': sha256:" in done.err
    assert "it was swapped" in done.err


def test_swaps_under_traffic_lose_nothing(served: Line) -> None:
    own = read_expert(served.folder / "runs" / "film" / "own").digest
    pi = served.tuned["film"]["digest"]
    traffic, turns = Traffic(served.grpc), [("own", own, pi), ("mixture", pi, own)] * 2
    with traffic.flowing():
        wait_for(lambda: traffic.digests)
        for folder, new, old in turns:
            out = run(
                served.folder,
                "swap",
                "film",
                f"runs/film/{folder}",
                "--repo",
                "repo",
                "--url",
                served.grpc,
                "--json",
            )
            swapped = json.loads(out)
            assert (swapped["old_digest"], swapped["new_digest"]) == (old, new)
            answered = len(traffic.digests)
            wait_for(lambda seen=answered: len(traffic.digests) > seen + len(traffic.sent))
            assert set(traffic.digests[answered + len(traffic.sent) :]) == {new}
    assert not traffic.failures
    assert sum(traffic.sent) == len(traffic.digests)
    assert set(traffic.digests) == {own, pi}
    assert sum(traffic.sent) > 50


def test_a_swap_the_server_does_not_see_is_a_failure(served: Line, tmp_path: Path) -> None:
    for folder in ("repo", "expert_store"):
        shutil.copytree(served.folder / folder, tmp_path / folder)
    another = ("--repo", tmp_path / "repo", "--url", served.grpc, "--timeout", 1)
    with untouched(served.folder / "expert_store"):
        done = pidep("swap", "book", "runs/meal", *another, cwd=served.folder)
        assert_refused(
            done, r"after 1 s the server answered sha256:.*is it serving this repository\?", code=1
        )


def test_a_new_name_is_served_at_once(served: Line) -> None:
    run(served.folder, "swap", "dinner", "runs/book", "--repo", "repo", "--url", served.grpc)
    (row,) = served.infer(TEXTS[0], "--expert", "dinner", "--url", served.grpc, "--json")
    assert row["digest"] == served.tuned["book"]["digest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_digest": "sha256:" + "0" * 64}, r"made for another backbone"),
        (
            {"kind": "bitfit", "sites": {"pooler": {"bias": np.ones(16, np.float32)}}},
            r"is of kind 'bitfit', the bank holds lora",
        ),
        ({"rank": 65}, r"rank 65 and width 16, the bank needs rank <= \d+"),
    ],
)
def test_an_expert_the_bank_cannot_hold_is_not_swapped_in(
    served: Line, tiny, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rank = change.pop("rank", 2)
    expert = replace(make_expert(tiny, rank=rank), **change, scaling=1.0)
    write_run(tmp_path / "run", expert, served.folder / "film.yaml")
    with untouched(served.folder / "expert_store"):
        done = pidep(
            "swap",
            "film",
            tmp_path / "run",
            "--repo",
            "repo",
            "--url",
            served.grpc,
            cwd=served.folder,
        )
        assert_refused(done, message)


# Stop.


def descendants(pid: int) -> list[int]:
    """Every process below another one."""
    # A thread of pidep starts the server, and the children of a process are listed by thread.
    children = [
        int(child)
        for listed in Path(f"/proc/{pid}/task").glob("*/children")
        for child in listed.read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


def lives(pid: int) -> bool:
    """Whether a process is running. A process that has ended and was not reaped is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_cleanly(exported: Line, sent: signal.Signals) -> None:
    ports, scratch = free_ports(), Path(tempfile.mkdtemp(dir=exported.folder))
    (scratch / "tmp").mkdir()
    os.symlink(exported.folder / "repo", scratch / "repo")
    with serving(scratch, ports) as process:
        below = descendants(process.pid)
        assert len(below) >= 2, "tritonserver and its Python stub"
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "stopped\n")
    assert not [pid for pid in below if lives(pid)]
    assert not list((scratch / "tmp").glob("pidep-*"))
    for port in (ports.http, ports.grpc, ports.metrics):
        with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(("127.0.0.1", port))
