"""The attention that carries a prefix, against the formula: softmax(q · [k_p; k]ᵀ + [0; bias], all of the prefix in sight) · [v_p; v]."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pidep.errors import ExpertError
from pidep.experts.kinds.prefix import _attention
from pidep.experts.mixture import Mixture

BATCH, HEADS, SIZE, LENGTH, PREFIX = 2, 4, 3, 5, 2


def formula(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """In float64, one query head to each of `keys`' heads, `[B, T, heads, size]`."""
    scores = query.double() @ keys.double().transpose(2, 3) * scaling + bias.double()
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1)
    return (weights @ values.double()).transpose(1, 2)


@pytest.mark.parametrize("mask", ["bool", "float", "none"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("queries", [1, LENGTH])
def test_it_is_the_formula(mask: str, causal: bool, biased: bool, groups: int, queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = HEADS // groups

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    expert = {"prefix": {name: draw(PREFIX, heads * SIZE).numpy() for name in ("key", "value")}}
    site = next(site for _, site in Mixture([expert], [1.0], kind="prefix").by_name())
    module: Any = nn.Identity()
    module.pidep_prefix, module.is_causal, module.num_key_value_groups = site, causal, groups
    query, key, value = draw(BATCH, HEADS, queries, SIZE), draw(BATCH, heads, LENGTH, SIZE), draw(BATCH, heads, LENGTH, SIZE)
    # the queries are the last of the tokens, as in a step of generate; without a mask sdpa lines them up with the first
    visible = torch.ones(queries, LENGTH, dtype=torch.bool)
    if causal and queries > 1:
        visible = visible.tril()
    visible = visible.expand(BATCH, 1, -1, -1).clone()
    if mask != "none":
        visible[1, :, :, 3:] = False  # padding
    given = {"bool": visible, "float": torch.zeros(visible.shape).masked_fill(~visible, -1e9), "none": None}[mask]
    bias = draw(1, HEADS, queries, LENGTH) if biased else torch.zeros(1, HEADS, queries, LENGTH)
    options: dict[str, Any] = {"position_bias": bias} if biased else {}
    found, _ = _attention(module, query, key, value, given, scaling=0.7, **options)

    def heads_of(name: str, own: Tensor) -> Tensor:
        prefix = site.experts[name][0].reshape(PREFIX, heads, SIZE).transpose(0, 1).expand(BATCH, -1, -1, -1)
        return torch.cat([prefix, own], 2).repeat_interleave(groups, 1)

    want = formula(
        query,
        heads_of("key", key),
        heads_of("value", value),
        nn.functional.pad(bias, (PREFIX, 0)),
        nn.functional.pad(visible, (PREFIX, 0), value=True),
        0.7,
    )
    torch.testing.assert_close(found.double(), want, atol=1e-5, rtol=1e-5)


def test_rows_that_do_not_divide_the_batch_are_refused() -> None:
    expert = {"prefix": {name: np.zeros((PREFIX, SIZE), np.float32) for name in ("key", "value")}}
    site = next(site for _, site in Mixture([expert], [1.0], kind="prefix").by_name())
    site.rows = {name: torch.zeros(2, PREFIX, SIZE) for name in ("key", "value")}
    module: Any = nn.Identity()
    module.pidep_prefix, module.is_causal = site, False
    states = torch.zeros(3, 1, LENGTH, SIZE)
    with pytest.raises(ExpertError, match=r"3 rows at an attention layer, 2 samples"):
        _attention(module, states, states, states, None)
