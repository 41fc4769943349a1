"""What π is held against: each method is a function from a cell (the same rows, seed and steps for all) to a predictor."""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.kinds import adapter_kind
from pidep.adapters.mixture import Mixture, find_sites, fresh
from pidep.adapters.site import ExpertSite
from pidep.errors import UsageError
from pidep.experts.folder import Expert, write_expert
from pidep.inputs.row import Input
from pidep.interpolation.interpolate import InterpolateSettings, interpolate, train_together, tuned_own
from pidep.similarity.trial import by_trial
from pidep.tasks.data import Split, data_digest, limit
from pidep.tasks.task import Task
from pidep.training.loop import OnStep, Schedule, Scorer, TrainReport, fit, predict_logits, snapshot

__all__ = [
    "BASELINES",
    "Cell",
    "Predictor",
    "Recipe",
    "backbone",
    "bitfit",
    "full_fine_tuning",
    "joint",
    "lorahub",
    "merged_by_peft",
    "own_expert",
    "own_tuned",
    "pi",
    "train_expert",
    "uniform",
    "uniform_outputs",
]

_LORAHUB_BOUND = 1.5
_LORAHUB_L1 = 0.05


@dataclass(frozen=True)
class Recipe:
    """How an expert is trained, whatever the task and the rows."""

    kind: str
    sites: tuple[str, ...]
    size: int
    scaling: float
    rate: float
    """Peak learning rate, as a share of the kind's own."""
    steps: int
    batch_size: int
    warmup: float
    weight_decay: float
    eval_every: int
    patience: int

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return self.rate * adapter_kind(self.kind).learning_rate

    def schedule(self, phase: str, seed: int) -> Schedule:
        """The recipe's steps and batches for a phase of training."""
        return Schedule(
            phase=phase,
            steps=self.steps,
            batch_size=self.batch_size,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            eval_every=min(self.eval_every, self.steps),
            patience=self.patience,
            seed=seed,
            fingerprint="",
        )


@dataclass(frozen=True, eq=False)
class Cell:
    """One target task with some of its rows: what every method is given."""

    scorer: Scorer
    task: Task
    recipe: Recipe
    own: Expert
    helpers: tuple[Expert, ...]
    train: Split
    validation: Split | None
    seed: int
    pool: Mapping[str, Expert] = field(default_factory=dict)
    """Everyone who could help, by name."""
    similarities: tuple[float, ...] | None = None
    """Predicted similarity of each helper's task."""
    on_step: OnStep | None = None

    @property
    def experts(self) -> list[Expert]:
        """The own expert and the helpers."""
        return [self.own, *self.helpers]

    def of(self, mixture: Mixture, **details: Any) -> Predictor:
        """The predictor of a mixture."""
        return Predictor(partial(predict_logits, self.scorer, mixture=mixture), details, key=_key(mixture))

    def train_own(self, rows: Split, harder: float) -> Expert:
        """An own expert of other rows, at so many times the recipe's rate."""
        recipe = replace(self.recipe, rate=self.recipe.rate * harder)
        return train_expert(self.scorer, self.task, recipe, rows, None, seed=self.seed, on_step=self.on_step)[0]

    @cached_property
    def peft(self) -> Any:
        """A `PeftModel` that holds every expert, on a copy of the backbone that shares its weights."""
        return _peft_model(self.scorer.backbone.model, self.experts)


@dataclass(frozen=True)
class Predictor:
    """A trained or merged model."""

    logits: Callable[[Sequence[Input]], Tensor]
    """Rows to `[N, C]`."""
    details: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    """Predictors of one cell with the same key give the same logits, so that one of them is run."""
    decision: dict[str, Any] | None = None
    """What π decided, and why."""


