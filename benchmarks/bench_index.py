"""Top-k over 10,000 tasks: about two minutes of one core, results in `results/index.json`.

    python -m benchmarks.bench_index

The tasks are synthetic variations of real ones. A real one is the Fisher embedding of a rank-4 LoRA
on the queries and values of MiniLM's last two layers, trained briefly on a packaged sentiment
domain. A synthetic task moves a real one (log-normally) to one of 200 clusters, along 8 directions
of that cluster, by noise of its own, and in the scale of each tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from benchmarks.record import Claim, write_result

TASKS, CLUSTERS, DIRECTIONS, QUERIES, K = 10_000, 200, 8, 100, 3
SPREAD = {"cluster": 0.8, "directions": 0.7, "noise": 0.3, "scale": 0.5}
"""Standard deviations of natural logarithms."""
SITES = ["encoder.layer.[45].attention.self.query", "encoder.layer.[45].attention.self.value"]
DOMAINS = ("amazon", "movie", "nyt", "tweets")
T = TypeVar("T")
Embedding = Mapping[str, npt.NDArray[np.float32]]


def real_embeddings() -> dict[str, Embedding]:
    """The Fisher embedding of a briefly trained expert of each domain."""
    from pidep.adapters.mixture import Mixture, find_sites, fresh
    from pidep.backbones.load import load_backbone
    from pidep.experts.folder import Expert
    from pidep.similarity.fisher import diagonal_fisher
    from pidep.tasks.data import limit, load_data
    from pidep.tasks.task import load_task

    backbone = load_backbone()
    sites = find_sites(backbone.model, SITES)
    found: dict[str, Embedding] = {}
    for domain in DOMAINS:
        task = load_task(f"sentiment/{domain}")
        rows = limit(load_data(task).train, 128, seed=0)
        labels = backbone.encode(list(task.labels.values()), max_length=32)
        mixture = Mixture([fresh(backbone.model, sites, rank=4)], [2.0])
        expert = Expert(
            name=domain,
            backbone_digest=backbone.digest,
            sites=dict(mixture.part(0)),
            scaling=2.0,
            labels=tuple(task.labels),
            label_texts=tuple(task.labels.values()),
            label_embeddings=labels.numpy(),
            logit_scale=20.0,
            max_length=32,
        )
        with backbone.cached_below(sites):
            _train(backbone, mixture, expert, rows.rows, rows.labels)
            expert.sites.update(mixture.part(0))
            found[domain] = diagonal_fisher(backbone, expert, rows.rows, rows.labels)
    return found


def _train(backbone: Any, mixture: Any, expert: Any, texts: list[str], labels: list[int]) -> None:
    """One epoch of AdamW."""
    import torch

    from pidep.adapters.mixture import attached

    optimizer = torch.optim.AdamW(mixture.expert_parameters(), lr=2e-3)
    with attached(backbone.model, mixture):
        for start in range(0, len(texts), 16):
            embedded = backbone.embed(texts[start : start + 16], max_length=expert.max_length)
            logits = expert.logit_scale * embedded @ torch.from_numpy(expert.label_embeddings).T
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels[start : start + 16])
            ).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def make_pool(pool: Path) -> dict[str, int]:
    """Write the tasks in a process of their own, so that the measuring process never holds them
    all.
    """
    from pidep.similarity.measures import TensorLayout

    real = real_embeddings()
    layout = TensorLayout.of(next(iter(real.values())))
    rng = np.random.default_rng(0)

    def normal(shape: int | tuple[int, int]) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    bases = [np.log(layout.vector(embedding) + np.float32(1e-12)) for embedding in real.values()]
    size = len(bases[0])
    for cluster in range(CLUSTERS):
        centre = bases[cluster % len(bases)] + SPREAD["cluster"] * normal(size)
        directions = normal((DIRECTIONS, size)) * np.float32(DIRECTIONS**-0.5)
        for number in range(cluster, TASKS, CLUSTERS):
            logs = (
                centre
                + SPREAD["directions"] * normal(DIRECTIONS) @ directions
                + SPREAD["noise"] * normal(size)
            )
            for span in layout.spans:
                logs[span] += rng.normal(0, SPREAD["scale"])
            vector = np.exp(logs)
            tensors = {
                name: vector[span].reshape(shape)
                for (name, shape), span in zip(layout.shapes, layout.spans, strict=True)
            }
            _write_task(pool / f"task-{number:05}", tensors)
    return {"numbers": size}


def _write_task(folder: Path, tensors: Embedding) -> None:
    folder.mkdir(parents=True)
    record = {
        "digest": f"sha256:{folder.name}",
        "backbone": "minilm",
        "backbone_digest": "sha256:minilm",
        "kind": "lora",
    }
    record |= {"sites": [], "labels": ["negative", "positive"]}
    (folder / "expert.json").write_text(json.dumps(record))
    save_file(dict(tensors), folder / "fisher.safetensors")


def measure(pool: Path) -> dict[str, Any]:
    """Build, query, all pairs, add, in one process, so that its peak memory belongs to them."""
    from pidep.similarity.index import TaskIndex

    build = _timed(lambda: TaskIndex.open(pool))[1]
    index, again = _timed(lambda: TaskIndex.open(pool))
    embeddings = {
        name: load_file(pool / name / "fisher.safetensors") for name in _queries(index.names)
    }
    index.top_k(next(iter(embeddings.values())), K)  # the first query imports scikit-learn
    queries = {
        name: _timed(partial(index.top_k, own, K, exclude={name}))
        for name, own in embeddings.items()
    }
    peak_queries_mib = _peak_mib()
    every, all_pairs = _timed(lambda: dict(index.all_top_k(K)))
    added = []
    for number, name in enumerate(list(embeddings)[:5]):
        shutil.copytree(pool / name, pool / f"new-{number}")
        added.append(_timed(partial(index.add, f"new-{number}"))[1])
    return {
        "build_s": _rounded(build),
        "open_again_s": _rounded(again),
        "query_ms": {
            clock: _percentiles([times[clock] * 1e3 for _, times in queries.values()])
            for clock in ("cpu", "wall")
        },
        "all_pairs_top_k_s": _rounded(all_pairs),
        "add_a_task_s": {
            clock: round(float(np.median([times[clock] for times in added])), 3)
            for clock in ("cpu", "wall")
        },
        "peak_rss_mib": round(_peak_mib()),
        "peak_rss_queries_only_mib": round(peak_queries_mib),
        "neighbours": {name: [near.name for near in found] for name, (found, _) in queries.items()},
        "neighbours_all_pairs": {name: [near.name for near in every[name]] for name in embeddings},
        "sketch_file_mib": round((pool / ".sketches.safetensors").stat().st_size / 2**20, 1),
    }


def _timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result of a call, and its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _rounded(times: Mapping[str, float]) -> dict[str, float]:
    return {clock: round(value, 2) for clock, value in times.items()}


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(values, share)), 2) for share in (50, 90, 99)}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _queries(names: list[str]) -> list[str]:
    own = [name for name in names if name.startswith("task-")]
    return [own[row] for row in np.random.default_rng(1).choice(len(own), QUERIES, replace=False)]


def exact_top_k(pool: Path) -> dict[str, list[str]]:
    """Every query against every task, by the formula in fp32. All tensors have one size here."""
    names = sorted(path.name for path in pool.iterdir() if path.name.startswith("task-"))
    queries = _queries(names)

    def read(name: str) -> npt.NDArray[np.float32]:  # [T, P]
        return np.stack(
            [
                array.ravel()
                for _, array in sorted(load_file(pool / name / "fisher.safetensors").items())
            ]
        )

    targets = [read(name) for name in queries]
    scores = np.empty((len(queries), len(names)))
    for column, name in enumerate(names):
        other = read(name)
        for row, own in enumerate(targets):
            total = own + other
            share, rest = own / total, other / total
            across, left, right = (
                np.einsum("tp,tp->t", one, two)
                for one, two in ((share, rest), (share, share), (rest, rest))
            )
            scores[row, column] = (
                -1 if name == queries[row] else np.mean(across / np.sqrt(left * right))
            )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return {
        query: [names[column] for column in columns]
        for query, columns in zip(queries, best, strict=True)
    }


def recall(found: Mapping[str, list[str]], exact: Mapping[str, list[str]]) -> float:
    """Share of the exact neighbours that were found."""
    return float(np.mean([len(set(found[name]) & set(exact[name])) / K for name in exact]))


def _stage(name: str, pool: Path) -> Any:
    """A stage in a process of its own, on one thread.

    On a busy machine, threads that wait for each other would dominate the measurement.
    """
    command = [sys.executable, "-m", "benchmarks.bench_index", "--stage", name, "--pool", str(pool)]
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **one_thread}
    )
    if done.returncode != 0:
        raise SystemExit(f"bench_index: stage {name} ended with code {done.returncode}")
    return json.loads(done.stdout)


def main() -> None:
    """Make the pool, measure, compare with brute force, write the result."""
    folder = Path(tempfile.mkdtemp(prefix="pidep-index-"))
    try:
        pool = folder / "pool"
        made = _stage("make", pool)
        measured = _stage("measure", pool)
        exact = _stage("exact", pool)
    finally:
        shutil.rmtree(folder)
    found, found_all = measured.pop("neighbours"), measured.pop("neighbours_all_pairs")
    measured |= {
        "recall_at_3": round(recall(found, exact), 4),
        "recall_at_3_all_pairs": round(recall(found_all, exact), 4),
    }
    raw = {
        "tasks": TASKS,
        "made_up_around": (
            f"LoRA of rank 4 on {SITES} of MiniLM, one epoch of 128 rows of each of "
            f"{', '.join(DOMAINS)}"
        ),
        "clusters": CLUSTERS,
        "directions": DIRECTIONS,
        "spread_of_logarithms": SPREAD,
        "fewer_sites": (
            "queries and values only, so that 10,000 files stay at half a GiB; every Linear of the "
            "two layers is 4.5 times that"
        ),
        "all_embeddings_mib": round(made["numbers"] * 4 * TASKS / 2**20),
        "matrix_of_all_pairs_mib": round(8 * TASKS**2 / 2**20),
        "numbers_a_task": made["numbers"],
        "files": "in the page cache",
        "threads": 1,
        "times": (
            "cpu is what one thread worked, and what counts where others use the machine too; wall "
            "is what the clock said"
        ),
        **measured,
    }
    claims: list[Claim] = [
        _claim(
            "peak memory of top-k over 10,000 tasks, MiB",
            1024,
            measured["peak_rss_mib"],
            at_most=True,
        ),
        _claim(
            "recall@3 of the index over 10,000 tasks against exact",
            0.95,
            measured["recall_at_3"],
            at_most=False,
        ),
        _claim(
            "a query over 10,000 tasks, ms of CPU (median)",
            50,
            measured["query_ms"]["cpu"]["p50"],
            at_most=True,
        ),
        _claim(
            "adding a task to 10,000, seconds of CPU",
            1,
            measured["add_a_task_s"]["cpu"],
            at_most=True,
        ),
    ]
    print(json.dumps({"raw": raw, "claims": claims}, indent=2))
    write_result("index", command="python -m benchmarks.bench_index", raw=raw, claims=claims)


def _claim(claim: str, target: float, measured: float, *, at_most: bool) -> Claim:
    return {
        "claim": claim,
        "target": target,
        "measured": measured,
        "met": measured <= target if at_most else measured >= target,
    }


def _run_stage(name: str, pool: Path) -> None:
    stages = {"make": make_pool, "measure": measure, "exact": exact_top_k}
    print(json.dumps(stages[name](pool)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("make", "measure", "exact"), help=argparse.SUPPRESS)
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        _run_stage(arguments.stage, arguments.pool)
    else:
        main()
