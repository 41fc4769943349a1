"""`--policy zero-shot`: experts of a pool mixed for a target none of whose labels is read.

The helpers are those whose parameters matter to the target's texts most as they mattered to their own (`similarity.zero_shot`), and
α = softmax(similarity / temperature), the same at every site: nothing is trained, so no label is needed. Test rows keep their
labels where they have some, for the evaluation at the end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pidep import __version__
from pidep.adapters.mixture import Mixture
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert, write_expert
from pidep.similarity.measures import Neighbour
from pidep.similarity.zero_shot import weights, without_labels
from pidep.tasks.data import UNLABELLED, data_digest, limit
from pidep.tuning.helpers import Helpers, ReadPool
from pidep.tuning.job import Job, as_expert, evaluate
from pidep.tuning.run_folder import Laps, Mixed, TuneResult, write_run
from pidep.tuning.settings import TuneConfig

__all__ = ["check_request", "mix"]


def check_request(config: TuneConfig) -> None:
    """Refuse settings that a target without labels has no use for.

    Raises:
        UsageError: no pool, nothing to mix, shots, or an own expert that there is not.
    """
    refused = {
        "mixes the experts of a pool; give --pool": config.pool is None,
        "mixes at least one expert; give a --top-k above 0": config.top_k == 0,
        "reads no label, so it has no shots; run without --shots, or choose another policy": config.shots is not None,
        "trains no own expert to put into the pool; run without --add-to-pool": config.add_to_pool is True,
    }
    for why, found in refused.items():
        if found:
            raise UsageError(f"policy zero-shot: {why}")


def mix(job: Job, pool: Helpers, started: float) -> TuneResult:
    """Predict, mix, evaluate where the test rows have labels, and write the run folder.

    Raises:
        ExpertError: the pool holds nothing that can be mixed.
    """
    config, laps = job.config, Laps()
    assert isinstance(pool, ReadPool)  # every expert is asked, so every one was read
    entries = pool.entries
    if not entries:
        raise ExpertError(f"{config.pool}: no expert of another task to mix; train some with pidep tune --pool")
    sample = limit(job.train, config.fisher_samples, seed=config.seed)
    neighbours = without_labels(job.scorer.backbone, entries, sample.rows, seed=config.seed)[: config.top_k]
    laps.lap("predict")
    helpers = [entries[near.name].expert for near in neighbours]
    mixture = _weighted(helpers, neighbours, temperature=config.temperature)
    metrics = _measure(job, helpers, mixture)
    laps.lap("evaluate")
    mixed = Mixed(tuple(near.name for near in neighbours), mixture.alphas())
    final = as_expert(job, mixture.folded(), 1.0, _provenance(job, helpers, mixed))
    final = replace(final, metrics={job.task.metric: metrics} if metrics else {})
    write_expert(final, job.out / "expert")
    seconds = round(time.monotonic() - started, 3)
    result = TuneResult(job.out, job.name, final.digest, job.task.metric, metrics, neighbours, seconds)
    write_run(job, result, mixed, {}, laps.seconds)
    return result


def _weighted(helpers: Sequence[Expert], neighbours: Sequence[Neighbour], *, temperature: float) -> Mixture:
    alpha = weights([near.similarity for near in neighbours], temperature=temperature)
    mixture = Mixture.of(helpers, per="global")
    with torch.no_grad():
        for parameter in mixture.alpha_parameters():
            parameter.copy_(torch.from_numpy(alpha).log())
    return mixture


def _measure(job: Job, helpers: Sequence[Expert], mixture: Mixture) -> dict[str, float]:
    """The metric on the test rows; nothing where they have no labels."""
    test = job.data.test
    if UNLABELLED in test.labels:
        return {}
    models = {"backbone": None, "nearest": Mixture.of(helpers[:1]), "uniform": Mixture.of(helpers), "zero_shot": mixture}
    return {name: evaluate(job.scorer, test, job.task.metric, model) for name, model in models.items()}


def _provenance(job: Job, helpers: Sequence[Expert], mixed: Mixed) -> dict[str, Any]:
    """No label enters it: those of the training rows are `UNLABELLED` here."""
    alpha = next(iter(mixed.alphas.values()))
    return {
        "train": data_digest(job.train),
        "rows": len(job.train.rows),
        "seed": job.config.seed,
        "pidep": __version__,
        "mixture_of": {name: helper.digest for name, helper in zip(mixed.experts, helpers, strict=True)},
        "decision": {
            "policy": "zero-shot",
            "chosen": "zero_shot",
            "why": f"no labels: α = softmax(predicted similarity / {job.config.temperature:g})",
            "weights": dict(zip(mixed.experts, (round(weight, 4) for weight in alpha), strict=True)),
        },
    }