def train_expert(
    scorer: Scorer, task: Task, recipe: Recipe, train: Split, validation: Split | None, *, seed: int, on_step: OnStep | None = None
) -> tuple[Expert, TrainReport]:
    """A fresh expert, trained alone."""
    backbone = scorer.backbone
    start = fresh(backbone.model, recipe.sites, kind=recipe.kind, size=recipe.size)
    mixture = Mixture([start], [recipe.scaling], kind=recipe.kind)
    groups = [(mixture.expert_parameters(), recipe.learning_rate)]
    schedule = recipe.schedule(f"{task.name}: {recipe.kind} expert", seed)
    report = fit(scorer, mixture, groups, train, validation, schedule, on_step=on_step)
    expert = Expert(
        name=task.name,
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        sites=dict(mixture.part(0)),
        scaling=recipe.scaling,
        kind=recipe.kind,
        labels=tuple(task.labels),
        label_texts=tuple(task.labels.values()),
        label_embeddings=scorer.label_embeddings.numpy(),
        logit_scale=scorer.logit_scale,
        max_length=scorer.max_length,
        provenance={"train": data_digest(train), "rows": len(train.rows), "seed": seed},
    )
    return expert, report


def backbone(cell: Cell) -> Predictor:
    """The bare backbone."""
    return Predictor(partial(predict_logits, cell.scorer), key="backbone")


def own_expert(cell: Cell) -> Predictor:
    """The expert trained on the cell's rows alone."""
    return cell.of(Mixture.of([cell.own]))


def own_tuned(cell: Cell, **settings: Any) -> Predictor:
    """The own expert, of few shots at the better of two rates, as folds of them say: what π may choose, too, without any helper."""
    if cell.validation is not None:
        return own_expert(cell)
    schedule = cell.recipe.schedule(f"{cell.task.name}: own expert, harder", cell.seed)
    expert, decision = tuned_own(cell.scorer, cell.own, cell.train, InterpolateSettings(schedule, **settings), train_own=cell.train_own)
    return replace(cell.of(Mixture.of([expert])), decision=decision.to_json())


def bitfit(cell: Cell) -> Predictor:
    """A change of every bias (Ben Zaken et al., 2022) of the layers the cell's experts act in."""
    sites = _biases(cell.scorer.backbone.model, cell.recipe.sites)
    recipe = replace(cell.recipe, kind="bitfit", sites=sites, size=1, scaling=1.0)
    expert, report = train_expert(cell.scorer, cell.task, recipe, cell.train, cell.validation, seed=cell.seed, on_step=cell.on_step)
    return cell.of(Mixture.of([expert]), sites=len(sites), **_trained(report))


def _biases(model: nn.Module, sites: Sequence[str]) -> tuple[str, ...]:
    layers = {found[0] for site in sites if (found := re.match(r".*?\.\d+\.", site))}
    every = find_sites(model, kind="bitfit")
    inside = [site for site in every if site.startswith(tuple(layers))] if all(re.search(r"\.\d+\.", site) for site in sites) else []
    return tuple(inside or every)


def full_fine_tuning(cell: Cell, *, learning_rate: float, steps: int | None = None) -> Predictor:
    """Every weight of the backbone, on a copy; the label texts stay where the bare backbone put them, as for all methods."""
    encoder = cell.scorer.backbone.around(copy.deepcopy(cell.scorer.backbone.model))  # a new encoder has no layer cache
    scorer = replace(cell.scorer, backbone=encoder)
    whole = _Whole(encoder.model)
    schedule = cell.recipe.schedule(f"{cell.task.name}: full fine-tuning", cell.seed)
    count = min(schedule.steps, steps or schedule.steps)
    schedule = replace(schedule, steps=count, eval_every=min(schedule.eval_every, count))
    parameters = list(encoder.model.parameters())
    report = fit(scorer, whole, [(parameters, learning_rate)], cell.train, cell.validation, schedule, on_step=cell.on_step)
    encoder.model.requires_grad_(False)
    return Predictor(partial(predict_logits, scorer), {"learning_rate": learning_rate, **_trained(report)})


