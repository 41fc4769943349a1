"""Tuned, gated and answered on a GPU: experts of all kinds, in one bank, by ONNX Runtime's CUDA.

    python3 -m benchmarks.gpu.serving [--backbone minilm] [--task sentiment/movie]

Writes `benchmarks/results/serving-gpu.json` in about four minutes. It needs onnxruntime-gpu and
cuda-bindings; `benchmarks.gpu_check` runs it where both are there. Times are medians on the host's
clock, from inputs on the host to embeddings on the host.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engines.batch import Batch, flops_of, name_of
from benchmarks.record import RESULTS, Claim, write_result

__all__ = ["engines", "main", "missing"]

SIZES = ((1, 16), (8, 32), (32, 64), (64, 128))
KINDS = ("lora", "adapter", "prefix", "prompt", "bitfit")
RECIPES = {"fp32": "onnx-cpu", "fp16": "onnx-cuda-fp16"}
RESIDENTS = (10, 100, 500)
SETTINGS: dict[str, Any] = {
    "steps": 60,
    "mixture_steps": 30,
    "train_limit": 800,
    "test_limit": 400,
    "max_length": 64,
}
SWAP_GROWS_AT_MOST = 1.5
BANK_AT_MOST = 1.25
CPU_AND_GPU_APART_AT_MOST = 0.02
CPU = ["cpu"]
"""Tuned there, too."""
Work = Callable[[], object]


def engines() -> dict[str, str]:
    """Which compiled engines this machine has for its GPU: a version, or what is missing."""
    found = {}
    try:
        onnxruntime = import_module("onnxruntime")
        onnxruntime.preload_dlls()
        there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        found["onnxruntime"] = f"{onnxruntime.__version__}{'' if there else ', without CUDA'}"
    except ImportError:
        found["onnxruntime"] = "not installed"
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            found[name] = str(import_module(name).__version__)
        except ImportError:
            found[name] = "not installed"
    try:
        found["cuda-bindings"] = version("cuda-bindings")
    except PackageNotFoundError:
        found["cuda-bindings"] = "not installed"
    return found


def missing() -> str | None:
    """Why this benchmark cannot run here; None where it can."""
    found = engines()
    if "without" in found["onnxruntime"] or found["onnxruntime"] == "not installed":
        return f"onnxruntime: {found['onnxruntime']}; pip install onnxruntime-gpu"
    if found["cuda-bindings"] == "not installed":
        return "cuda-bindings: not installed; pip install cuda-bindings"
    return None


def tuned(folder: Path, task: str, backbone: str, device: str, say: Any) -> dict[str, Any]:
    """An expert of each kind and a few-shot mixture, tuned on the device; LoRAs on the CPU, too.

    Run folders are `folder/DEVICE/NAME`.
    """
    import pidep

    found: dict[str, Any] = {}
    for where in dict.fromkeys((device, *CPU)):
        loaded = pidep.load_backbone(backbone, device=where)
        for kind in KINDS if where == device else ("lora",):
            say(f"tune {kind} on {where}")
            name, out = f"{kind}-{where}", folder / where / kind
            began = time.perf_counter()
            result = pidep.tune(
                task, backbone=loaded, kind=kind, out=out, name=kind, top_k=0, **SETTINGS
            )
            found[name] = {"metrics": dict(result.metrics), "s": time.perf_counter() - began}
        pool, few = folder / where / "pool", {**SETTINGS, "steps": SETTINGS["steps"] // 2}
        for seed in (1, 2):
            pidep.tune(
                *(task,), backbone=loaded, pool=pool, out=folder / where / f"helper-{seed}",
                name=f"helper-{seed}", seed=seed, top_k=0, **few,
            )  # fmt: skip
        say(f"mixture on {where}")
        began = time.perf_counter()
        result = pidep.tune(
            *(task,), backbone=loaded, pool=pool, out=folder / where / "mixture", name="mixture",
            shots=16, policy="anchored", **{**SETTINGS, "train_limit": None},
        )  # fmt: skip
        found[f"mixture-{where}"] = {
            "metrics": dict(result.metrics),
            "s": time.perf_counter() - began,
        }
    return found


def exported(folder: Path, device: str, say: Any) -> dict[str, Any]:
    """A bank of all kinds and the mixture, and a merged LoRA, in both precisions, each gated."""
    import pidep

    runs = {name: folder / device / name for name in (*KINDS, "mixture")}
    found = {}
    for precision, recipe in RECIPES.items():
        for form in ("bank", "merged"):
            say(f"export {form}, {precision}")
            some = runs if form == "bank" else {"merged": runs["lora"]}
            began = time.perf_counter()
            made = pidep.export(some, repo=folder / precision / "repo", form=form, recipe=recipe)
            found[f"{form}-{precision}"] = {
                "s": time.perf_counter() - began,
                "parity": {name: one.to_json() for name, one in made.parity.items()},
            }
    return found


def median_ms(work: Work, *, seconds: float = 0.4) -> dict[str, float]:
    """Median and 90th percentile of as many runs as fit, after a warm-up."""
    for _ in range(3):
        work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began))
    return {"p50": statistics.median(times), "p90": sorted(times)[int(0.9 * len(times))]}


def open_bank(folder: Path, precision: str) -> Any:
    """The bank of a repository, its experts resident."""
    from pidep.artifacts.names import BANK
    from pidep.runtime.bank import Bank
    from pidep.serving.store import ExpertStore

    bank = Bank(folder / precision / "repo" / BANK / "1")
    return bank, bank.build(ExpertStore(bank.store).published())


def graph_times(folder: Path, backbone: str, device: str, say: Any) -> dict[str, Any]:
    """Milliseconds of a batch by precision, size and engine."""
    from pidep.runtime.merged import Merged

    found: dict[str, dict[str, Any]] = {}
    for precision in RECIPES:
        bank, residents = open_bank(folder, precision)
        merged = Merged(folder / precision / "repo" / "merged" / "1")
        model = torch_model(backbone, device, half=precision == "fp16")
        for size in SIZES:
            say(f"times, {precision}, {name_of(*size)}")
            works = _works(Batch.of(*size), bank, residents, merged, model, device)
            found.setdefault(precision, {})[name_of(*size)] = {
                name: median_ms(work) for name, work in works.items()
            }
        del bank, residents, merged, model, works
        gc.collect()
    return found


def _works(
    batch: Batch, bank: Any, residents: Any, merged: Any, model: Any, device: str
) -> dict[str, Work]:
    """Each engine's call that answers the batch."""
    feeds, graph = batch._asdict(), bank.graphs["text"]
    kinds = [residents.by_name[name] for name in KINDS]
    experts = [kinds[at % len(kinds)] for at in range(len(batch.input_ids))]

    def asked(some: Sequence[Any]) -> tuple[Any, Any]:
        slots = np.array([[one.slots[0].number] for one in some])
        return slots, np.stack([one.weights for one in some])

    mixed, one = asked(experts), asked(experts[:1])
    works: dict[str, Work] = {
        "bank, five kinds mixed": lambda: graph.embeddings(feeds, *mixed, residents.values),
        "bank, one LoRA": lambda: graph.embeddings(feeds, *one, residents.values),
        "merged": lambda: merged.session.run(None, feeds),
        "torch eager": lambda: model(batch),
    }
    return works


