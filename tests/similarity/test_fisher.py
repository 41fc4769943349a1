import numpy as np
import pytest
import torch

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import Mixture, attached
from pidep.errors import ExpertError, UsageError
from pidep.similarity.fisher import diagonal_fisher
from tests.similarity.samples import random_expert

TEXTS = ["the film was good", "awful", "bad bad film", "a great", "the was a very very good film"]
LABELS = [1, 0, 0, 1, 1]


def gradients(backbone, expert, text: str, label: int) -> dict[str, np.ndarray]:
    """Gradient of -log p(label | text) through the mixture's own parameters.

    It shares nothing with the code for rows, which is tested.
    """
    mixture = Mixture.of([expert])
    found = {}
    with attached(backbone.model, mixture):
        logits = (
            expert.logit_scale
            * backbone.embed([text], max_length=expert.max_length)
            @ torch.from_numpy(expert.label_embeddings).T
        )
        torch.nn.functional.cross_entropy(logits, torch.tensor([label])).backward()
    for number, (name, site) in enumerate(mixture.by_name()):
        own = (
            {"lora_A": site.a.grad, "lora_B": site.b.grad}
            if expert.kind == "lora"
            else {
                key: value[0]
                for key, value in mixture.arena.unpacked(mixture.arena.learned.grad, number).items()
            }
        )
        found |= {f"{name}.{key}": value.numpy() for key, value in own.items()}
    return found


def probabilities(backbone, expert, text: str) -> np.ndarray:
    with attached(backbone.model, Mixture.of([expert])):
        embedding = backbone.encode([text], max_length=expert.max_length).numpy()[0]
    scores = np.exp(expert.logit_scale * expert.label_embeddings @ embedding)
    return scores / scores.sum()


