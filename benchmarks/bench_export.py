"""Time of a batch in exported graphs of MiniLM: merged and bank, fp32 and int8, one kind and five.

Writes `benchmarks/results/export.json`. Every engine runs in a process of its own, because thread
pools of two engines disturb each other; the engines take turns, because the machine's speed drifts.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import Claim, write_result

__all__ = ["claims_of", "main"]

SIZES = ((1, 16), (8, 32), (32, 64))
"""Rows and tokens of a batch."""
ROUNDS = 5
SECONDS = 1.5
"""How long an engine runs one size in a round."""
EXPERTS, RANK = 8, 8
BANK_AT_MOST = {(1, 16): 1.12, (8, 32): 1.04, (32, 64): 1.03}
"""Most time of a bank of LoRAs, relative to a merged graph."""
INT8_AT_LEAST = 1.9


def build(folder: Path) -> dict[str, Path]:
    """Engine name to graph."""
    from pidep.adapters.bank import bank_groups
    from pidep.adapters.kinds import KINDS
    from pidep.adapters.mixture import find_sites, fresh
    from pidep.backbones.load import load_backbone
    from pidep.experts.folder import Expert
    from pidep.export.graph import export_bank_graph, export_merged_graph
    from pidep.export.quantise import quantise
    from pidep.export.recipe import Quantisation

    backbone = load_backbone("minilm")
    sites = {kind: find_sites(backbone.model, kind=kind) for kind in KINDS}
    labels = backbone.label_embeddings(["positive", "negative"]).numpy()
    expert = Expert(
        name="bench",
        backbone_digest=backbone.digest,
        sites=fresh(backbone.model, sites["lora"], kind="lora", rank=RANK),
        scaling=1.0,
        labels=("positive", "negative"),
        label_texts=("positive", "negative"),
        label_embeddings=labels,
        logit_scale=20.0,
        max_length=64,
    )
    graphs = {name: folder / f"{name}.onnx" for name in ("merged", "bank-lora", "bank-five-kinds")}
    export_merged_graph(backbone, expert, graphs["merged"], opset=20)
    for name, kinds in (("bank-lora", ["lora"]), ("bank-five-kinds", list(KINDS))):
        groups = [
            group
            for kind in kinds
            for group in bank_groups(backbone.model, sites[kind], kind=kind, size=RANK)
        ]
        export_bank_graph(backbone, groups, graphs[name], opset=20)
    for name in list(graphs):
        copy = folder / f"{name}-int8.onnx"
        shutil.copyfile(graphs[name], copy)
        quantise(copy, Quantisation())
        graphs[f"{name}-int8"] = copy
    return graphs


def time_engine(graph: Path) -> dict[str, float]:
    """Median milliseconds of a batch by size, in this process."""
    from pidep.files.digest import file_digest
    from pidep.runtime.session import open_session

    session = open_session(graph, file_digest(graph))
    rng = np.random.default_rng(0)
    found = {}
    for rows, tokens in SIZES:
        feeds: dict[str, Any] = {
            "input_ids": rng.integers(1000, 20000, (rows, tokens)),
            "attention_mask": np.ones((rows, tokens), np.int64),
            "slots": rng.integers(1, EXPERTS + 1, (rows, 1)),
        }
        for one in session.get_inputs():
            if one.name == "weights":
                feeds[one.name] = np.ones((rows, 1, one.shape[2]), np.float32)
            elif one.name not in feeds:
                shape = [EXPERTS + 1 if isinstance(size, str) else size for size in one.shape]
                feeds[one.name] = rng.normal(0, 0.02, shape).astype(np.float32)
        names = {one.name for one in session.get_inputs()}
        feeds = {name: value for name, value in feeds.items() if name in names}
        session.run(None, feeds)
        times, end = [], time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            session.run(None, feeds)
            times.append(1e3 * (time.perf_counter() - start))
        found[f"{rows}x{tokens}"] = statistics.median(times)
    return found


def claims_of(rounds: dict[str, list[dict[str, float]]]) -> list[Claim]:
    """Ratios of medians over the rounds."""

    def median(engine: str, size: str) -> float:
        return statistics.median(one[size] for one in rounds[engine])

    claims: list[Claim] = []
    for (rows, tokens), most in BANK_AT_MOST.items():
        size = f"{rows}x{tokens}"
        ratio = round(median("bank-lora", size) / median("merged", size), 3)
        claims.append(
            {
                "claim": f"time of a bank of {EXPERTS} LoRAs on every Linear over merged, {size}",
                "target": f"≤ {most}",
                "measured": ratio,
                "met": ratio <= most,
            }
        )
    for engine in ("merged", "bank-lora", "bank-five-kinds"):
        ratio = round(median(engine, "32x64") / median(f"{engine}-int8", "32x64"), 2)
        claims.append(
            {
                "claim": f"int8 over fp32 in speed, {engine}, 32x64",
                "target": f"≥ {INT8_AT_LEAST}",
                "measured": ratio,
                "met": ratio >= INT8_AT_LEAST,
            }
        )
    return claims


def main() -> int:
    """Build the graphs, time them in turns, and write the result."""
    if sys.argv[1:]:
        print(json.dumps(time_engine(Path(sys.argv[1]))))
        return 0
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        graphs = build(Path(folder))
        for number in range(ROUNDS):
            # The order turns round, so that no engine is always behind the same one.
            for name in list(graphs) if number % 2 else list(reversed(graphs)):
                command = [sys.executable, "-m", "benchmarks.bench_export", str(graphs[name])]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rounds.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    flags = Path("/proc/cpuinfo").read_text()
    path = write_result(
        "export",
        command="python -m benchmarks.bench_export",
        raw={"median_ms": rounds, "vnni": "avx512_vnni" in flags or "avx_vnni" in flags},
        claims=claims_of(rounds),
    )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
