"""MiniLM in PyTorch: eager, compiled, and with PEFT's adapters of each row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines.batch import EXPERTS, RANK, Batch, Engine, labels

__all__ = ["compiled", "eager", "peft"]


def _model(folder: Path) -> Any:
    from transformers import AutoModel

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModel.from_pretrained(
        folder / "hf", local_files_only=True, trust_remote_code=False
    ).eval()
    return model.requires_grad_(requires_grad=False)


def _logits(hidden: Any, mask: Any, choices: Any) -> Any:
    """Mean over the tokens, unit length, cosines with the labels: what the merged graph does."""
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1) @ choices.T


def eager(folder: Path) -> Engine:
    """The expert folded into the weights; no graph."""
    return _engine(_model(folder), folder)


def compiled(folder: Path) -> Engine:
    """`torch.compile` of the same model, a graph for each size."""
    return _engine(torch.compile(_model(folder), dynamic=False), folder)


def _engine(model: Any, folder: Path) -> Engine:
    choices = torch.from_numpy(labels(folder))

    def engine(batch: Batch) -> Any:
        ids, mask = (torch.from_numpy(one) for one in batch)

        def call() -> Any:
            with torch.inference_mode():
                hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
                return _logits(hidden, mask, choices)

        return call

    return engine


def peft(folder: Path) -> Engine:
    """PEFT with a LoRA on every Linear, an adapter of its own in each row (`adapter_names`)."""
    from peft import LoraConfig, get_peft_model

    model, choices = _model(folder), torch.from_numpy(labels(folder))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("encoder.")
    ]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear)
    names = [f"expert-{number}" for number in range(EXPERTS)]
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    wrapped.eval()

    def engine(batch: Batch) -> Any:
        ids, mask = (torch.from_numpy(one) for one in batch)
        rows = [names[at % EXPERTS] for at in range(len(ids))]

        def call() -> Any:
            with torch.inference_mode():
                out = wrapped(input_ids=ids, attention_mask=mask, adapter_names=rows)
                return _logits(out.last_hidden_state, mask, choices)

        return call

    return engine
