"""The policy `zero-shot`: experts of a pool, mixed for a target without labels.

`similarity.zero_shot` ranks the helpers by the target's texts alone. Then
α = softmax(similarity / temperature), the same at every site. Nothing is trained, so no label is
needed. Test rows may have labels; they are used for the evaluation at the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pidep import __version__
from pidep.adapters.mixture import Mixture
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert, write_expert
from pidep.similarity.estimate_names import NO_LABELS
from pidep.similarity.measures import Neighbour
from pidep.similarity.pool import Pool
from pidep.similarity.zero_shot import rank_without_labels, similarity_weights
from pidep.tasks.data import UNLABELLED, data_digest, limit
from pidep.training.evaluation import Measurement, evaluate
from pidep.training.own_expert import as_expert
from pidep.tuning.by_reference import mixture_by_reference
from pidep.tuning.floors import floors
from pidep.tuning.job import Job
from pidep.tuning.phase_times import PhaseTimes
from pidep.tuning.run_folder import Alpha, TuneResult, write_by_reference, write_run
from pidep.tuning.settings import TuneSettings

__all__ = ["check_request", "mix", "require_experts", "warn"]

_LOG = logging.getLogger(__name__)


def check_request(config: TuneSettings) -> None:
    """Refuse settings that need labels, and a request without helpers.

    Raises:
        UsageError: no pool, `top_k` 0, shots, or an own expert for the pool.
    """
    refused = {
        "mixes the experts of a pool; give `pool`": config.pool is None,
        "mixes at least one expert; give a `top_k` above 0": config.top_k == 0,
        "reads no label, so it has no shots; run without `shots`, or choose another policy": (
            config.shots is not None
        ),
        "trains no own expert to put into the pool; run without `add_to_pool`": config.add_to_pool
        is True,
    }
    for why, found in refused.items():
        if found:
            raise UsageError(f"policy zero-shot: {why}")


def require_experts(pool: Pool) -> None:
    """Refuse a pool without an expert of another task.

    Raises:
        ExpertError: the pool has none.
    """
    if not len(pool):
        raise ExpertError(
            f"{pool.folder}: no expert of another task to mix; train some with pidep tune --pool"
        )


def warn() -> None:
    """Say as a warning that this similarity did not predict help where it was measured.

    The figures are those of `no labels` at 8 shots in `benchmarks/results/prediction.json`.
    """
    _LOG.warning(
        "policy zero-shot: similarity without labels did not predict which experts help where it "
        "was measured (rank correlation -0.38; the first choice loses 4.1 points of accuracy to "
        "the best expert, a random one 3.5); label a few rows and choose another policy, or give "
        "a pool of experts that you trust"
    )


def mix(job: Job, pool: Pool | None, started: float) -> TuneResult:
    """Choose the neighbours, mix them, evaluate on labelled test rows, write the run folder.

    Raises:
        ExpertError: the pool holds no expert of another task.
    """
    config, times = job.config, PhaseTimes()
    assert pool is not None  # `check_request` refuses a request without one
    require_experts(pool)
    entries = pool.entries()
    sample = limit(job.train, config.fisher_samples, seed=config.seed)
    neighbours = rank_without_labels(job.scorer.backbone, entries, sample.rows, seed=config.seed)[
        : config.top_k
    ]
    times.end("neighbours")
    helpers = [entries[near.name].expert for near in neighbours]
    mixture = _weighted(helpers, neighbours, temperature=config.temperature)
    measured = _measure(job, helpers, mixture)
    metrics = {method: found.value for method, found in measured.items()}
    times.end("evaluate")
    alpha = Alpha.of(tuple(near.name for near in neighbours), mixture.alphas())
    final = as_expert(
        job.scorer,
        job.task,
        mixture.folded(),
        name=job.name,
        kind=config.kind,
        provenance=_provenance(job, helpers, alpha),
    )
    final = replace(final, metrics={job.task.metric: metrics} if metrics else {})
    write_expert(final, job.out / "expert")
    by_reference = mixture_by_reference(final, mixture, helpers)
    write_by_reference(job.out, by_reference)
    seconds = round(time.monotonic() - started, 3)
    result = TuneResult(
        *(
            job.out,
            job.name,
            (by_reference or final).digest,
            job.task.metric,
            metrics,
            neighbours,
            seconds,
        ),
        intervals={method: found.interval for method, found in measured.items()},
        cut_texts=job.cut_texts,
        neighbours_by=NO_LABELS,
    )
    write_run(job, result, alpha, {}, times.seconds)
    return result


def _weighted(
    helpers: Sequence[Expert], neighbours: Sequence[Neighbour], *, temperature: float
) -> Mixture:
    alpha = similarity_weights([near.similarity for near in neighbours], temperature=temperature)
    mixture = Mixture.of(helpers, per="global")
    with torch.no_grad():
        for parameter in mixture.alpha_parameters():
            # α is the softmax of its logits, so the logarithm gives exactly these weights.
            parameter.copy_(torch.from_numpy(alpha).log())
    return mixture


def _measure(job: Job, helpers: Sequence[Expert], mixture: Mixture) -> dict[str, Measurement]:
    """The metric of each method on the test rows; empty where they have no labels."""
    test = job.data.test
    if UNLABELLED in test.labels:
        return {}
    models = {
        "backbone": None,
        "nearest": Mixture.of(helpers[:1]),
        "uniform": Mixture.of(helpers),
        "zero_shot": mixture,
    }
    return floors(job) | {
        name: evaluate(job.scorer, test, job.task.metric, model) for name, model in models.items()
    }


def _provenance(job: Job, helpers: Sequence[Expert], alpha: Alpha) -> dict[str, Any]:
    """Digests and decision. The training rows have no labels here, so none enters the digest."""
    weights = next(iter(alpha.sites.values()))  # the same at every site
    return {
        "train": data_digest(job.train),
        "rows": len(job.train.rows),
        "seed": job.config.seed,
        "pidep": __version__,
        "mixture_of": {
            name: helper.digest for name, helper in zip(alpha.experts, helpers, strict=True)
        },
        "decision": {
            "policy": "zero-shot",
            "chosen": "zero_shot",
            "why": f"no labels: α = softmax(predicted similarity / {job.config.temperature:g})",
            "weights": dict(
                zip(alpha.experts, (round(weight, 4) for weight in weights), strict=True)
            ),
        },
    }
