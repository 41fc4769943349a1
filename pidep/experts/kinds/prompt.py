"""Prompt-tuning (Lester et al., 2021): virtual tokens before the input embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pidep.errors import ExpertError
from pidep.experts.site import ExpertSite, Kind

__all__ = ["KIND", "PromptSite"]


class PromptSite(ExpertSite):
    """A mixture of prompts at the input embeddings; the tokens it adds are cut from the output again."""

    def attach(self, model: nn.Module, name: str) -> Callable[[], None]:
        """Hook the module that takes `input_ids` (of an encoder-decoder, its encoder)."""
        embed = model.get_submodule(name)
        reader = model.get_encoder() if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else model  # type: ignore[operator]

        def before(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if arguments:
                raise ExpertError("prompt experts: call the backbone with keyword arguments")
            inputs = embed(options.pop("input_ids")) if options.get("inputs_embeds") is None else options["inputs_embeds"]
            prompt = self.tensors()["prompt"].expand(len(inputs), -1, -1)
            mask = options.get("attention_mask")
            if mask is not None:
                options["attention_mask"] = torch.cat([mask.new_ones(len(mask), prompt.shape[1]), mask], 1)
            return (), {**options, "inputs_embeds": torch.cat([prompt, inputs], 1)}

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            output["last_hidden_state"] = output["last_hidden_state"][:, self.experts["prompt"].shape[1] :]
            return output

        hooks = [reader.register_forward_pre_hook(before, with_kwargs=True)]
        if reader is model:
            hooks.append(reader.register_forward_hook(after))

        def detach() -> None:
            for hook in hooks:
                hook.remove()

        return detach


def _candidates(model: nn.Module) -> list[str]:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return [name for name, module in model.named_modules() if module is embeddings and isinstance(module, nn.Embedding)]


def _shapes(model: nn.Module, site: str, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"prompt": (tokens, cast(nn.Embedding, model.get_submodule(site)).embedding_dim)}


def _start(_: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


KIND = Kind("prompt", PromptSite, _candidates, _shapes, _start, size_of=lambda tensors: len(tensors["prompt"]), learning_rate=3e-2)
