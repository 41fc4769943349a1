"""The methods of a comparison: each is a function from a cell to a predictor.

All methods of a cell get the same rows, seed and steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from pidep.adapters.mixture import Mixture, find_sites
from pidep.inputs.row import Input
from pidep.interpolation.auto import tuned_own
from pidep.interpolation.candidates import CandidateTrainer
from pidep.interpolation.policies import interpolate, train_jointly
from pidep.interpolation.settings import InterpolateSettings
from pidep.lab.cell import Cell, Predictor, mean_alpha, training_details
from pidep.lab.full_fine_tuning import full_fine_tuning
from pidep.lab.lorahub import lorahub
from pidep.lab.peft_merge import layers_of
from pidep.similarity.trial import neighbours_by_trial
from pidep.training.own_expert import train_own_expert
from pidep.training.scorer import predict_logits

__all__ = [
    "BASELINES",
    "backbone",
    "biases_beside",
    "bitfit",
    "joint",
    "merged_by_peft",
    "own_expert",
    "own_tuned",
    "pi",
    "pi_trial",
    "uniform",
    "uniform_outputs",
]


def backbone(cell: Cell) -> Predictor:
    """The bare backbone."""
    return Predictor(partial(predict_logits, cell.scorer), key="backbone")


def own_expert(cell: Cell) -> Predictor:
    """The expert trained on the cell's rows alone."""
    return cell.predictor(Mixture.of([cell.own]))


def own_tuned(cell: Cell, **settings: Any) -> Predictor:
    """The own expert of few shots at the better of two learning rates, chosen by folds.

    π can choose the same without any helper.
    """
    if cell.validation is not None:
        return own_expert(cell)
    schedule = cell.training.schedule(f"{cell.task.name}: own expert at the high rate")
    expert, decision = tuned_own(
        cell.scorer,
        cell.own,
        cell.train,
        InterpolateSettings(schedule, **settings),
        train_own=cell.train_own,
    )
    return replace(cell.predictor(Mixture.of([expert])), decision=decision.to_json())


def bitfit(cell: Cell) -> Predictor:
    """A change of every bias (Ben Zaken et al., 2022) in the layers of the cell's experts."""
    sites = biases_beside(cell.scorer.backbone.model, cell.training.sites)
    training = replace(cell.training, kind="bitfit", sites=sites, rank=1, scaling=1.0)
    expert, report = train_own_expert(
        cell.scorer, cell.task, training, cell.train, cell.validation, on_step=cell.on_step
    )
    details = training_details(report)
    return cell.predictor(Mixture.of([expert]), sites=len(sites), **details)


def biases_beside(model: nn.Module, sites: Sequence[str]) -> tuple[str, ...]:
    """The places of biases in the layers of these sites; all of them for a site in no layer."""
    # "encoder.layer.1." of "encoder.layer.1.attention.self.query".
    layers = {found[0] for site in sites if (found := re.match(r".*?\.\d+\.", site))}
    every = find_sites(model, kind="bitfit")
    if not all(re.search(r"\.\d+\.", site) for site in sites):
        return tuple(every)
    return tuple(site for site in every if site.startswith(tuple(layers))) or tuple(every)


def uniform(cell: Cell) -> Predictor:
    """The mean of own expert and helpers, untrained."""
    return cell.predictor(Mixture.of(cell.experts))


def uniform_outputs(cell: Cell) -> Predictor:
    """As `uniform`, on outputs instead of parameters. Adapters and prefixes only."""
    return cell.predictor(Mixture.of(cell.experts, on_outputs=True))


def joint(cell: Cell) -> Predictor:
    """α and all experts trained together at the own expert's rate, as in the authors' code."""
    mixture = Mixture.of(cell.experts)
    report = train_jointly(
        cell.scorer,
        mixture,
        cell.train,
        cell.validation,
        cell.training.schedule(f"{cell.task.name}: joint training"),
        learning_rate=cell.training.peak_learning_rate,
        on_step=cell.on_step,
    )
    return cell.predictor(mixture, alpha=mean_alpha(mixture), **training_details(report))


def merged_by_peft(cell: Cell, *, combination: Literal["linear", "svd", "cat"]) -> Predictor:
    """PEFT's `add_weighted_adapter` with equal weights, run by PEFT's layers. LoRA only."""
    model, count = cell.peft, len(cell.experts)
    model.add_weighted_adapter(
        [f"expert{index}" for index in range(count)],
        [1 / count] * count,
        combination,
        combination_type=combination,
        # The reduced SVD gives the same leading vectors as the full one in far less time.
        svd_full_matrices=False,
    )

    def logits(rows: Sequence[Input]) -> Tensor:
        model.set_adapter(combination)
        with layers_of(model, cell.own.sites, cell.scorer.backbone.model):
            return predict_logits(cell.scorer, rows)

    return Predictor(logits, {"rank": int(model.peft_config[combination].r)})


def pi(cell: Cell, **settings: Any) -> Predictor:
    """π: own expert and helpers interpolated; `settings` are those of `InterpolateSettings`."""
    schedule = cell.training.schedule(f"{cell.task.name}: interpolation")
    rate = cell.training.peak_learning_rate
    trainer = CandidateTrainer(
        cell.scorer,
        cell.helpers,
        InterpolateSettings(schedule, own_learning_rate=rate, **settings),
        cell.train_own,
        on_step=cell.on_step,
    )
    found = interpolate(
        trainer, cell.own, cell.train, cell.validation, similarities=cell.similarities
    )
    experts, alpha = list(found.experts), mean_alpha(found.mixture)
    predictor = cell.predictor(found.mixture, experts=experts, alpha=alpha)
    return replace(predictor, decision=found.decision.to_json())


def pi_trial(cell: Cell, **settings: Any) -> Predictor:
    """As `pi`, with helpers chosen by trial; the own expert where no helper is of use."""
    near = neighbours_by_trial(cell.scorer, cell.train, cell.pool, top_k=len(cell.helpers))
    chosen = {"helpers": [{"task": one.name, "similarity": one.similarity} for one in near]}
    if not near:
        return replace(own_expert(cell), details=chosen)
    helped = replace(
        cell,
        helpers=tuple(cell.pool[one.name] for one in near),
        similarities=tuple(one.similarity for one in near),
    )
    predictor = pi(helped, **settings)
    return replace(predictor, details={**predictor.details, **chosen})


BASELINES: dict[str, Callable[..., Predictor]] = {
    "backbone": backbone,
    "own": own_expert,
    "own_tuned": own_tuned,
    "bitfit": bitfit,
    "full": full_fine_tuning,
    "uniform": uniform,
    "uniform_outputs": uniform_outputs,
    "joint": joint,
    "peft_linear": partial(merged_by_peft, combination="linear"),
    "peft_svd": partial(merged_by_peft, combination="svd"),
    "peft_cat": partial(merged_by_peft, combination="cat"),
    "lorahub": lorahub,
    "pi": pi,
    "pi_trial": pi_trial,
}
"""Every method by its name in `pidep.lab.settings.METHODS`."""
