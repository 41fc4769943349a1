"""Triton Server with a bank of LoRAs beside the same bank in process: rates, swaps and memory.

Writes `benchmarks/results/serving.json`. The bank is MiniLM's with a LoRA of rank 8 on every
Linear. The load comes from `wrk`; `apt-get install -y wrk` installs it.

    python -m benchmarks.bench_serving [--pilot] [--parts NAME...]

`--pilot` runs a little of everything and writes nothing. `--parts` measures some parts again and
keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.minilm_bank import varied, write_bank
from benchmarks.record import RESULTS, write_result
from benchmarks.serving_claims import claims_of, medians
from benchmarks.serving_load import (
    Asked,
    Load,
    find_wrk,
    first_answer,
    rss_mib,
    texts,
    write_requests,
)
from pidep.artifacts import MergedRecord
from pidep.artifacts.names import BANK, GRAPH, MERGED_RECORD, NO_BYTECODE, SHIM, VERSION
from pidep.backbones.load import load_backbone
from pidep.errors import UsageError
from pidep.experts.folder import Expert
from pidep.export.config_pbtxt import bank_config, merged_config
from pidep.export.graph import export_merged_graph
from pidep.export.recipe import shipped
from pidep.files.digest import file_digest
from pidep.serving import Client, ExpertStore, Request, TritonServer, free_ports

__all__ = ["main"]

RESIDENTS = (10, 100, 1000)
SATURATED, BATCHES = (8, 16, 32), (8, 16, 32)
"""Connections of one row each, and rows of a batch in process."""
REPLACED = "e0"
"""The name that is replaced under load."""
BUSY = 4
"""Connections while experts are replaced."""
SWAPPED_NAMES, VERSIONS = 10, 4
"""Names that are swapped, and prepared versions of each."""
APART = 4
"""Experts that are served by a process each."""
MAX_BATCH = 64
BARE = "bare"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seconds: float = 4.0
    """Of one measurement of a rate."""
    turns: int = 16
    """Of one client; a quarter of them with each number of connections."""
    publishes: int = 30
    """For each number of residents."""
    swaps: int = 10_000
    swaps_within_s: float = 600.0
    """Swaps end after that time, however many there were."""


FULL, PILOT = Plan(), Plan(seconds=3.0, turns=4, publishes=10, swaps=200)


@dataclass(frozen=True)
class Bench:
    """A repository with a bank, its store, and requests to it."""

    folder: Path
    expert: Expert
    plan: Plan

    @classmethod
    def make(cls, folder: Path, plan: Plan) -> Bench:
        """Write the bank and its first experts."""
        version = folder / "bank" / BANK / VERSION
        version.mkdir(parents=True)
        expert = write_bank(version, store="../../../store")
        _complete(
            version,
            bank_config(
                BANK, max_batch_size=MAX_BATCH, hidden_size=expert.label_embeddings.shape[1]
            ),
        )
        return cls(folder, expert, plan)

    @property
    def version(self) -> Path:
        """The bank's version folder."""
        return self.folder / "bank" / BANK / VERSION

    @property
    def store(self) -> ExpertStore:
        """The bank's store."""
        return ExpertStore(self.folder / "store")

    def server(self, repo: str = "bank") -> TritonServer:
        """A server that is not started."""
        return TritonServer(self.folder / repo, free_ports(), ready_within_s=300.0)

    def publish(self, first: int, last: int) -> None:
        """Publish the experts of these numbers under their names, in one revision."""
        experts = {f"e{number}": varied(self.expert, number) for number in range(first, last)}
        with self.store.staged(experts) as commit:
            commit()

    def requests(self, name: str, asked: Sequence[Asked]) -> Path:
        """A file of requests, and one of their rows for the bank in process."""
        path = self.folder / f"{name}.requests"
        write_requests(path, asked)
        path.with_suffix(".json").write_text(json.dumps([[one.text, one.expert] for one in asked]))
        return path

    def zipf(self, experts: int) -> list[Asked]:
        """Rows of all lengths; few names get most of them."""
        rng = np.random.default_rng(0)
        numbers = np.minimum(rng.zipf(1.2, 2000), experts) - 1
        return [
            Asked(text, f"e{number}")
            for text, number in zip(texts(len(numbers)), numbers, strict=True)
        ]

    def wait_for(self, server: TritonServer, count: int) -> None:
        """Return when the server serves that many experts."""
        with Client(server.grpc_url) as client:
            while len(client.status()["served"]) < count:
                time.sleep(0.2)