def assert_close(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float = 1e-3
) -> None:
    assert found.keys() == expected.keys()
    # A bias of keys shifts all scores of a softmax alike. Its gradient is rounding noise, far below
    # the others.
    atol = 1e-10 * max(value.max() for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_empirical_is_the_mean_of_squared_single_gradients(tiny, kind: str) -> None:
    expert = random_expert(tiny, kind)
    singles = [
        gradients(tiny, expert, text, label) for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    expected = {name: np.mean([single[name] ** 2 for single in singles], 0) for name in singles[0]}
    for batch_size in (1, 2, 16):
        assert_close(diagonal_fisher(tiny, expert, TEXTS, LABELS, batch_size=batch_size), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_squared_is_the_squared_gradient_of_the_mean_loss(tiny, kind: str) -> None:
    expert = random_expert(tiny, kind)
    singles = [
        gradients(tiny, expert, text, label) for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    together = diagonal_fisher(tiny, expert, TEXTS, LABELS, kind="batch_squared", batch_size=5)
    assert_close(
        together,
        {name: np.mean([single[name] for single in singles], 0) ** 2 for name in singles[0]},
        rtol=1e-2,
    )
    apart = diagonal_fisher(tiny, expert, TEXTS, LABELS, kind="batch_squared", batch_size=1)
    assert_close(apart, diagonal_fisher(tiny, expert, TEXTS, LABELS))
    assert sum(value.sum() for value in together.values()) < sum(
        value.sum() for value in apart.values()
    )


def test_true_nears_the_expectation_over_the_models_labels(tiny) -> None:
    expert = random_expert(tiny, "lora")
    texts = TEXTS[:2]
    expected: dict[str, np.ndarray] = {}
    for text in texts:
        for label, probability in enumerate(probabilities(tiny, expert, text)):
            for name, gradient in gradients(tiny, expert, text, label).items():
                expected[name] = expected.get(name, 0) + probability * gradient**2 / len(texts)
    errors = []
    for count in (20, 500):
        found = diagonal_fisher(tiny, expert, texts * count, kind="true", batch_size=250)
        errors.append(max(abs(found[name].sum() / expected[name].sum() - 1) for name in expected))
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


def test_true_depends_on_the_seed_alone(tiny) -> None:
    expert = random_expert(tiny, "lora")
    first = diagonal_fisher(tiny, expert, TEXTS, kind="true", seed=1, batch_size=2)
    assert_close(diagonal_fisher(tiny, expert, TEXTS, kind="true", seed=1, batch_size=16), first)
    assert_close(diagonal_fisher(tiny, expert, TEXTS, LABELS, kind="true", seed=1), first)
    others = [diagonal_fisher(tiny, expert, TEXTS, kind="true", seed=seed) for seed in range(2, 8)]
    assert any(
        not np.allclose(other[name], first[name], rtol=1e-2) for other in others for name in first
    )


def test_memory_is_that_of_a_batch(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expert = random_expert(tiny, "prefix")
    sizes: list[int] = []
    embed = tiny.embed
    monkeypatch.setattr(
        tiny,
        "embed",
        lambda texts, **options: (sizes.append(len(texts)), embed(texts, **options))[1],
    )
    diagonal_fisher(tiny, expert, TEXTS * 10, LABELS * 10, batch_size=8)
    assert sum(sizes) == 50
    assert max(sizes) == 8


def test_inside_the_layer_cache_it_is_the_same(tiny) -> None:
    from dataclasses import replace

    whole = random_expert(tiny, "lora")
    expert = replace(
        whole, sites={name: tensors for name, tensors in whole.sites.items() if ".layer.1." in name}
    )
    outside = diagonal_fisher(tiny, expert, TEXTS, LABELS)
    with tiny.cached_below(list(expert.sites)):
        assert_close(diagonal_fisher(tiny, expert, TEXTS, LABELS), outside)


def test_a_site_nothing_flows_through_has_no_information(tiny) -> None:
    from tests.conftest import make_expert

    expert = make_expert(tiny, sites=("*", "pooler*"))
    found = diagonal_fisher(tiny, expert, TEXTS, LABELS)
    assert found["pooler.dense.lora_A"].shape == expert.sites["pooler.dense"]["lora_A"].shape
    assert not found["pooler.dense.lora_A"].any()


def test_the_backbone_is_left_as_it_was(tiny) -> None:
    from pidep.backbones.checkpoint import weights_digest

    modules, before = dict(tiny.model.named_modules()), weights_digest(tiny.model)
    diagonal_fisher(tiny, random_expert(tiny, "adapter"), TEXTS, LABELS)
    assert dict(tiny.model.named_modules()) == modules
    assert weights_digest(tiny.model) == before


def test_what_cannot_be_done_is_refused(tiny) -> None:
    expert = random_expert(tiny, "lora")
    with pytest.raises(
        UsageError, match="needs a label for each of 5 rows, found none; use 'true'"
    ):
        diagonal_fisher(tiny, expert, TEXTS)
    with pytest.raises(UsageError, match="needs a label for each of 5 rows, found 2"):
        diagonal_fisher(tiny, expert, TEXTS, [0, 1], kind="batch_squared")
    with pytest.raises(UsageError, match="labels run from 0 to 1, found 0 to 2"):
        diagonal_fisher(tiny, expert, TEXTS, [0, 1, 2, 0, 1])
    with pytest.raises(UsageError, match="needs at least one row"):
        diagonal_fisher(tiny, expert, [], [])
    with pytest.raises(
        UsageError, match=r"Fisher kind 'emprical': .* \(did you mean 'empirical'\?\)"
    ):
        diagonal_fisher(tiny, expert, TEXTS, LABELS, kind="emprical")  # type: ignore[arg-type]


def test_a_gradient_that_is_not_finite_is_refused(tiny) -> None:
    expert = random_expert(tiny, "lora")
    next(iter(expert.sites.values()))["lora_B"][:] = np.nan
    with pytest.raises(ExpertError, match=r"the gradient of .* is not finite"):
        diagonal_fisher(tiny, expert, TEXTS, LABELS)
