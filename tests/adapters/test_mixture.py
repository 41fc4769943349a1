import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidep.adapters.fold import folded_or_attached
from pidep.adapters.kinds.lora import LoraSite
from pidep.adapters.mixture import Mixture, attached, find_sites, fresh
from pidep.errors import ExpertError
from tests.conftest import make_expert

TEXTS = ["the film was good", "awful", "a very bad film was the great film"]


def lora(rng, rank: int, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    shapes = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def embed(backbone, mixture=None) -> torch.Tensor:
    with attached(backbone.model, mixture):
        return backbone.encode(TEXTS, max_length=12)


def test_detach_restores_bit_for_bit(tiny) -> None:
    before, modules = embed(tiny), dict(tiny.model.named_modules())
    state = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    assert not torch.equal(embed(tiny, Mixture.of([make_expert(tiny)])), before)
    assert torch.equal(embed(tiny), before)
    assert dict(tiny.model.named_modules()) == modules
    with folded_or_attached(tiny.model, make_expert(tiny).sites, kind="lora", scaling=2.0):
        pass
    assert all(torch.equal(value, state[name]) for name, value in tiny.model.state_dict().items())


def test_detach_also_after_an_error(tiny) -> None:
    modules = dict(tiny.model.named_modules())
    mixture = Mixture.of([make_expert(tiny)])
    with pytest.raises(RuntimeError), attached(tiny.model, mixture):
        raise RuntimeError
    assert dict(tiny.model.named_modules()) == modules


def test_one_hot_alpha_is_that_expert(tiny) -> None:
    experts = [make_expert(tiny, seed=seed, rank=rank) for seed, rank in ((1, 2), (2, 3), (3, 1))]
    mixture = Mixture.of(experts)
    for index, expert in enumerate(experts):
        with torch.no_grad():
            for logits in mixture.alpha_parameters():
                logits.copy_(torch.full((3,), -1e4).index_fill(0, torch.tensor(index), 0.0))
        torch.testing.assert_close(
            embed(tiny, mixture), embed(tiny, Mixture.of([expert])), atol=1e-5, rtol=0
        )


def test_permuting_experts_changes_nothing(tiny) -> None:
    first, second = make_expert(tiny, seed=1), make_expert(tiny, seed=2)
    torch.testing.assert_close(
        embed(tiny, Mixture.of([first, second])),
        embed(tiny, Mixture.of([second, first])),
        atol=1e-6,
        rtol=0,
    )


def test_fold_equals_the_unfolded_mixture(tiny) -> None:
    experts = [make_expert(tiny, seed=seed, rank=2 + seed) for seed in range(3)]
    mixture = Mixture.of(experts)
    with torch.no_grad():
        for logits in mixture.alpha_parameters():
            logits.copy_(torch.tensor([0.3, -1.0, 0.7]))
    unfolded = embed(tiny, mixture)
    folded = mixture.folded()
    torch.testing.assert_close(embed(tiny, Mixture([folded], [1.0])), unfolded, atol=1e-5, rtol=0)
    with folded_or_attached(tiny.model, folded, kind="lora", scaling=1.0):
        torch.testing.assert_close(embed(tiny), unfolded, atol=1e-5, rtol=0)


@given(st.integers(1, 4), st.integers(0, 10_000))
def test_mixture_is_of_products_never_of_factors(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [lora(rng, rank, 5, 7) for rank in rng.integers(1, 4, count)]
    scalings = rng.uniform(0.5, 2, count).tolist()
    site = LoraSite(parts, scalings, num_learned=count)
    site.base = torch.nn.Linear(5, 7)
    x = torch.from_numpy(rng.normal(size=(3, 5)).astype(np.float32))
    delta = sum(
        scale / count * part["lora_B"].astype(np.float64) @ part["lora_A"].astype(np.float64)
        for part, scale in zip(parts, scalings, strict=True)
    )
    want = site.base(x).double() + x.double() @ torch.from_numpy(delta).T
    torch.testing.assert_close(site(x).double(), want, atol=1e-5, rtol=1e-5)


def adapters(tiny, count: int) -> Mixture:
    """A mixture on outputs of random adapters; the first is learned, and α is uneven."""
    rng = np.random.default_rng(count)
    start = fresh(tiny.model, find_sites(tiny.model, kind="adapter"), kind="adapter", rank=3)
    drawn = [
        {
            site: {
                name: rng.normal(0, 0.3, value.shape).astype(np.float32)
                for name, value in part.items()
            }
            for site, part in start.items()
        }
        for _ in range(count)
    ]
    mixture = Mixture(drawn, [1.0] * count, kind="adapter", num_learned=1, on_outputs=True)
    with torch.no_grad():
        for logits in mixture.alpha_parameters():
            logits.copy_(torch.linspace(-1, 1, count))
    return mixture


@pytest.mark.parametrize("count", [1, 2, 4])
def test_adapters_on_outputs_add_what_each_of_them_adds(tiny, count: int) -> None:
    mixture = adapters(tiny, count)
    alpha = torch.softmax(torch.linspace(-1, 1, count), 0)
    for name, site in mixture.by_name():
        y = torch.randn(2, 5, site.shape("up")[0])
        want = y.clone()
        for index in range(count):
            (_, alone) = next(
                iter(Mixture([{name: mixture.part(index)[name]}], [1.0], kind="adapter").by_name())
            )
            want += alpha[index] * (alone.act(y, y) - y)
        torch.testing.assert_close(site.act(y, y), want, atol=1e-5, rtol=0)


def test_adapters_on_outputs_fold_into_one_wide_adapter(tiny) -> None:
    mixture = adapters(tiny, 3)
    folded = mixture.folded()
    assert {tensors["down"].shape[0] for tensors in folded.values()} == {9}
    torch.testing.assert_close(
        embed(tiny, Mixture([folded], [1.0], kind="adapter")),
        embed(tiny, mixture),
        atol=1e-5,
        rtol=0,
    )


def test_adapters_on_outputs_are_learned_alone_and_alpha_exactly(tiny) -> None:
    mixture = adapters(tiny, 3).double()
    _, site = next(mixture.by_name())
    y = torch.randn(2, 5, site.shape("up")[0], dtype=torch.float64)

    def run(logits: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(site, {"alpha_logits": logits}, (y, y))

    site.forward = site.act
    assert torch.autograd.gradcheck(run, (site.alpha_logits.detach().clone().requires_grad_(),))
    site.act(y, y).square().sum().backward()
    assert mixture.arena.learned.grad is not None
    assert mixture.arena.learned.grad.any()


def test_alpha_gradient_in_float64() -> None:
    rng = np.random.default_rng(0)
    site = LoraSite(
        [lora(rng, 2, 5, 4) for _ in range(3)],
        [1.0, 2.0, 0.5],
        num_learned=3,
    ).double()
    site.base = torch.nn.Linear(5, 4).double()
    x = torch.randn(2, 5, dtype=torch.float64)

    def run(logits: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(site, {"alpha_logits": logits}, (x,))

    assert torch.autograd.gradcheck(run, (torch.randn(3, dtype=torch.float64, requires_grad=True),))


def test_sites_that_do_not_exist_are_named(tiny) -> None:
    with pytest.raises(ExpertError, match=r"matches no Linear; this backbone has e\.g\. encoder"):
        find_sites(tiny.model, ["decoder.*"])
    expert = make_expert(tiny)
    site = next(iter(expert.sites))
    expert.sites[site] = {
        "lora_A": np.zeros((2, 5), np.float32),
        "lora_B": np.zeros((16, 2), np.float32),
    }
    with (
        pytest.raises(ExpertError, match=r"lora_A is \(2, 5\), the backbone needs \(2, 16\)"),
        attached(tiny.model, Mixture.of([expert])),
    ):
        pass


def test_peft_gives_the_same_embeddings(tiny, tiny_folder, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    from pidep.backbones.pooling import pool
    from pidep.experts.folder import write_expert

    expert = make_expert(tiny)
    write_expert(expert, tmp_path / "e")
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_folder), tmp_path / "e").eval()
    ids, mask = (torch.from_numpy(array) for array in tiny.tokenize(TEXTS, max_length=12))
    with torch.no_grad():
        theirs = pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, "mean")
    torch.testing.assert_close(theirs, embed(tiny, Mixture.of([expert])), atol=1e-5, rtol=0)
