"""The cost of prediction and interpolation beside plain training.

    python -m benchmarks.bench_cost

It measures the Fisher embedding of a task, and a step with four experts. Everything runs on one
thread. After a warm-up round, every round runs each case once, in rotating order. Ratios are of
median CPU times: on a shared machine, wall time measures the neighbours.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.activation_mixing import ActivationSite
from benchmarks.record import RESULTS, Claim, write_result
from pidep.adapters.mixture import Mixture, attached, find_sites, fresh
from pidep.adapters.site import Array
from pidep.backbones.encoder import Encoder
from pidep.backbones.load import load_backbone
from pidep.experts.folder import Expert
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.row_gradients import row_batches
from pidep.tasks.data import Split, limit, load_data
from pidep.tasks.task import Task, load_task
from pidep.training.loop import training_step
from pidep.training.scorer import Scorer, label_embeddings

__all__ = ["main"]

RANK = 8
NUM_EXPERTS = 4
FISHER_TARGET = 1.5
STEP_TARGET = 1.15
RATE = 1e-5
"""A small rate, so that the timed work does not drift."""
MEASUREMENT_S = 0.6
"""Short work is repeated until one measurement takes about this long."""
Work = Callable[[], object]


# --- timing ----------------------------


def _timed(work: Work, repeats: int) -> tuple[float, float]:
    """CPU and wall milliseconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - cpu) * 1e3 / repeats, (time.perf_counter() - wall) * 1e3 / repeats


