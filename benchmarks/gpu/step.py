"""A training step of a large model: one expert, four in a mixture, and the authors' activation
mixing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks import gpu
from benchmarks.activation_mixing import ActivationSite
from pidep.adapters.mixture import Mixture, attached, find_sites, fresh
from pidep.adapters.site import Tensors

__all__ = ["bench_step", "timed_once"]

Work = Callable[[], object]
Sites = dict[str, Tensors]


BERT_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}


def bench_step(
    dtype: torch.dtype,
    *,
    shape: Mapping[str, int] = BERT_LARGE,
    batch: int = 16,
    length: int = 128,
    rounds: int = 12,
) -> dict[str, Any]:
    """BERT-large's shape with rank-8 LoRAs on every dense layer; arms in turns, medians of CUDA
    events.
    """
    torch.manual_seed(0)
    model = BertModel(BertConfig(**shape), add_pooling_layer=False).requires_grad_(False).eval()
    sites = find_sites(model, ["*"])
    experts = [_expert(model, sites, seed) for seed in range(4)]
    model = model.to(gpu.DEVICE, dtype)
    ids = torch.randint(1000, 20000, (batch, length), device=gpu.DEVICE)
    arms = dict(_arms(experts, dtype))
    steps = {name: _stepper(model, ids, arm) for name, arm in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    peak: dict[str, float] = {}
    for number in range(rounds + 3):  # three rounds of warm-up
        for name, arm in arms.items():
            with attached(model, arm):
                taken, peak[name] = timed_once(steps[name])
            if number >= 3:
                times[name].append(taken)
    middle = {name: sorted(each)[len(each) // 2] for name, each in times.items()}
    return {
        "model": "BERT-large's shape, random weights",
        "dtype": str(dtype),
        "batch": [batch, length],
        "sites": len(sites),
        "ms": {name: round(value, 3) for name, value in middle.items()},
        "runs_ms": {name: [round(value, 3) for value in each] for name, each in times.items()},
        "ratio": {name: round(value / middle["one expert"], 4) for name, value in middle.items()},
        "peak_gib": {name: round(value, 2) for name, value in peak.items()},
    }


def _expert(model: nn.Module, sites: Sequence[str], seed: int) -> Sites:
    """A LoRA whose factors are all away from zero."""
    rng = np.random.default_rng(seed)

    def moved(array: Any) -> Any:
        return (array + rng.normal(0, 0.01, array.shape)).astype(np.float32)

    start = fresh(model, sites, rank=8)
    return {
        site: {name: moved(array) for name, array in tensors.items()}
        for site, tensors in start.items()
    }


def _arms(experts: Sequence[Sites], dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    def mixture(count: int, num_learned: int | None = None) -> Mixture:
        return Mixture(experts[:count], [2.0] * count, num_learned=num_learned).to(gpu.DEVICE)

    def authors(*, base_per_expert: bool) -> dict[str, ActivationSite]:
        def at(site: str) -> ActivationSite:
            parts = [one[site] for one in experts]
            return ActivationSite(parts, [2.0] * len(parts), base_per_expert=base_per_expert).to(
                gpu.DEVICE, dtype
            )

        return {site: at(site) for site in experts[0]}

    yield "one expert", mixture(1)
    yield "four experts, all learned", mixture(4)
    yield "four experts, helpers frozen", mixture(4, 1)
    yield "the authors' activation mixing", authors(base_per_expert=True)
    yield "activation mixing, base once", authors(base_per_expert=False)


def _stepper(model: nn.Module, ids: Tensor, arm: Any) -> Work:
    modules = list(arm.values()) if isinstance(arm, Mapping) else [arm]
    optimizer = torch.optim.AdamW(
        [parameter for module in modules for parameter in module.parameters()], lr=1e-6, fused=True
    )

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids).last_hidden_state.float().square().mean().backward()
        optimizer.step()

    return step


def timed_once(step: Work) -> tuple[float, float]:
    """Milliseconds, and peak memory in GiB."""
    torch.cuda.reset_peak_memory_stats()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    step()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended), torch.cuda.max_memory_allocated() / 2**30
