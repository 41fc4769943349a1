"""Each baseline on a tiny backbone: it runs, and it does what its name says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, find_sites
from pidep.backbones.checkpoint import weights_digest
from pidep.cli.compare import NAMES
from pidep.experts.folder import Expert
from pidep.lab.baselines import BASELINES, biases_beside
from pidep.lab.cell import Cell
from pidep.lab.settings import METHODS
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from pidep.training.own_expert import train_own_expert
from pidep.training.scorer import Scorer, predict_logits
from pidep.training.settings import TrainingSettings
from tests.conftest import make_expert

pytestmark = pytest.mark.slow  # importing peft and nevergrad takes seconds

TEXTS = [
    "the film was good",
    "awful film",
    "bad a bad film",
    "a great film",
    "very good",
    "the very bad film",
]
ROWS = Split([*TEXTS, "great great", "awful"], [1, 0, 0, 1, 1, 0, 1, 0])
TASK = Task(
    name="film", labels={"negative": "negative", "positive": "positive"}, data={"packaged": "x"}
)
SETTINGS = {"full": {"learning_rate": 1e-3}, "lorahub": {"budget": 12, "max_rows": 4}}
TRAINED = ("bitfit", "full", "joint", "lorahub", "pi")


def make_cell(
    tiny, *, kind: str = "lora", patterns: tuple[str, ...] = ("encoder.layer.1.*",)
) -> Cell:  # type: ignore[no-untyped-def]
    scorer = Scorer(tiny, tiny.encode(["negative", "positive"], max_length=8), 20.0, 12)
    sites = tuple(find_sites(tiny.model, patterns, kind=kind))
    training = TrainingSettings(
        kind=kind,
        sites=sites,
        rank=2,
        scaling=2.0 if kind == "lora" else 1.0,
        steps=3,
        batch_size=4,
        warmup=0.0,
        weight_decay=0.01,
        eval_every=10,
        patience=2,
    )

    def expert(name: str, seed: int) -> Expert:
        if kind == "lora":
            return make_expert(tiny, name=name, seed=seed, sites=patterns)
        return train_own_expert(scorer, TASK, replace(training, seed=seed), ROWS, name=name)[0]

    helpers = tuple(expert(f"helper{seed}", seed) for seed in (1, 2))
    return Cell(
        scorer,
        TASK,
        training,
        expert("film", 0),
        helpers,
        ROWS,
        None,
        pool={one.name: one for one in helpers},
        similarities=(0.8, 0.4),
    )


def logits_of(cell: Cell, method: str) -> torch.Tensor:
    predictor = BASELINES[method](cell, **SETTINGS.get(method, {}))
    return predictor.logits(TEXTS)


def test_every_method_has_a_function() -> None:
    assert tuple(BASELINES) == METHODS == tuple(NAMES)


@pytest.mark.parametrize("method", METHODS)
def test_each_runs_and_leaves_the_backbone_alone(tiny, method: str) -> None:
    cell = make_cell(tiny)
    weights = weights_digest(tiny.model)
    modules, bare = dict(tiny.model.named_modules()), predict_logits(cell.scorer, TEXTS)
    with tiny.cached_below(cell.training.sites):
        logits = logits_of(cell, method)
    assert logits.shape == (6, 2)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, bare) == (method == "backbone")
    assert dict(tiny.model.named_modules()) == modules
    assert weights_digest(tiny.model) == weights
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())


@pytest.mark.parametrize("method", TRAINED)
def test_the_same_seed_gives_the_same_model(tiny, method: str) -> None:
    first, second = (logits_of(make_cell(tiny), method) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["adapter", "prefix", "prompt"])
def test_other_kinds(tiny, kind: str) -> None:
    cell = make_cell(tiny, kind=kind, patterns=("*",))
    with tiny.cached_below(cell.training.sites):
        found = {
            method: logits_of(cell, method)
            for method in ("own", "bitfit", "uniform", "joint", "pi")
        }
    assert all(logits.shape == (6, 2) for logits in found.values())
    assert not torch.allclose(found["own"], found["joint"])


def test_adapters_mixed_on_outputs_are_not_those_mixed_on_parameters(tiny) -> None:
    cell = make_cell(tiny, kind="adapter", patterns=("*",))
    on_parameters, on_outputs = (
        BASELINES[method](cell) for method in ("uniform", "uniform_outputs")
    )
    assert on_parameters.key != on_outputs.key
    assert not torch.equal(on_parameters.logits(TEXTS), on_outputs.logits(TEXTS))


def test_the_cache_changes_nothing_and_full_fine_tuning_uses_none(tiny) -> None:
    cell = make_cell(tiny)
    for method in ("own", "uniform", "peft_cat", "full"):
        without = logits_of(cell, method)
        cell = make_cell(tiny)
        with tiny.cached_below(cell.training.sites):
            assert torch.allclose(logits_of(cell, method), without, atol=1e-5), method


def test_peft_cat_is_the_uniform_mixture_of_products_and_linear_is_not(tiny) -> None:
    cell = make_cell(tiny)
    uniform = logits_of(cell, "uniform")
    assert torch.equal(uniform, predict_logits(cell.scorer, TEXTS, Mixture.of(cell.experts)))
    assert torch.allclose(logits_of(cell, "peft_cat"), uniform, atol=1e-5)
    assert (logits_of(cell, "peft_linear") - uniform).abs().max() > 0.1
    assert BASELINES["peft_svd"](cell).details["rank"] == 2


def test_peft_svd_is_the_best_merge_of_its_rank(tiny) -> None:
    cell = make_cell(tiny)
    site = cell.training.sites[0]
    BASELINES["peft_svd"](cell)
    layer = cell.peft.get_base_model().get_submodule(site)
    merged = layer.get_delta_weight("svd")
    wanted = (
        sum(
            expert.scaling * expert.sites[site]["lora_B"] @ expert.sites[site]["lora_A"]
            for expert in cell.experts
        )
        / 3
    )
    left, values, right = np.linalg.svd(wanted)
    assert np.allclose(merged, (left[:, :2] * values[:2]) @ right[:2], atol=1e-5)


def test_lorahub_searches_within_its_budget_and_finds_less_loss(tiny) -> None:
    cell = make_cell(tiny)
    useful, _ = train_own_expert(
        cell.scorer, TASK, replace(cell.training, steps=30).at_rate(10.0), ROWS
    )
    found = BASELINES["lorahub"](replace(cell, own=useful), budget=12, max_rows=8)
    start = torch.nn.functional.cross_entropy(
        predict_logits(cell.scorer, ROWS.rows), torch.tensor(ROWS.labels)
    )
    assert found.details["loss"] < float(start)
    assert len(found.details["weights"]) == 3
    assert max(map(abs, found.details["weights"])) <= 1.5
    assert found.details["rows"] == 8


def test_lorahub_sums_the_factors_apart(tiny) -> None:
    from pidep.lab.lorahub import sum_factors

    experts = make_cell(tiny).experts
    merged = sum_factors(experts, [0.5, 0.0, -1.0]).part(0)
    for site, tensors in experts[0].sites.items():
        for name, own in tensors.items():
            assert np.allclose(
                merged[site][name], 0.5 * own - experts[2].sites[site][name], atol=1e-6
            )


def test_full_fine_tuning_changes_every_layer_of_its_copy(tiny) -> None:
    cell = make_cell(tiny)
    found = BASELINES["full"](cell, learning_rate=1e-3, steps=2)
    assert found.details["steps"] == 2
    copied = found.logits.args[0].backbone.model  # type: ignore[attr-defined]
    same = [
        name
        for name, weight in copied.named_parameters()
        if torch.equal(weight, tiny.model.get_parameter(name))
    ]
    assert all(
        "pooler" in name or "key.bias" in name for name in same
    )  # a key's bias shifts all scores alike, so it has no gradient


def test_bitfit_acts_on_the_biases_of_the_same_layers(tiny) -> None:
    inside = biases_beside(tiny.model, ["encoder.layer.1.attention.self.query"])
    assert inside
    assert all(site.startswith("encoder.layer.1.") for site in inside)
    assert len(biases_beside(tiny.model, ["embeddings.word_embeddings"])) > len(inside)


def test_equal_mixtures_have_one_key(tiny) -> None:
    cell = make_cell(tiny)
    own, again, uniform = (BASELINES[method](cell).key for method in ("own", "own", "uniform"))
    assert own == again != uniform
    tilted = Mixture.of(cell.experts)
    with torch.no_grad():
        tilted.alpha_parameters()[0][0] += 1
    assert cell.predictor(tilted).key != uniform


def test_pi_is_guarded_and_says_what_it_did(tiny) -> None:
    cell = make_cell(tiny)
    found = BASELINES["pi"](cell, folds=2)
    assert found.decision is not None
    assert found.decision["chosen"] in ("mixture", "own_expert", "uniform")
    assert found.decision["rows"] == len(ROWS.rows)
    asked = BASELINES["pi"](cell, policy="uniform")
    assert asked.key == BASELINES["uniform"](cell).key
    assert torch.equal(asked.logits(TEXTS), logits_of(cell, "uniform"))
