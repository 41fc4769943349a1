"""Everything `pidep compare` can be told, checked on construction. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pidep.errors import UsageError, did_you_mean

__all__ = ["METHODS", "ONLY_FOR", "CompareConfig", "Method", "check_methods", "compare_config"]

Kind = Literal["lora", "adapter", "prefix", "prompt", "bitfit"]
Method = Literal[
    "backbone",
    "own",
    "own_tuned",
    "bitfit",
    "full",
    "uniform",
    "uniform_outputs",
    "joint",
    "peft_linear",
    "peft_svd",
    "peft_cat",
    "lorahub",
    "pi",
    "pi_trial",
]
METHODS: tuple[Method, ...] = get_args(Method)
"""In the order of the table."""
ONLY_FOR: Mapping[str, tuple[Kind, ...]] = {
    "uniform_outputs": ("adapter", "prefix"),
    "peft_linear": ("lora",),
    "peft_svd": ("lora",),
    "peft_cat": ("lora",),
    "lorahub": ("lora",),
}
"""Methods for some kinds of expert; the cells of other kinds go without."""


class CompareConfig(BaseModel):
    """One grid: tasks × shots × seeds × kinds, and the methods measured in every cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = Field(min_length=2, description="Task YAMLs or packaged tasks; each is the target once, the others help.")
    backbone: str = Field("minilm", description="'minilm', 'pidep-mini' (texts and images), a folder, or a hub id of a text encoder.")
    pool: Path | None = Field(None, description="Folder of further experts that may help.")
    kinds: tuple[Kind, ...] = Field(("lora",), min_length=1, description="Kinds of expert.")
    shots: tuple[int, ...] = Field((), description="Columns: this many training rows of each label.")
    full: bool = Field(False, description="One more column: all training rows.")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="Seeds of the shots, the held-back part and the batches.")
    full_seeds: tuple[int, ...] | None = Field(None, description="Seeds of the full-data column; the others' when absent.")
    methods: tuple[Method, ...] = Field(METHODS, min_length=1, description="What is measured in every cell.")

    sites: tuple[str, ...] = Field(("*",), description="Shell patterns over the places of pidep sites.")
    size: int = Field(8, ge=1, le=256, description="LoRA rank, adapter width, or number of virtual tokens.")
    lora_alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank.")
    max_length: int | None = Field(None, ge=4, description="Tokens a text is cut to; the task's own when absent.")
    train_limit: int | None = Field(None, ge=1, description="Use at most this many training rows as full data.")
    test_limit: int | None = Field(None, ge=1, description="Use at most this many test rows.")

    steps: int = Field(40, ge=1, description="Training steps at few shots.")
    epochs: int = Field(5, ge=0, description="At few shots, at least this many passes over the rows, if that makes more steps.")
    batch_size: int = Field(16, ge=1, description="Texts a step at few shots.")
    rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate at few shots, as a share of the kind's own; half below 128 rows, else all, when absent.",
    )
    full_steps: int = Field(200, ge=1, description="Training steps on full data, at most.")
    full_batch_size: int = Field(32, ge=1, description="Texts a step on full data.")
    full_rate: float = Field(1.0, gt=0, description="Peak learning rate on full data, as a share of the kind's own.")
    validation_rows: int = Field(200, ge=1, description="Full-data rows held back for early stopping, at most (and at most a tenth).")
    eval_every: int = Field(40, ge=1, description="Steps between validations.")
    patience: int = Field(3, ge=1, description="Validations without improvement before stopping.")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps spent warming up.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay.")

    top_k: int = Field(3, ge=1, description="How many of the most similar tasks' experts help.")
    fisher_samples: int = Field(64, ge=1, description="Training rows a task embedding is computed from.")
    finetune_rate: float = Field(5e-5, gt=0, description="Peak learning rate of full fine-tuning.")
    finetune_steps: int | None = Field(None, ge=1, description="Steps of full fine-tuning, if fewer than the experts'.")
    lorahub_budget: int = Field(40, ge=1, description="Mixtures that LoraHub's search looks at.")
    lorahub_rows: int = Field(64, ge=1, description="Training rows LoraHub's search is scored on, at most.")
    interpolation: dict[str, Any] = Field(default_factory=dict, description="Settings of π's interpolation that differ from its own.")

    @field_validator("shots")
    @classmethod
    def _positive(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 1 for count in shots):
            raise ValueError("expected numbers of at least 1")
        return shots

    @field_validator("tasks", "kinds", "shots", "seeds", "full_seeds", "methods")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        twice = [value for value in dict.fromkeys(values or ()) if values is not None and values.count(value) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice")
        return values


def check_methods(names: Sequence[str]) -> list[Method]:
    """The names, if each is a method.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if name not in METHODS:
            raise UsageError(f"compare: method {name!r}: expected one of {', '.join(METHODS)}{did_you_mean(str(name), METHODS)}")
    return [cast(Method, name) for name in names]


def compare_config(values: dict[str, Any]) -> CompareConfig:
    """Settings from the command line or a script.

    Raises:
        UsageError: an unknown key or method (with a did-you-mean), a value out of range, or no column at all.
    """
    for key in values:
        if key not in CompareConfig.model_fields:
            raise UsageError(f"compare: unknown key {key!r}{did_you_mean(str(key), CompareConfig.model_fields)}")
    check_methods(values.get("methods", ()))
    try:
        config = CompareConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise UsageError(f"compare: {key}: {first['msg']}, found {found}") from error
    if not config.shots and not config.full:
        raise UsageError("compare: nothing to compare: give --shots N (as often as you like), --full, or both")
    return config