class _Whole(Mixture):
    """All weights of a backbone, in the place of a mixture: `fit` trains them like any other."""

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.kind, self.model, self.arena = "lora", model, None

    def by_name(self) -> Iterator[tuple[str, ExpertSite]]:
        """Nothing is attached anywhere."""
        return iter(())


def uniform(cell: Cell) -> Predictor:
    """The mean of own expert and helpers, untrained."""
    return cell.of(Mixture.of(cell.experts))


def uniform_outputs(cell: Cell) -> Predictor:
    """As `uniform`, on outputs instead of parameters. Adapters and prefixes only."""
    return cell.of(Mixture.of(cell.experts, on_outputs=True))


def joint(cell: Cell) -> Predictor:
    """α and all experts trained together at the own expert's learning rate, as the authors do."""
    schedule = cell.recipe.schedule(f"{cell.task.name}: joint training", cell.seed)
    mixture, rate = Mixture.of(cell.experts), cell.recipe.learning_rate
    report = train_together(cell.scorer, mixture, cell.train, cell.validation, schedule, rate, on_step=cell.on_step)
    return cell.of(mixture, alpha=_mean_alpha(mixture), **_trained(report))


def merged_by_peft(cell: Cell, *, combination: Literal["linear", "svd", "cat"]) -> Predictor:
    """PEFT's `add_weighted_adapter` with equal weights, run by PEFT's own layers. LoRA only."""
    model, count = cell.peft, len(cell.experts)
    names = [f"expert{index}" for index in range(count)]
    # the reduced SVD gives the same leading vectors as the full one, at a fraction of the time
    model.add_weighted_adapter(names, [1 / count] * count, combination, combination_type=combination, svd_full_matrices=False)

    def logits(rows: Sequence[Input]) -> Tensor:
        model.set_adapter(combination)
        with _layers_of(model, cell.own.sites, cell.scorer.backbone.model):
            return predict_logits(cell.scorer, rows)

    return Predictor(logits, {"rank": int(model.peft_config[combination].r)})