def interleaved(cases: Mapping[str, Work], *, rounds: int) -> dict[str, dict[str, Any]]:
    """CPU and wall times of each case, one round at a time."""
    warm = {name: _timed(work, 1)[0] for name, work in cases.items()}
    warm = {
        name: min(first, _timed(cases[name], 1)[0]) if first < 5e3 else first
        for name, first in warm.items()
    }
    repeats = {
        name: max(1, math.ceil(MEASUREMENT_S * 1e3 / max(each, 1e-3)))
        for name, each in warm.items()
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            times[name].append(_timed(cases[name], repeats[name]))
    return {name: {"repeats": repeats[name], **_summary(values)} for name, values in times.items()}


def _summary(values: Sequence[tuple[float, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, column in zip(("cpu_ms", "wall_ms"), np.array(values).T, strict=True):
        found[kind] = {f"p{at}": round(float(np.percentile(column, at)), 3) for at in (20, 50, 80)}
        found[kind]["runs"] = column.round(3).tolist()
    return found


def ratio(times: Mapping[str, Any], name: str, to: str, *, clock: str = "cpu_ms") -> float:
    """Ratio of the medians."""
    return round(float(times[name][clock]["p50"] / times[to][clock]["p50"]), 4)


# --- what is timed ----------------------------


def _expert(
    backbone: Encoder,
    task: Task,
    sites: Sequence[str],
    *,
    seed: int,
    max_length: int,
    kind: str = "lora",
) -> Expert:
    """An expert whose tensors are all away from zero, so that gradients reach all of them."""
    rng = np.random.default_rng(seed)
    start = fresh(backbone.model, sites, kind=kind, rank=RANK)

    def moved(array: Array) -> Array:
        return (array + rng.normal(0, 0.02, array.shape)).astype(np.float32)

    return Expert(
        name=f"expert{seed}",
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        sites={
            site: {name: moved(array) for name, array in tensors.items()}
            for site, tensors in start.items()
        },
        kind=kind,
        scaling=2.0 if kind == "lora" else 1.0,
        labels=tuple(task.labels),
        label_texts=tuple(task.labels.values()),
        label_embeddings=label_embeddings(backbone, task).numpy(),
        logit_scale=backbone.logit_scale,
        max_length=max_length,
    )


class Trainer:
    """One step of `pidep.training.loop` per call: forward, backward, clipping, AdamW."""

    def __init__(
        self, scorer: Scorer, trained: Sequence[tuple[list[nn.Parameter], float]], rows: Split
    ) -> None:
        for parameters, _ in trained:
            for parameter in parameters:
                parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(
            [{"params": found, "lr": rate, "peak": rate} for found, rate in trained],
            weight_decay=0.01,
        )
        self._scorer, self._trained, self._rows = scorer, list(trained), rows

    def step(self, rows: list[int]) -> float:
        """The step's loss."""
        return training_step(
            self._scorer, self._optimizer, self._trained, self._rows, rows, rate_factor=1.0
        )


@contextmanager
def _cache(backbone: Encoder, sites: Sequence[str], *, cached: bool) -> Iterator[None]:
    with backbone.cached_below(sites) if cached else nullcontext():
        yield


def fisher_against_epoch(
    backbone: Encoder,
    task: Task,
    rows: Split,
    patterns: Sequence[str],
    *,
    cached: bool,
    batch_size: int,
    rounds: int,
) -> dict[str, Any]:
    """A task's Fisher embedding, and one epoch of training on the same samples in the
    same batches.
    """
    sites = find_sites(backbone.model, patterns)
    max_length = 32
    expert = _expert(backbone, task, sites, seed=0, max_length=max_length)
    scorer = Scorer(
        backbone, torch.from_numpy(expert.label_embeddings), backbone.logit_scale, max_length
    )
    mixture = Mixture.of([expert]).requires_grad_(False)
    trainer = Trainer(scorer, [(mixture.expert_parameters(), RATE)], rows)
    batches = list(row_batches(rows.rows, batch_size=batch_size, shuffle_seed=None))

    def epoch() -> None:
        with attached(backbone.model, mixture):
            for batch in batches:
                trainer.step(batch)

    def fisher(kind: Any) -> Work:
        return lambda: diagonal_fisher(
            backbone, expert, rows.rows, rows.labels, kind=kind, batch_size=batch_size
        )

    cases: dict[str, Work] = {
        "epoch": epoch,
        **{kind: fisher(kind) for kind in ("empirical", "true", "batch_squared")},
    }
    with _cache(backbone, sites, cached=cached):
        times = interleaved(cases, rounds=rounds)
    ratios = {
        name: {clock: ratio(times, name, "epoch", clock=clock) for clock in ("cpu_ms", "wall_ms")}
        for name in cases
    }
    return {
        "sites": list(patterns),
        "cached": cached,
        "samples": len(rows.rows),
        "batch_size": batch_size,
        "times": times,
        "ratios": ratios,
    }


def _texts_of(backbone: Encoder, rows: Split, *, count: int, tokens: int) -> Split:
    """Texts of exactly `tokens` tokens after the cut: joined sentences of the task."""
    texts, words = [], iter(" ".join(rows.rows).split())
    for _ in range(count):
        text = ""
        while backbone.tokenize([text], max_length=tokens)[0].shape[1] < tokens:
            text = " ".join([text, *(next(words) for _ in range(4))])
        texts.append(text)
    return Split(texts, [row % 2 for row in range(count)])


def step_of_four(
    backbone: Encoder,
    task: Task,
    rows: Split,
    patterns: Sequence[str],
    *,
    cached: bool,
    count: int,
    tokens: int,
    rounds: int,
    kind: str = "lora",
) -> dict[str, Any]:
    """A training step with one expert and with four: pidep's mixture and, for LoRA, the authors'
    way.
    """
    sites = find_sites(backbone.model, patterns, kind=kind)
    batch = _texts_of(backbone, rows, count=count, tokens=tokens)
    experts = [
        _expert(backbone, task, sites, seed=seed, max_length=tokens, kind=kind)
        for seed in range(NUM_EXPERTS)
    ]
    scorer = Scorer(
        backbone, torch.from_numpy(experts[0].label_embeddings), backbone.logit_scale, tokens
    )
    every = list(range(count))
    cases: dict[str, Work] = {}
    logits: dict[str, Tensor] = {}
    with _cache(backbone, sites, cached=cached):
        for name, sites_of, trained in _arms(experts):
            trainer = Trainer(scorer, trained, batch)

            def work(trainer: Trainer = trainer, sites_of: Any = sites_of) -> None:
                with attached(backbone.model, sites_of):
                    trainer.step(every)

            with torch.no_grad(), attached(backbone.model, sites_of):
                logits[name] = scorer.logits(batch.rows)
            cases[name] = work
        _check_same(logits)
        times = interleaved(cases, rounds=rounds)
    ratios = {
        name: {clock: ratio(times, name, "single", clock=clock) for clock in ("cpu_ms", "wall_ms")}
        for name in cases
    }
    return {
        "kind": kind,
        "sites": list(patterns),
        "cached": cached,
        "batch": [count, tokens],
        "times": times,
        "ratios": ratios,
    }


def _arms(
    experts: Sequence[Expert],
) -> Iterator[tuple[str, Any, list[tuple[list[nn.Parameter], float]]]]:
    """For each case: name, attached mixture, trained parameters."""
    single = Mixture.of(experts[:1]).requires_grad_(False)
    yield "single", single, [(single.expert_parameters(), RATE)]
    joint = Mixture.of(experts).requires_grad_(False)
    yield "joint", joint, [(joint.alpha_parameters(), RATE), (joint.expert_parameters(), RATE)]
    # as `auto` trains; it mixes adapters on outputs, though
    own = Mixture.of(experts, num_learned=1).requires_grad_(False)
    yield "helpers frozen", own, [(own.alpha_parameters(), RATE), (own.expert_parameters(), RATE)]
    alone = Mixture.of(experts).requires_grad_(False)
    yield "α alone", alone, [(alone.alpha_parameters(), RATE)]
    if experts[0].kind != "lora":
        return
    for name, per_expert in (("authors", True), ("activations, base once", False)):
        scalings = [expert.scaling for expert in experts]
        sites = {
            site: ActivationSite(
                [expert.sites[site] for expert in experts], scalings, base_per_expert=per_expert
            )
            for site in sorted(experts[0].sites)
        }
        alpha = [site.alpha_logits for site in sites.values()]
        factors = [parameter for site in sites.values() for parameter in [*site.a, *site.b]]
        yield name, sites, [(alpha, RATE), (factors, RATE)]


def _check_same(logits: Mapping[str, Tensor]) -> None:
    """Check that the compared cases compute the same."""
    for name, found in logits.items():
        if name != "single" and not torch.allclose(found, logits["joint"], atol=1e-3, rtol=1e-4):
            raise SystemExit(
                f"bench_cost: {name} and the mixture differ by "
                f"{float((found - logits['joint']).abs().max())}"
            )


# --- the result ----------------------------


def claims_of(
    fishers: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]
) -> list[Claim]:
    """Claims. The target was set for the first case; the worst case is named, and raw has all."""
    claims = [
        _claim(
            f"Fisher of a task / training epoch, {_where(found)}",
            FISHER_TARGET,
            found["ratios"]["empirical"]["cpu_ms"],
        )
        for found in fishers
    ]
    for found in steps:
        for arm, what in (("joint", "α and all experts"), ("helpers frozen", "α and own expert")):
            authors = found["ratios"].get("authors")
            beside = f" (authors' activation mixing: {authors['cpu_ms']:.2f})" if authors else ""
            title = (
                f"{found['kind']}: step with {NUM_EXPERTS} experts / with one, training {what}, "
                f"{_where(found)}{beside}"
            )
            claims.append(_claim(title, STEP_TARGET, found["ratios"][arm]["cpu_ms"]))
    return claims


def _where(found: Mapping[str, Any]) -> str:
    size = (
        "{}×{} tokens".format(*found["batch"])
        if "batch" in found
        else f"{found['samples']} samples"
    )
    return (
        f"{size}, sites "
        f"{' '.join(found['sites'])}{', layers below cached' if found['cached'] else ''}"
    )


def _claim(claim: str, target: float, measured: float) -> Claim:
    return {
        "claim": f"{claim} (CPU time)",
        "target": f"<= {target}",
        "measured": measured,
        "met": measured <= target,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_cost",
        description=__doc__.partition("\n")[0] if __doc__ else None,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where cost.json goes")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument(
        "--top-sites",
        default="encoder.layer.[45].*",
        help="the sites whose lower layers are cached",
    )
    parser.add_argument(
        "--rows", type=int, default=512, help="samples of the Fisher and of the epoch"
    )
    parser.add_argument("--rounds", type=int, default=7, help="at least 5 for a result to be kept")
    parser.add_argument("--long", type=int, default=48, help="tokens of the long batch")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backbone, task = load_backbone(given.backbone), load_task("sentiment/amazon")
    train = load_data(task).train
    rows, top, everywhere = limit(train, given.rows, seed=0), [given.top_sites], ["*"]
    fishers, steps = [], []
    for patterns, cached, share in ((top, True, 1), (top, False, 1), (everywhere, False, 4)):
        some = limit(rows, max(1, len(rows.rows) // share), seed=0)
        print(
            f"Fisher of {len(some.rows)} samples, {patterns[0]}, cached {cached} …",
            file=sys.stderr,
            flush=True,
        )
        found = fisher_against_epoch(
            backbone, task, some, patterns, cached=cached, batch_size=16, rounds=given.rounds
        )
        fishers.append(found)
        print(f"  {found['ratios']}", file=sys.stderr, flush=True)
    for kind, patterns, cached in (
        ("lora", top, True),
        ("lora", everywhere, False),
        ("adapter", top, True),
        ("adapter", everywhere, False),
    ):
        for count, tokens in ((16, 22), (32, given.long)):
            print(
                f"{kind}: steps of {count}×{tokens}, {patterns[0]}, cached {cached} …",
                file=sys.stderr,
                flush=True,
            )
            found = step_of_four(
                backbone,
                task,
                train,
                patterns,
                cached=cached,
                count=count,
                tokens=tokens,
                rounds=given.rounds,
                kind=kind,
            )
            steps.append(found)
            print(f"  {found['ratios']}", file=sys.stderr, flush=True)
    raw = {
        "how": (
            "one thread, interleaved rounds in turning order after a warm-up; claims are ratios of "
            "median CPU times, wall beside"
        ),
        "rounds": given.rounds,
        "load_average": list(os.getloadavg()),
        "fisher": fishers,
        "step": steps,
    }
    command = shlex.join(
        [
            "python",
            "-m",
            "benchmarks.bench_cost",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
    )
    print(
        write_result(
            "cost", command=command, raw=raw, claims=claims_of(fishers, steps), folder=given.results
        )
    )


if __name__ == "__main__":
    main()
