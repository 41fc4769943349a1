"""Prompt-tuning (Lester et al., 2021): P virtual tokens among the input embeddings.

Decoders and encoders: the tokens take positions 0 … P-1 and the text follows, as in PEFT. The
outputs are cut back to the text. `generate` inserts the tokens once; they stay in the KV cache.
Encoder-decoders: the tokens stand before the encoder's input, and the decoder can attend to them.
Images: `[CLS] patches prompt`. Attention ignores order, so this equals VPT-shallow (Jia et al.,
2022) and keeps [CLS] where every pooler looks for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pidep.adapters import row_ops
from pidep.adapters.bank_rows import running_bank
from pidep.adapters.forward_facts import forward_facts
from pidep.adapters.positions import check_room, default_positions, text_reader
from pidep.adapters.site import AdapterKind, ExpertSite, Undo
from pidep.errors import ExpertError
from pidep.experts.kinds.prompt import KIND as PROMPT

__all__ = ["KIND", "PromptBankSite", "PromptSite"]


class PromptSite(ExpertSite):
    """A mixture of prompts `[P, D]` at the input embeddings."""

    @property
    def length(self) -> int:
        """P, the number of virtual tokens."""
        return self.shape("prompt")[0]

    def attach(self, model: nn.Module, name: str) -> Undo:
        """Hook the model that reads the embeddings, and cut the virtual tokens from its output."""
        place = model.get_submodule(name)
        body = _reader(model, name)
        if body is None:
            owner = model.get_submodule(name.rpartition(".")[0])
            # Behind the patches, so that [CLS] stays first, where poolers read it.
            hooks = [place.register_forward_hook(self._append), *self._cut(owner, at_end=True)]
        elif _is_encoder_decoder(body):
            encoder, decoder = cast(nn.Module, body.encoder), cast(nn.Module, body.decoder)
            hooks = [
                # The encoder's output keeps the virtual tokens, because the decoder attends to
                # them.
                encoder.register_forward_pre_hook(_Before(self, encoder), with_kwargs=True),
                decoder.register_forward_pre_hook(self._uncover, with_kwargs=True),
            ]
        else:
            before = _Before(self, body)
            hooks = [
                body.register_forward_pre_hook(before, with_kwargs=True),
                *self._cut(body, at_end=False, before=before),
            ]

        def detach() -> None:
            for hook in hooks:
                hook.remove()

        return detach

    def prompt(self, batch: int) -> Tensor:
        """The prompt for a batch, `[B, P, D]`.

        `batch` is a size, not a `len`, which an export would fix.
        """
        own = self.tensors()["prompt"]
        # Several sequences of one row lie next to each other, such as its candidates.
        if own.dim() == 3 and len(own) not in (1, batch):
            own = own.repeat_interleave(batch // len(own), 0)
        return own.expand(batch, -1, -1)

    def seen(self, mask: Tensor) -> Tensor:
        """The part of the attention mask over the virtual tokens, `[B, P]`; they are visible."""
        return mask.new_ones(mask.shape[0], self.length)

    def moved(self, positions: Tensor | None, reader: nn.Module, count: int) -> Tensor | None:
        """Position ids `[B, P + T]` of the prompt and the text behind it.

        Args:
            positions: the text's own; None leaves them to the model.
            count: T.
        """
        if positions is None:
            return None
        first = torch.arange(self.length, device=positions.device)
        return torch.cat([first.expand(positions.shape[0], -1), self.behind(positions)], 1)

    def behind(self, positions: Tensor) -> Tensor:
        """The text's position ids behind the prompt."""
        return positions + self.length

    def _append(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """Patches `[B, N, D]` followed by the prompt."""
        return torch.cat([output, self.prompt(output.shape[0])], 1)

    def _uncover(
        self, _: nn.Module, arguments: Any, options: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Let the decoder attend to the virtual tokens at the start of the encoder's output."""
        mask = options.get("encoder_attention_mask")
        return arguments, options if mask is None else {
            **options,
            "encoder_attention_mask": _widened(mask, self),
        }

    def _cut(self, body: nn.Module, *, at_end: bool, before: _Before | None = None) -> list[Any]:
        """Hooks that cut the virtual tokens from a model's output and from its pooler's input."""

        def keep(hidden: Tensor) -> Tensor:
            if before is not None and not before.added:
                return hidden
            return hidden[:, : -self.length] if at_end else hidden[:, self.length :]

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            if not hasattr(output, "last_hidden_state"):
                raise ExpertError(
                    "prompt experts: the backbone must return a dictionary; call it without "
                    "return_dict=False"
                )
            # Callers pool over the text's own mask, which does not know the virtual tokens.
            output["last_hidden_state"] = keep(output["last_hidden_state"])
            if output.get("hidden_states") is not None:
                output["hidden_states"] = tuple(keep(hidden) for hidden in output["hidden_states"])
            return output

        hooks: list[Any] = [body.register_forward_hook(after)]
        pooler = getattr(body, "pooler", None)
        if isinstance(pooler, nn.Module):
            hooks.append(
                pooler.register_forward_pre_hook(
                    lambda _, arguments: (keep(arguments[0]), *arguments[1:])
                )
            )
        return hooks


class PromptBankSite(PromptSite):
    """The prompts of each row's own expert, averaged; tokens that it does not have are hidden.

    A short prompt stands right before the text, with idle tokens before it. Positions count from
    the prompt, so the text of a row without a prompt has the positions that it always had.
    """

    def __init__(self, name: str) -> None:
        super().__init__(1)
        self.name = name

    @property
    def length(self) -> int:
        """P of the longest prompt that the bank has room for."""
        return running_bank().size(PROMPT.name, "prompt", self.name)

    def prompt(self, batch: int) -> Tensor:
        """`[B, P, D]`, zeros for idle tokens: Σₖ wₖ promptₖ."""
        bank = running_bank()
        share = bank.weights(PROMPT.name, "prompt", self.name).transpose(1, 2)  # [G, K·P, 1]
        weighed = row_ops.multiply(bank.own(PROMPT.name, "prompt", self.name), share)
        tokens = weighed.reshape(weighed.shape[0], -1, self.length, weighed.shape[2])
        return bank.expanded(tokens.sum(1))

    def seen(self, mask: Tensor) -> Tensor:
        """1 for the virtual tokens that a row's expert has."""
        return self._live().to(mask.dtype)

    def moved(self, positions: Tensor | None, reader: nn.Module, count: int) -> Tensor:
        """As `PromptSite.moved`, by each row's own number of virtual tokens."""
        device = self._live().device
        # Explicit, because the model would count idle tokens as well.
        first = default_positions(reader, count, device)
        text = first if positions is None else positions
        idle = self.length - self._count()  # [B, 1]
        # Idle tokens are hidden, so any position that the table has will do.
        virtual = (torch.arange(self.length, device=device) - idle).clamp(min=0) + first[:, :1]
        rows = virtual.shape[0]
        return torch.cat([virtual, self.behind(text).expand(rows, -1)], 1)

    def behind(self, positions: Tensor) -> Tensor:
        """The text's position ids behind each row's prompt."""
        return positions + self._count()

    def _count(self) -> Tensor:  # [B, 1] int64
        return self._live().sum(1, keepdim=True).to(torch.int64)

    def _live(self) -> Tensor:  # [B, P], 1 for each virtual token
        bank = running_bank()
        live = bank.own(PROMPT.name, "live", self.name)  # [G, K·P, 1]
        # All experts of a mixture have the same tokens, and slot 0 has none.
        return bank.expanded(live.reshape(live.shape[0], -1, self.length).amax(1))


def _bank_around(model: nn.Module, sites: Mapping[str, ExpertSite]) -> Undo:
    """Refuse a backbone whose positions cannot be given."""
    for name in sites:
        text_reader(model, name)
    return lambda: None


class _Before:
    """Puts a prompt before the input of a model that takes `inputs_embeds`."""

    def __init__(self, site: PromptSite, reader: nn.Module) -> None:
        self.site = site
        self.added = True
        """Whether the running call inserted the prompt. A later step of `generate` has it in its
        cache.
        """
        self.names = list(inspect.signature(reader.forward).parameters)

    def __call__(
        self, reader: nn.Module, arguments: tuple[Any, ...], given: Mapping[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        # By name, because `input_ids` must go and `inputs_embeds` must come, and both may be
        # positional.
        options = {**dict(zip(self.names, arguments, strict=False)), **given}
        # transformers before 5.20 passes it, and derives it from the cache where it is missing.
        # Left as it is, it would count the tokens without the prompt.
        options.pop("cache_position", None)
        length = self.site.length
        cache = options.get("past_key_values")
        self.added = cache is None or not cache.get_seq_length()
        mask, positions, types = (
            options.get(name) for name in ("attention_mask", "position_ids", "token_type_ids")
        )
        if mask is not None:
            options["attention_mask"] = _widened(mask, self.site)
        # Later steps of `generate` pass the position of the new token only. It moves as well.
        if positions is not None and not self.added:
            options["position_ids"] = self.site.behind(positions)
        if self.added:
            ids = options.pop("input_ids", None)
            inputs = options.get("inputs_embeds")
            if inputs is None:
                # Looked up here, because a model takes either ids or embeddings, not both.
                inputs = reader.get_input_embeddings()(ids)  # type: ignore[operator]
            check_room(reader, length=inputs.shape[1], added=length)
            moved = self.site.moved(positions, reader, inputs.shape[1])
            if moved is not None:
                options["position_ids"] = moved
            options["inputs_embeds"] = torch.cat(
                [self.site.prompt(inputs.shape[0]).to(inputs.dtype), inputs], 1
            )
            if types is not None:
                # Type 0, the first segment: every model that has types has this one.
                options["token_type_ids"] = nn.functional.pad(types, (length, 0))
        return (), options


def _widened(mask: Any, site: PromptSite) -> Tensor:
    """The mask `[B, S]` as `[B, P + S]`."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise ExpertError(
            "prompt experts: expected an attention mask [batch, tokens], found one already made "
            "for attention; "
            "generate with a dynamic cache (not cache_implementation='static')"
        )
    return torch.cat([site.seen(mask), mask], 1)


def _reader(model: nn.Module, embeddings: str) -> nn.Module | None:
    """The innermost model around the word embeddings that takes `inputs_embeds` and a mask."""
    parts = embeddings.split(".")
    for end in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        takes = set(inspect.signature(module.forward).parameters)
        # ViLT's embedding module takes both as well.
        if {"inputs_embeds", "attention_mask"} <= takes and hasattr(module, "get_input_embeddings"):
            return module if isinstance(model.get_submodule(embeddings), nn.Embedding) else None
    return None


def _is_encoder_decoder(body: nn.Module) -> bool:
    config = getattr(body, "config", None)
    return (
        bool(getattr(config, "is_encoder_decoder", False))
        and hasattr(body, "encoder")
        and hasattr(body, "decoder")
    )


def _candidates(model: nn.Module) -> list[str]:
    """The word embeddings, and modules that make a row of patches.

    The model must take `inputs_embeds` for the first.
    """
    try:
        words = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        words = None
    patches = forward_facts(model).patches
    return [
        name
        for name, module in model.named_modules()
        if name in patches or (module is words and _reader(model, name) is not None)
    ]


def _shapes(model: nn.Module, site: str, tokens: int) -> dict[str, tuple[int, ...]]:
    place = model.get_submodule(site)
    return {
        "prompt": (
            tokens,
            place.embedding_dim
            if isinstance(place, nn.Embedding)
            else forward_facts(model).patches[site],
        )
    }


def _start(_: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


def _in_peft(model: nn.Module, sites: Sequence[str]) -> bool:
    """Whether PEFT can run the prompt: word embeddings of a model that reads no images."""
    of_words = len(sites) == 1 and isinstance(model.get_submodule(sites[0]), nn.Embedding)
    return of_words and "pixel_values" not in inspect.signature(model.forward).parameters


KIND = AdapterKind(
    PROMPT,
    PromptSite,
    needs="input embeddings that can be replaced (inputs_embeds), "
    "nor images cut into a plain row of patches",
    changes="adds P virtual tokens to the input",
    candidates=_candidates,
    shapes=_shapes,
    as_constants=True,
    start=_start,
    learning_rate=1.5e-2,
    in_peft=_in_peft,
    bank_site=PromptBankSite,
    bank_around=_bank_around,
)
