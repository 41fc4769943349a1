"""Time of a batch of MiniLM: pidep's merged and bank graphs beside PyTorch and its peers.

Writes `benchmarks/results/export.json`. Every engine runs in a process of its own, because thread
pools of two engines disturb each other; the engines take turns, because the machine's speed drifts.

    python -m benchmarks.bench_export [--optimum PYTHON] [--openvino PYTHON] [--rounds N]

The peers need environments of their own: `pip install torch 'optimum-onnx[onnxruntime]'` and
`pip install openvino`. A peer without one is left out, and its claim with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.batch import EXPERTS, RANK, SIZES, flops_of, name_of
from benchmarks.record import Claim, write_result

__all__ = ["build", "claims_of", "main"]

Rounds = Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]
"""Engine to the milliseconds by size, median and least, of each round."""
PARTS = 4
"""Parts of a mixture; folded, it has the rank of them all."""
BANK_AT_MOST = {(1, 16): 1.12, (8, 32): 1.04, (32, 64): 1.03}
"""Most time of a bank of LoRAs, relative to a merged graph."""
PEFT_AT_LEAST = {(1, 16): 4.0, (8, 32): 2.0, (32, 64): 1.5}
MERGED_AT_LEAST = {
    "torch-eager": 1.3,
    "torch-compile": 1.05,
    "optimum-onnx": 1.05,
    "openvino": 1.05,
}
INT8_AT_LEAST = 1.9
PEAK_AT_LEAST = 0.85
_SAME = 2e-3
"""Of a logit: engines that answer the same question in fp32."""
ENGINES = {
    "merged": ("onnx_runtime:merged", "merged.onnx"),
    "merged-int8": ("onnx_runtime:merged", "merged-int8.onnx"),
    "bank-lora": ("onnx_runtime:bank", "bank-lora.onnx"),
    "bank-lora-one": ("onnx_runtime:bank", "bank-lora.onnx", "one"),
    "bank-lora-int8": ("onnx_runtime:bank", "bank-lora-int8.onnx"),
    "bank-mixtures": ("onnx_runtime:bank", "bank-lora.onnx", str(PARTS)),
    "bank-folded": ("onnx_runtime:bank", "bank-folded.onnx"),
    "bank-five-kinds": ("onnx_runtime:bank", "bank-five-kinds.onnx"),
    "bank-five-apart": ("onnx_runtime:five_apart", "bank-five-kinds.onnx"),
    "torch-eager": ("pytorch:eager",),
    "torch-compile": ("pytorch:compiled",),
    "peft": ("pytorch:peft",),
}
"""Name to how `benchmarks.engines.run` makes the engine."""
PEERS = {"optimum-onnx": ("optimum_onnx:model",), "openvino": ("open_vino:model", "merged.onnx")}


def build(folder: Path) -> None:
    """Write the model, the labels and every graph into a folder."""
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
        # A fresh LoRA changes nothing, so the merged graph answers as the plain model.
        sites=fresh(backbone.model, sites["lora"], kind="lora", rank=RANK),
        scaling=1.0,
        labels=("positive", "negative"),
        label_texts=("positive", "negative"),
        label_embeddings=labels,
        logit_scale=20.0,
        max_length=64,
    )
    np.save(folder / "labels.npy", 20.0 * labels)
    backbone.model.save_pretrained(folder / "hf")
    export_merged_graph(backbone, expert, folder / "merged.onnx", opset=20)
    banks = {
        "bank-lora": (["lora"], RANK),
        "bank-folded": (["lora"], RANK * PARTS),
        "bank-five-kinds": (list(KINDS), RANK),
    }
    for name, (kinds, size) in banks.items():
        groups = [bank_groups(backbone.model, sites[kind], kind=kind, size=size) for kind in kinds]
        inputs = [[group.input for group in some] for some in groups]
        (folder / f"layout-{name}.onnx.json").write_text(json.dumps(inputs))
        every = [group for some in groups for group in some]
        export_bank_graph(backbone, every, folder / f"{name}.onnx", opset=20)
    for name in ("merged", "bank-lora"):
        copy = folder / f"{name}-int8.onnx"
        shutil.copyfile(folder / f"{name}.onnx", copy)
        quantise(copy, Quantisation())
    shutil.copyfile(
        folder / "layout-bank-lora.onnx.json", folder / "layout-bank-lora-int8.onnx.json"
    )


def claims_of(rounds: Rounds, peak: Mapping[str, float]) -> list[Claim]:
    """Ratios of the least times of all rounds: what else the machine does only adds time."""

    def ms(engine: str, size: tuple[int, int]) -> float:
        return min(one[name_of(*size)]["least_ms"] for one in rounds[engine])

    def ratio(slow: str, fast: str, size: tuple[int, int]) -> float:
        return ms(slow, size) / ms(fast, size)

    largest = SIZES[-1]
    claims = []
    for peer, least in MERGED_AT_LEAST.items():
        if peer in rounds:
            worst = min(SIZES, key=lambda size, peer=peer: ratio(peer, "merged", size))
            what = f"speed of merged over {peer}, the least of four sizes ({name_of(*worst)})"
            claims.append(_at_least(what, ratio(peer, "merged", worst), least))
    reached = flops_of(*largest) / ms("merged", largest) / 1e6
    what = f"share of the machine's sgemm peak, merged, {name_of(*largest)}"
    claims.append(_at_least(what, reached / peak["sgemm"], PEAK_AT_LEAST))
    for name in ("merged", "bank-lora"):
        what = f"speed of int8 over fp32, {name}, {name_of(*largest)}"
        claims.append(_at_least(what, ratio(name, f"{name}-int8", largest), INT8_AT_LEAST))
    for size, most in BANK_AT_MOST.items():
        what = f"time of a bank of {EXPERTS} LoRAs on every Linear over merged, {name_of(*size)}"
        claims.append(_at_most(what, ratio("bank-lora", "merged", size), most))
    for size, least in PEFT_AT_LEAST.items():
        what = f"speed of a bank of {EXPERTS} LoRAs over PEFT's adapter_names, {name_of(*size)}"
        claims.append(_at_least(what, ratio("peft", "bank-lora", size), least))
    for size in SIZES[2:]:
        what = f"time of five kinds in one batch over five batches, {name_of(*size)}"
        claims.append(_at_most(what, ratio("bank-five-kinds", "bank-five-apart", size), 1.0))
    for size in (SIZES[0], *SIZES[2:]):
        what = f"time of mixtures of {PARTS} by reference over folded ones, {name_of(*size)}"
        claims.append(_at_most(what, ratio("bank-mixtures", "bank-folded", size), 1.05))
    return claims


def _at_least(what: str, found: float, least: float) -> Claim:
    return {
        "claim": what,
        "target": f"≥ {least}",
        "measured": round(found, 3),
        "met": found >= least,
    }


def _at_most(what: str, found: float, most: float) -> Claim:
    return {"claim": what, "target": f"≤ {most}", "measured": round(found, 3), "met": found <= most}


def _run(python: str, folder: Path, engine: Sequence[str]) -> dict[str, Any]:
    """What one process of `benchmarks.engines.run` prints."""
    command = [python, "-m", "benchmarks.engines.run", str(folder), *engine]
    # No hub: everything is in the folder.
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _require_same(name: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest difference from the merged graph's logits.

    Raises:
        SystemExit: the engine answers another question.
    """
    worst = max(
        float(np.abs(np.subtract(one["answer"], expected[size]["answer"])).max())
        for size, one in found.items()
    )
    if worst > _SAME:
        raise SystemExit(f"{name}: logits differ from the merged graph's by {worst}")
    return worst


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the graphs, time the engines in turns, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimum", help="Python of an environment with optimum-onnx")
    parser.add_argument("--openvino", help="Python of an environment with openvino")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args(arguments)
    pythons = dict.fromkeys(ENGINES, sys.executable)
    engines = dict(ENGINES)
    for name, python in (("optimum-onnx", asked.optimum), ("openvino", asked.openvino)):
        if python is not None:
            pythons[name], engines[name] = python, PEERS[name]
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in engines}
    peaks, differences = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder)
        if asked.optimum is not None:
            _run(asked.optimum, folder, ["optimum_onnx:export"])
        for number in range(asked.rounds):
            peaks.append(_run(sys.executable, folder, ["peak:products"]))
            # The order turns round, so that no engine is always behind the same one.
            order = list(engines) if number % 2 else list(reversed(engines))
            found = {name: _run(pythons[name], folder, engines[name]) for name in order}
            for name, one in found.items():
                rounds[name].append(
                    {
                        size: {key: value[key] for key in ("median_ms", "least_ms")}
                        for size, value in one.items()
                    }
                )
                if name in MERGED_AT_LEAST:
                    differences[name] = _require_same(name, one, found["merged"])
    peak = {name: max(one[name] for one in peaks) for name in peaks[0]}
    flags = Path("/proc/cpuinfo").read_text()
    path = write_result(
        "export",
        command=f"python -m benchmarks.bench_export --rounds {asked.rounds}"
        + "".join(f" --{name} PYTHON" for name in ("optimum", "openvino") if getattr(asked, name)),
        raw={
            "rounds": rounds,
            "peak_gflops": peaks,
            "logits_off": differences,
            "vnni": "avx512_vnni" in flags or "avx_vnni" in flags,
        },
        claims=claims_of(rounds, peak),
    )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