def torch_model(backbone: str, device: str, *, half: bool) -> Any:
    """MiniLM in PyTorch: tokens on the host to unit embeddings on the host."""
    import pidep

    loaded = pidep.load_backbone(backbone, device=device)
    model = loaded.model.half() if half else loaded.model

    def run(batch: Batch) -> Any:
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(one).to(device) for one in batch)
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return torch.nn.functional.normalize(mean, dim=1).cpu()

    return run


def product_peak(device: str) -> dict[str, float]:
    """TFLOP/s of a product of 8192 × 8192 on the device (512 on a CPU), by precision."""
    size = 8192 if device != "cpu" else 512
    found = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

        def work(left: Any = left, right: Any = right) -> None:
            left @ right
            if device != "cpu":
                torch.cuda.synchronize()

        found[name] = 2 * size**3 / median_ms(work)["p50"] / 1e9
    return found


def swaps(folder: Path, say: Any, counts: Sequence[int] = RESIDENTS) -> list[dict[str, Any]]:
    """Milliseconds from an expert on the host to its first answer, by number of residents."""
    found = []
    bank, residents = open_bank(folder, "fp16")
    lora = next(iter(_published(bank, "lora")))
    by_name = dict(residents.by_name)
    rng = np.random.default_rng(0)

    def another(number: int) -> Any:
        sites = {
            site: {
                name: array + rng.normal(0, 1e-3, array.shape).astype(np.float32)
                for name, array in tensors.items()
            }
            for site, tensors in lora.sites.items()
        }
        return replace(lora, name=f"e{number}", sites=sites)

    for count in counts:
        say(f"swaps with {count} residents")
        while len(by_name) < count:
            one = another(len(by_name))
            by_name[one.name] = bank.place(one)
        residents = bank.serving(by_name)
        bank.run(residents, ["a film"], ["lora"])
        placed, first = [], []
        for number in range(20):
            one = another(count + number)
            one.digest  # noqa: B018 - a publisher has computed it
            began = time.perf_counter()
            by_name["swapped"] = bank.place(one)
            residents = bank.serving(by_name)
            middle = time.perf_counter()
            bank.run(residents, ["a film"], ["swapped"])
            placed.append(1e3 * (middle - began))
            first.append(1e3 * (time.perf_counter() - middle))
        found.append(
            {
                "residents": count,
                "place_ms": statistics.median(placed),
                "first_answer_ms": statistics.median(first),
                "arena_mib": bank.arena.capacity * bank.arena.bytes_per_slot / 2**20,
            }
        )
    return found


def _published(bank: Any, name: str) -> list[Any]:
    from pidep.serving.store import ExpertStore

    return [one for key, one in ExpertStore(bank.store).published().items() if key == name]