def measure_rates(bench: Bench) -> dict[str, Any]:
    """One client and many, beside the bank in process, and one beside a model written by hand. They
    take short turns: what else the machine does meets all.
    """
    rows = bench.zipf(RESIDENTS[0])
    middle = sorted(rows, key=lambda one: len(one.text))[len(rows) // 2]
    one = bench.requests("one", [middle])
    mixed = bench.requests("mixed", [middle, *rows])
    rounds: list[dict[str, Any]] = []
    bare_one = bench.requests("bare", [Asked(middle.text, middle.expert, BARE)])
    _write_bare(bench)
    with (
        bench.server() as server,
        bench.server(BARE) as by_hand,
        _bank_in_process(bench, mixed) as bank,
    ):

        def turn(connections: int, size: int, seconds: float) -> None:
            requests = one if connections == 1 else mixed
            load = Load.start(server, requests, connections=connections, seconds=seconds)
            served = {"connections": connections, **load.result()}
            assert bank.stdin is not None
            assert bank.stdout is not None
            bank.stdin.write(f"{size} {seconds}\n")
            bank.stdin.flush()
            in_process = {"rows_of_a_batch": size, **json.loads(bank.stdout.readline())}
            rounds.append({"served": served, "in_process": in_process})
            if connections == 1:
                load = Load.start(by_hand, bare_one, connections=1, seconds=seconds)
                rounds[-1]["by_hand"] = load.result()

        turn(SATURATED[0], BATCHES[0], 1.0)
        turn(1, 1, 1.0)
        rounds.clear()  # the first batches of each are slow
        for _ in range(bench.plan.turns):
            turn(1, 1, 1.0)
        for _ in range(bench.plan.turns // 4):
            for connections, size in zip(SATURATED, BATCHES, strict=True):
                turn(connections, size, 2.0)
    return {"rounds": rounds}


def _write_bare(bench: Bench) -> None:
    """A repository with the model that one would write by hand around the same bank."""
    version = bench.folder / BARE / BARE / VERSION
    version.mkdir(parents=True)
    code = Path(__file__).with_name("bare_model.py").read_text()
    (version / SHIM).write_text(code.replace("BANK_FOLDER", repr(str(bench.version))))
    # What pidep's server asks of a model's folder.
    for name in (MERGED_RECORD, GRAPH):
        (version / name).touch()
    config = bank_config(
        BARE, max_batch_size=MAX_BATCH, hidden_size=bench.expert.label_embeddings.shape[1]
    )
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")


@contextmanager
def _bank_in_process(bench: Bench, requests: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        *(sys.executable, "-m", "benchmarks.serving_in_process", str(bench.version)),
        str(requests.with_suffix(".json")),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def measure_swaps(bench: Bench) -> dict[str, Any]:
    """Swaps under load, several names in a revision, and memory on the way."""
    requests = bench.requests("swaps", bench.zipf(RESIDENTS[0]))
    names = [f"e{number}" for number in range(SWAPPED_NAMES)]
    versions = _prepared(bench)
    revisions = bench.plan.swaps // SWAPPED_NAMES
    times, memory, loads = [], [], []
    until = time.monotonic() + bench.plan.swaps_within_s
    with bench.server() as server, Client(server.grpc_url) as client:
        load = Load.start(server, requests, connections=BUSY, seconds=20)
        for number in range(revisions):
            if time.monotonic() > until:
                break
            if number % max(revisions // 20, 1) == 0:
                memory.append({"swaps": number * SWAPPED_NAMES, **rss_mib(server)})
            new = {name: versions[(number + at) % VERSIONS] for at, name in enumerate(names)}
            times.append(_rename(bench.store, client, new))
            if load.process.poll() is not None:
                loads.append(load.result())
                load = Load.start(server, requests, connections=BUSY, seconds=20)
        swaps = len(times) * SWAPPED_NAMES
        memory.append({"swaps": swaps, **rss_mib(server)})
        loads.append(load.result())
    _say({"revision_ms": statistics.median(times), "memory": memory[-1]})
    return {
        "swaps": swaps,
        "names_in_a_revision": SWAPPED_NAMES,
        "revision_ms": [round(ms, 1) for ms in times],
        "memory": memory,
        "loads": loads,
    }


def _prepared(bench: Bench) -> list[str]:
    """Digests of versions that lie in the store: publishing them costs the publisher nothing."""
    experts = [varied(bench.expert, 2_000 + number) for number in range(VERSIONS)]
    for expert in experts:
        bench.store.publish(expert, "e0")
    return [expert.digest for expert in experts]


def _rename(store: ExpertStore, client: Client, new: dict[str, str]) -> float:
    """Let names mean other versions, and ask until all of them do; milliseconds."""
    started = time.perf_counter()
    store.change(next(iter(new)), lambda manifest: manifest.naming(new), action="rollback")
    rows = [Request("which expert answers?", name) for name in new]
    while [answer.digest for answer in client.infer(rows)] != list(new.values()):
        time.sleep(0.001)
    return 1e3 * (time.perf_counter() - started)


def measure_residents(bench: Bench) -> dict[str, Any]:
    """Publish to the first new answer of any client under load, and memory, with ever more
    residents.
    """
    runs = []
    with bench.server() as server:
        held = RESIDENTS[0]
        for count in RESIDENTS:
            # In parts: experts are made in memory.
            for first in range(held, count, 100):
                bench.publish(first, min(first + 100, count))
            held = count
            bench.wait_for(server, count)
            requests = bench.requests(f"residents-{count}", bench.zipf(count))
            rate = Load.start(
                server, requests, connections=BUSY, seconds=bench.plan.seconds
            ).result()
            seen = bench.folder / f"seen-{count}"
            # Every second row asks the name that is replaced: a swap shows with the next batch, and
            # not when somebody happens to ask.
            rows = [row for one in bench.zipf(count) for row in (one, Asked(one.text, REPLACED))]
            busy = bench.requests(f"publishes-{count}", rows)
            load = Load.start(server, busy, connections=BUSY, seconds=600, seen=seen)
            times = []
            for number in range(bench.plan.publishes):
                new = varied(bench.expert, 10_000 + 1000 * len(runs) + number)
                times.append(_replace(bench.store, REPLACED, new, seen))
                time.sleep(0.1)
            load.process.send_signal(2)
            under = load.result()
            runs.append(
                {
                    "residents": count,
                    "rate": rate,
                    "under_publishes": under,
                    "publishes": times,
                    "memory": rss_mib(server),
                }
            )
            _say({**runs[-1], "publishes": medians(times)})
    return {"runs": runs, **_sizes(bench)}


def measure_apart(bench: Bench) -> dict[str, Any]:
    """A process for each expert beside the bank with the same experts."""
    rows = bench.zipf(APART)
    models = [f"e{number}" for number in range(APART)]
    _write_merged(bench, models)
    alone = bench.requests("apart", [Asked(one.text, model=one.expert) for one in rows])
    together = bench.requests("together", rows)
    found: dict[str, Any] = {"experts": APART}
    for repo, requests in (("merged", alone), ("bank", together)):
        with bench.server(repo) as server:
            load = Load.start(server, requests, connections=32, seconds=bench.plan.seconds)
            found[repo] = {**load.result(), "memory": rss_mib(server)}
    _say(found)
    return found


def _sizes(bench: Bench) -> dict[str, Any]:
    """Memory of the stub without experts, and bytes of one expert."""
    empty = bench.folder / "empty"
    version = empty / "bank" / BANK / VERSION
    shutil.copytree(bench.version.parent, version.parent)
    ask = bench.requests("backbone", [Asked(text, "@backbone") for text in texts(200)])
    with TritonServer(empty / "bank", free_ports()) as server:
        Load.start(server, ask, connections=BUSY, seconds=bench.plan.seconds).result()
        base = rss_mib(server)["stub"]
    factors = [tensor for site in bench.expert.sites.values() for tensor in site.values()]
    return {"base_mib": base, "bytes_per_expert": sum(tensor.nbytes for tensor in factors)}


def _replace(store: ExpertStore, name: str, new: Expert, seen: Path) -> dict[str, float]:
    """Publish an expert under load; milliseconds to the manifest, and on to the first answer.

    The answer may come before the call of the publication returns.
    """
    started = time.monotonic()
    done = store.publish(new, name, action="swap")
    published = time.monotonic()
    assert done.new is not None
    answered = first_answer(seen, done.new)
    return {
        "published_ms": 1e3 * (published - started),
        "answered_ms": 1e3 * (answered - published),
    }


def _write_merged(bench: Bench, models: Sequence[str]) -> None:
    """A merged model for each expert."""
    backbone = load_backbone("minilm")
    for number, name in enumerate(models):
        version = bench.folder / "merged" / name / VERSION
        version.mkdir(parents=True)
        graph = version / "model.onnx"
        expert = varied(bench.expert, number)
        export_merged_graph(backbone, expert, graph, opset=20)
        (version / "tokenizer.json").write_text(backbone.tokenizer_json, encoding="utf-8")
        MergedRecord(
            expert=name,
            digest=expert.digest,
            labels=expert.labels,
            max_length=expert.max_length,
            backbone_digest=backbone.digest,
            graph_digest=file_digest(graph),
        ).write(version)
        config = merged_config(
            name, max_batch_size=MAX_BATCH, platform="python", num_labels=len(expert.labels)
        )
        _complete(version, config)


def _complete(version: Path, config: str) -> None:
    shutil.copyfile(shipped(SHIM), version / SHIM)
    (version / NO_BYTECODE).touch()
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")


def _say(found: Any) -> None:
    """Progress; long lists are left out."""
    if isinstance(found, dict):
        found = {
            key: one for key, one in found.items() if not isinstance(one, list) or len(one) < 5
        }
    print(json.dumps(found), flush=True)


PARTS = {
    "rates": measure_rates,
    "swaps": measure_swaps,
    "apart": measure_apart,
    "residents": measure_residents,
}


def _write(raw: dict[str, Any], *, is_pilot: bool) -> None:
    """The result so far, after each part: a run that is stopped leaves what it has."""
    claims = claims_of(raw)
    for claim in claims:
        _say(claim)
    if not is_pilot:
        command = "python -m benchmarks.bench_serving"
        _say(str(write_result("serving", command=command, raw=raw, claims=claims)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts one after the other on one bank."""
    parser = argparse.ArgumentParser(prog="bench_serving")
    parser.add_argument("--pilot", action="store_true", help="a short run that writes nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    try:
        find_wrk()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = RESULTS / "serving.json"
    raw: dict[str, Any] = {}
    if path.is_file() and not options.pilot:
        raw = json.loads(path.read_text(encoding="utf-8"))["raw"]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.make(Path(folder), PILOT if options.pilot else FULL)
        bench.publish(0, RESIDENTS[0])
        for part in options.parts:
            # What else the machine does is a part of each figure.
            before = os.getloadavg()[0]
            raw[part] = {**PARTS[part](bench), "load_average_before": round(before, 2)}
            _write(raw, is_pilot=options.pilot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
