"""Bottleneck adapters after projections to the residual stream: y + up(relu(down(y))).

Houlsby et al. (2019) put one after attention and one after the feed-forward block: pattern
`houlsby`, every site, the default. Pfeiffer et al. (2021) use the second only: pattern `pfeiffer`.
A decoder's cross-attention counts as attention.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from pidep.adapters import row_ops
from pidep.adapters.dense import dense_layers, widths
from pidep.adapters.site import AdapterKind, Array, BankSite, LayerSite, drawn_first, to_array
from pidep.experts.kinds.adapter import KIND as ADAPTER

__all__ = ["KIND", "AdapterBankSite", "AdapterSite"]

# The last dense layer of an attention or feed-forward block, by transformers' names. BERT, RoBERTa,
# ELECTRA, DeBERTa, MPNet: (attention.)output.dense. DistilBERT: out_lin, lin2. ModernBERT: Wo. T5:
# o, wo. GPT-2: c_proj. Llama, Qwen, ViT, DINOv2, Swin: o_proj. OPT, BART, CLIP, SigLIP: out_proj,
# fc2. Florence-2's vision: proj, fc2. BLIP's vision: projection, fc2. GPT-NeoX: attention.dense,
# dense_4h_to_h.
# transformers has no attribute for this role, so names are the only clue.
_WRITES = re.compile(
    r"(^|\.)(output\.dense|out_proj|o_proj|out_lin|o|wo|Wo|fc2|lin2|down_proj|c_proj|proj|w2"
    r"|projection|(self_)?att(entio)?n\.dense|dense_4h_to_h)$"
)
_FEED_FORWARD = re.compile(
    r"(^|\.)((ffn|mlp|feed_forward)\.\w+|fc2|lin2|wo|down_proj|w2|dense_4h_to_h"
    r"|(?<!attention\.)output\.dense)$"
)


class AdapterSite(LayerSite):
    """A dense layer followed by a mixture of adapters, on parameters or on outputs."""

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """y + up(relu(down(y)))."""
        own = self.side_by_side() if self.on_outputs and self.rows is None else self.tensors()
        own = {name: value.to(y.dtype) for name, value in own.items()}
        # transpose and unsqueeze instead of F.linear: the tensors may have a leading batch axis.
        # The adapter reads the layer's output, so it comes after the bias and before the residual
        # sum.
        hidden = torch.relu(y @ own["down"].transpose(-1, -2) + own["down_bias"].unsqueeze(-2))
        return y + hidden @ own["up"].transpose(-1, -2) + own["up_bias"].unsqueeze(-2)

    def side_by_side(self) -> dict[str, Tensor]:
        """One adapter of width Σ widthₖ that adds Σₖ αₖ upₖ(relu(downₖ(y))).

        `down` is `[K·W, D]` and `up` is `[D, K·W]`.
        """
        all_of = self.experts
        alpha = self.alpha().to(all_of["up"].dtype)
        return {
            "down": all_of["down"].flatten(0, 1),
            "down_bias": all_of["down_bias"].flatten(),
            # α goes into `up`, after relu: outputs are mixed here.
            "up": (alpha[:, None, None] * all_of["up"]).transpose(0, 1).flatten(1),
            "up_bias": alpha @ all_of["up_bias"],
        }

    def folded(self) -> dict[str, Array]:
        """The mixture as one adapter; a mixture on outputs becomes a wider one."""
        if not self.on_outputs:
            return super().folded()
        with torch.no_grad():
            return {name: to_array(value) for name, value in self.side_by_side().items()}


class AdapterBankSite(BankSite):
    """A dense layer followed by the adapters of each row's own expert, mixed on their outputs."""

    kind = ADAPTER.name

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """y + Σₖ wₖ upₖ(relu(downₖ(y)))."""
        bias = self.own("hidden_bias").transpose(-1, -2)  # [G, 1, K·W]
        down = row_ops.matmul(y, self.own("down"), transposed=True)
        # Weights after relu: outputs are mixed.
        hidden = row_ops.multiply(torch.relu(row_ops.add(down, bias)), self.weights("down"))
        up_bias = row_ops.matmul(self.weights("bias"), self.own("bias"))  # [G, 1, D]
        return row_ops.add(y + row_ops.matmul(hidden, self.own("up")), up_bias)


def _candidates(model: nn.Module) -> list[str]:
    """Dense layers that write to the residual stream inside a stack of layers."""
    # Inside a stack only: SigLIP's pooling head has an `mlp.fc2` as well.
    stacks = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    )
    return [
        name for name in dense_layers(model) if _WRITES.search(name) and name.startswith(stacks)
    ]


def _feed_forward(sites: list[str]) -> list[str]:
    return [site for site in sites if _FEED_FORWARD.search(site)]


def _shapes(model: nn.Module, site: str, width: int) -> dict[str, tuple[int, ...]]:
    _, size = widths(model.get_submodule(site))
    return {"down": (width, size), "down_bias": (width,), "up": (size, width), "up_bias": (size,)}


KIND = AdapterKind(
    ADAPTER,
    AdapterSite,
    needs="projection back to the residual stream of a known name",
    changes="adds up(relu(down(y))) to the output y of attention and feed-forward",
    candidates=_candidates,
    shapes=_shapes,
    as_constants=True,
    start=drawn_first("down"),
    learning_rate=1e-3,
    mixes_outputs=True,
    bank_site=AdapterBankSite,
    named_patterns={"houlsby": list, "pfeiffer": _feed_forward},
)