def same_answers(folder: Path, task: str) -> dict[str, float]:
    """Largest difference of a score between a batch of all kinds and each row alone."""
    from pidep.tasks.data import load_data
    from pidep.tasks.task import load_task

    texts = load_data(load_task(task)).test.rows[:60]
    found = {}
    for precision in RECIPES:
        bank, residents = open_bank(folder, precision)
        names = sorted(residents.by_name)
        chosen = [names[at % len(names)] for at in range(len(texts))]
        together = bank.run(residents, texts, chosen)
        alone = [
            bank.run(residents, [text], [name])[0] for text, name in zip(texts, chosen, strict=True)
        ]
        found[precision] = max(
            float(np.abs(one.scores - other.scores).max())
            for one, other in zip(together, alone, strict=True)
        )
    return found


def claims_of(raw: Mapping[str, Any], device: str) -> list[Claim]:
    """Claims of a bank on this GPU."""

    def at_most(what: str, measured: float, target: float) -> Claim:
        return {
            "claim": what,
            "target": f"<= {target:g}",
            "measured": round(measured, 4),
            "met": measured <= target,
        }

    claims = []
    for name in ("lora", "mixture") if "lora-cpu" in raw["tuned"] else ():
        key = "pi" if name == "mixture" else "own_expert"
        there, here = (raw["tuned"][f"{name}-{one}"]["metrics"][key] for one in (device, "cpu"))
        claims.append(
            at_most(f"{name}: accuracy apart, tuned on the GPU and on the CPU", abs(there - here),
                    CPU_AND_GPU_APART_AT_MOST)
        )  # fmt: skip
    for precision, sizes in raw["ms"].items():
        for size in (name_of(*one) for one in SIZES[1:]):
            times = sizes[size]
            ratio = times["bank, five kinds mixed"]["p50"] / times["merged"]["p50"]
            claims.append(
                at_most(f"time of a bank of five kinds over merged, {precision}, {size}", ratio,
                        BANK_AT_MOST)
            )  # fmt: skip
    least, most = raw["swaps"][0], raw["swaps"][-1]
    ratio = sum(most[key] for key in ("place_ms", "first_answer_ms")) / sum(
        least[key] for key in ("place_ms", "first_answer_ms")
    )
    what = f"a swap with {most['residents']} residents over one with {least['residents']}"
    claims.append(at_most(what, ratio, SWAP_GROWS_AT_MOST))
    return claims


def measure(
    raw: dict[str, Any],
    folder: Path,
    *,
    backbone: str,
    task: str,
    device: str,
    say: Any,
    counts: Sequence[int],
) -> None:
    """Everything, into `raw` as it comes."""
    raw["tuned"] = tuned(folder, task, backbone, device, say)
    raw["exported"] = exported(folder, device, say)
    raw["providers"] = open_bank(folder, "fp16")[0].session.get_providers()
    raw["rows alone and in a batch"] = same_answers(folder, task)
    raw["swaps"] = swaps(folder, say, counts)
    raw["ms"] = graph_times(folder, backbone, device, say)
    peak = raw["peak TFLOP/s"] = product_peak(device)
    raw["share of peak, merged"] = {
        precision: {
            name_of(*size): flops_of(*size) / sizes[name_of(*size)]["merged"]["p50"] / 1e9
            / peak[precision]
            for size in SIZES
        }
        for precision, sizes in raw["ms"].items()
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Tune, export, check, measure, write."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu.serving")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--task", default="sentiment/movie")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--residents", type=int, nargs="+", default=list(RESIDENTS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="few rows and steps, to try it out")
    parser.add_argument("--gpu-only", action="store_true", help="tune nothing on the CPU")
    given = parser.parse_args(arguments)
    if given.gpu_only:
        CPU.clear()
    if given.quick:
        SETTINGS.update(steps=4, mixture_steps=2, train_limit=40, test_limit=20, max_length=16)
    lacks = missing() if given.device != "cpu" else None
    if lacks is not None:
        print(f"error: {lacks}", file=sys.stderr)
        return 1
    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - began:6.0f} s  {what}", file=sys.stderr, flush=True)

    raw: dict[str, Any] = {"engines": engines(), "ended early": None}
    claims: list[Claim] = []
    try:
        with tempfile.TemporaryDirectory() as place:
            measure(
                *(raw, Path(place)),
                backbone=given.backbone,
                task=given.task,
                device=given.device,
                say=say,
                counts=given.residents,
            )
        claims = claims_of(raw, given.device)
    except (Exception, KeyboardInterrupt):
        # A machine that is lent for minutes: what was measured until here is kept.
        raw["ended early"] = traceback.format_exc()
        print(raw["ended early"], file=sys.stderr)
        whole: Claim = {"claim": "ran whole", "target": "yes", "measured": "no", "met": False}
        claims = [whole]
    raw["seconds"] = round(time.perf_counter() - began, 1)
    for claim in claims:
        print(
            f"{'met    ' if claim['met'] else 'NOT MET'}  {claim['claim']}: {claim['measured']} "
            f"(target {claim['target']})"
        )
    asked = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python3", "-m", "benchmarks.gpu.serving", *asked])
    print(
        write_result("serving-gpu", command=command, raw=raw, claims=claims, folder=given.results)
    )
    return 0 if raw["ended early"] is None else 1


if __name__ == "__main__":
    sys.exit(main())
