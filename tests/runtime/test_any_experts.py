"""Any experts of any kind and size, and mixtures of them, through one traced graph of each text
encoder of the zoo: the exported graph answers as PyTorch, and each row as it does alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import attached, find_sites, fresh, mixture_of
from pidep.experts.bank import positions_before
from pidep.experts.folder import Expert
from pidep.experts.mixed import MixedExpert, Served, parts_of
from pidep.runtime import Answer, Bank
from tests.adapters.test_bank import ENCODERS, OUTSIDE
from tests.adapters.zoo import FITS, VOCAB, ZOO
from tests.runtime.exported import MAX_RANK, export_bank_folder

pytestmark = pytest.mark.slow  # a graph is compiled

ERROR = 5e-6
"""Of an element of a unit vector, in fp32."""
FAST = ("BERT", "ModernBERT")
"""The others repeat what these two show: absolute positions, and rotary ones with local windows."""


@dataclass(frozen=True)
class Traced:
    """A backbone, and the one graph that all examples share."""

    backbone: Any
    bank: Bank
    sites: dict[str, list[str]]
    """Kind to the places where its experts fit."""


def tokenizer() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<unk>", "<pad>", "<s>", "</s>", *(f"w{number}" for number in range(4, VOCAB))]
    vocab = {word: number for number, word in enumerate(words)}
    found = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return found.to_str()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.exhaustive])
        for name in ENCODERS
    ],
)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    from pidep.backbones.encoder import Encoder

    name = request.param
    backbone = Encoder(name, ZOO[name].build(), "mean", tokenizer(), f"sha256:{name}")
    kinds = [
        kind
        for kind in KINDS
        if isinstance(FITS[name][kind], int) and kind not in OUTSIDE.get(name, ())
    ]
    folder = export_bank_folder(backbone, tmp_path_factory.mktemp("repo"), kinds=kinds)
    sites = {kind: find_sites(backbone.model, kind=kind) for kind in kinds}
    return Traced(backbone, Bank(folder), sites)


def expert(traced: Traced, kind: str, sites: list[str], *, size: int, seed: int) -> Expert:
    rng = np.random.default_rng(seed)
    return Expert(
        name=f"{kind}-{seed}",
        backbone_digest=traced.backbone.digest,
        sites={
            site: {
                name: rng.normal(0, 0.3, value.shape).astype(np.float32)
                for name, value in tensors.items()
            }
            for site, tensors in fresh(traced.backbone.model, sites, kind=kind, rank=size).items()
        },
        scaling=float(rng.uniform(0.5, 2)) if kind == "lora" else 1.0,
        labels=("a",),
        label_texts=("a",),
        label_embeddings=np.ones((1, traced.backbone.hidden_size), np.float32),
        logit_scale=1.0,
        max_length=traced.backbone.max_positions,
        kind=kind,
    )


def some_served(draw: st.DrawFn, traced: Traced) -> Served:
    """An expert at some of its places, or a mixture of up to three that share them."""
    kind = draw(st.sampled_from(sorted(traced.sites)))
    every = traced.sites[kind]
    chosen = sorted(draw(st.sets(st.sampled_from(every), min_size=1)), key=every.index)
    seed, count = draw(st.integers(0, 10**6)), draw(st.integers(1, 3))
    size = draw(st.integers(1, MAX_RANK))
    # Virtual tokens of a mixture lie on top of each other, so all parts have as many.
    sizes = [
        draw(st.integers(1, MAX_RANK)) if kind in ("lora", "adapter") else size
        for _ in range(count)
    ]
    parts = tuple(
        expert(traced, kind, chosen, size=one, seed=seed + at) for at, one in enumerate(sizes)
    )
    if count == 1:
        return parts[0]
    shares = np.random.default_rng(seed).dirichlet([1.0] * count, len(chosen))
    return MixedExpert(
        parts[0], parts, {site: tuple(row) for site, row in zip(chosen, shares, strict=True)}
    )


def torch_embedding(traced: Traced, served: Served | None, text: str) -> Any:
    backbone, groups = traced.backbone, traced.bank.groups
    taken = 0 if served is None else positions_before(parts_of(served)[0], groups)
    with attached(backbone.model, None if served is None else mixture_of(served)):
        return backbone.encode([text], max_length=backbone.max_positions - taken)[0]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_batch_answers_as_pytorch_and_as_each_row_alone(
    traced: Traced, data: st.DataObject
) -> None:
    given_ = {
        f"e{number}": data.draw(st.composite(some_served)(traced), label=f"e{number}")
        for number in range(data.draw(st.integers(1, 3), label="experts"))
    }
    words = st.lists(st.integers(4, VOCAB - 1).map("w{}".format), min_size=1, max_size=40)
    names = st.sampled_from(["@backbone", *given_])
    asked = data.draw(st.lists(st.tuples(words.map(" ".join), names), min_size=1, max_size=6))
    residents = traced.bank.build(given_)
    found = traced.bank.run(residents, [text for text, _ in asked], [name for _, name in asked])
    for (text, name), answer in zip(asked, found, strict=True):
        assert isinstance(answer, Answer), answer
        (alone,) = traced.bank.run(residents, [text], [name])
        assert isinstance(alone, Answer), alone
        wanted = torch_embedding(traced, given_.get(name), text)
        np.testing.assert_allclose(answer.embedding, wanted, atol=ERROR, rtol=0)
        np.testing.assert_allclose(answer.embedding, alone.embedding, atol=ERROR, rtol=0)