def _peft_model(model: nn.Module, experts: Sequence[Expert]) -> Any:
    from peft import PeftModel

    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied = copy.deepcopy(model, cast(dict[int, Any], shared))
    with tempfile.TemporaryDirectory(prefix="pidep-peft-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for an attribute under its old name
        folders = [write_expert(expert, Path(temporary) / str(index)) for index, expert in enumerate(experts)]
        merged = PeftModel.from_pretrained(cast(Any, copied), str(folders[0]), adapter_name="expert0")
        for index, folder in enumerate(folders[1:], 1):
            merged.load_adapter(str(folder), adapter_name=f"expert{index}")
    return merged.eval()


@contextmanager
def _layers_of(peft: Any, sites: Sequence[str] | dict[str, Any], model: nn.Module) -> Iterator[None]:
    """PEFT's layers in the places of the backbone's: so the layer cache below them is used. The backbone's come back, the very same."""
    own = {site: model.get_submodule(site) for site in sites}
    try:
        for site in sites:
            model.set_submodule(site, peft.get_base_model().get_submodule(site))
        yield
    finally:
        for site, module in own.items():
            model.set_submodule(site, module)


def lorahub(cell: Cell, *, budget: int, max_rows: int) -> Predictor:
    """LoraHub (Huang et al., 2023): weights found without gradients, the factors A and B summed separately, as its code does.

    Loss: mean cross-entropy on the target's rows (at most `max_rows`) + 0.05 · mean |w|; w starts at 0, within ±1.5. LoRA only.
    """
    optimizer = _nevergrad(len(cell.experts), budget=budget, seed=cell.seed)
    rows = limit(cell.train, max_rows, seed=cell.seed)
    labels = torch.tensor(rows.labels)

    def loss(weights: Any) -> float:
        logits = predict_logits(cell.scorer, rows.rows, _factors_summed(cell.experts, weights))
        return float(nn.functional.cross_entropy(logits, labels)) + _LORAHUB_L1 * float(np.abs(weights).mean())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the optimizer NGOpt picks, about a tolerance NGOpt itself gave it
        weights = optimizer.minimize(loss).value
    found = _factors_summed(cell.experts, weights)
    return cell.of(found, weights=[float(weight) for weight in weights], loss=loss(weights), rows=len(rows.rows), optimizer=optimizer.name)


def _nevergrad(num_weights: int, *, budget: int, seed: int) -> Any:
    try:
        import nevergrad
    except ImportError as error:
        raise UsageError(f"method 'lorahub' needs nevergrad ({error}); pip install 'pidep[tune]'") from error
    bound = np.full(num_weights, _LORAHUB_BOUND)
    weights = nevergrad.p.Array(init=np.zeros(num_weights), lower=-bound, upper=bound)
    weights.random_state.seed(seed)
    return nevergrad.optimizers.NGOpt(parametrization=weights, budget=budget)


def _factors_summed(experts: Sequence[Expert], weights: Sequence[float]) -> Mixture:
    """One LoRA of the factors Σ wₖ Aₖ and Σ wₖ Bₖ, under the first expert's scaling."""
    first = experts[0]
    merged = {
        site: {
            name: sum((np.float32(weight) * expert.sites[site][name] for weight, expert in zip(weights, experts, strict=True)), start=0)
            for name in tensors
        }
        for site, tensors in first.sites.items()
    }
    return Mixture([cast(Any, merged)], [first.scaling])


def pi(cell: Cell, **settings: Any) -> Predictor:
    """π: own expert and helpers interpolated under a guard, in the own expert's steps; `settings` are `InterpolateSettings`'."""

    schedule = cell.recipe.schedule(f"{cell.task.name}: interpolation", cell.seed)
    found = interpolate(
        cell.scorer,
        cell.own,
        cell.helpers,
        cell.train,
        cell.validation,
        InterpolateSettings(schedule, own_learning_rate=cell.recipe.learning_rate, **settings),
        train_own=cell.train_own,
        similarities=cell.similarities,
        on_step=cell.on_step,
    )
    predictor = cell.of(found.mixture, experts=list(found.experts), alpha=_mean_alpha(found.mixture))
    return replace(predictor, decision=found.decision.to_json())


def pi_trial(cell: Cell, **settings: Any) -> Predictor:
    """As `pi`, the helpers chosen by trial on the cell's rows instead of by the Fisher; the own expert where none of them helps."""
    near = by_trial(cell.scorer, cell.train, cell.pool, top_k=len(cell.helpers))
    chosen = {"helpers": [{"task": one.name, "similarity": one.similarity} for one in near]}
    if not near:
        return replace(own_expert(cell), details=chosen)
    helped = replace(cell, helpers=tuple(cell.pool[one.name] for one in near), similarities=tuple(one.similarity for one in near))
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


def _trained(report: TrainReport) -> dict[str, Any]:
    found: dict[str, Any] = {"steps": report.steps, "best_step": report.best_step, "loss": report.history[-1]["loss"]}
    return found if report.validation_loss is None else {**found, "validation_loss": report.validation_loss}


def _mean_alpha(mixture: Mixture) -> list[float]:
    """`[K]` α, averaged over the sites."""
    return [float(weight) for weight in np.mean(list(mixture.alphas().values()), axis=0)]


def _key(mixture: Mixture) -> str:
    """SHA-256 over everything that decides the mixture's answers."""
    sha = hashlib.sha256(mixture.kind.encode())
    for name, value in sorted(snapshot(mixture).items()):
        sha.update(f"\n{name} {tuple(value.shape)} ".encode())
        sha.update(value.contiguous().numpy().tobytes())
    for name, site in mixture.by_name():
        sha.update(f"\n{name} {site.scalings} {site.on_outputs} {site.alpha().tolist()}".encode())
    return sha.hexdigest()
