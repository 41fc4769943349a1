"""Everything `pidep tune` can be told, checked on construction."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pidep.errors import UsageError, did_you_mean

__all__ = ["TuneConfig", "read_config"]


class TuneConfig(BaseModel):
    """One tuning run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(description="A task YAML, or a packaged task such as sentiment/movie.")
    name: str | None = Field(None, description="Name of the expert; the task's name when absent.")
    backbone: str = Field(
        "minilm", description="'minilm', 'pidep-mini' (texts and images), a folder, or a hub id of a text encoder or encoder-decoder."
    )
    pool: Path | None = Field(None, description="Folder of experts to pick neighbours from.")
    helpers: list[str] = Field(default_factory=list, description="Tasks whose experts are trained into the pool first when missing.")
    kind: Literal["lora", "adapter", "prefix", "prompt", "bitfit"] = Field("lora", description="Kind of expert.")
    sites: list[str] = Field(
        default_factory=lambda: ["*"],
        description="Shell patterns over the places of pidep sites; 'pfeiffer' for adapters.",
    )
    rank: int = Field(8, ge=1, le=256, description="LoRA rank, adapter width, or number of virtual tokens.")
    lora_alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank.")
    rank_stabilized: bool = Field(False, description="rsLoRA: scale by alpha / sqrt(rank).")
    steps: int = Field(150, ge=1, description="Training steps of the task's own expert, at most.")
    batch_size: int = Field(16, ge=1, description="Texts a step.")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate of the own expert; the kind's own when absent.")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps spent warming up.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay.")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="Part of the training data held back for early stopping.")
    eval_every: int = Field(25, ge=1, description="Steps between validations (and checkpoints).")
    patience: int = Field(4, ge=1, description="Validations without improvement before stopping.")
    train_limit: int | None = Field(None, ge=1, description="Use at most this many training rows.")
    test_limit: int | None = Field(None, ge=1, description="Use at most this many test rows.")
    shots: int | None = Field(None, ge=1, description="Few-shot run: this many training rows of each label.")
    seed: int = Field(0, ge=0, description="Seed of the shots, the held-back part and the batches.")
    max_length: int | None = Field(None, ge=4, description="Tokens a text is cut to; the task's own when absent.")
    max_answer_length: int = Field(32, ge=1, description="Tokens of a free answer, where the task has targets; longer ones are cut.")
    top_k: int = Field(3, ge=0, description="How many of the most similar tasks' experts to interpolate with; 0 for none.")
    predict_by: Literal["fisher", "trial"] = Field(
        "fisher",
        description="Who the nearest are: fisher compares task embeddings; trial tries each expert on the training rows and takes those "
        "that beat the bare backbone.",
    )
    policy: Literal["auto", "frozen", "anchored", "free", "uniform", "zero-shot"] = Field(
        "auto",
        description="How to interpolate: auto decides by held-out rows; else α is learned and experts are frozen, anchored "
        "(expert_learning_rate) or free (learning_rate); uniform learns nothing; zero-shot reads no label of the task.",
    )
    temperature: float = Field(0.1, gt=0, description="Under zero-shot, α is the softmax of similarity / temperature.")
    folds: int = Field(3, ge=2, description="Folds of the cross-validation inside the shots, under auto.")
    alpha_per: Literal["site", "layer", "global"] = Field("site", description="One softmax a site, a layer, or for the whole backbone.")
    alpha_start: Literal["uniform", "similarity"] = Field("uniform", description="Where α starts.")
    mixture_steps: int = Field(40, ge=0, description="Training steps of the mixture.")
    alpha_learning_rate: float = Field(2e-2, ge=0, description="Learning rate of α.")
    expert_learning_rate: float = Field(1e-4, ge=0, description="Learning rate of anchored experts.")
    fisher: Literal["empirical", "true", "batch_squared"] = Field(
        "empirical",
        description="Fisher of the task embedding: of the data's labels, of labels drawn from the model, or as the authors' code has it.",
    )
    fisher_samples: int = Field(256, ge=1, description="Training rows the task embedding is computed from.")
    add_to_pool: bool | None = Field(None, description="Put the own expert into the pool; by default unless it is a few-shot run.")


def read_config(path: Path | None, overrides: dict[str, Any]) -> TuneConfig:
    """A YAML file with flags on top.

    Raises:
        UsageError: unreadable file, unknown key (with a did-you-mean) or a value out of range.
    """
    values: dict[str, Any] = {}
    where = "tune"
    if path is not None:
        where = str(path)
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
        if not isinstance(loaded, dict):
            raise UsageError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
        values.update(loaded)
    values.update(overrides)
    for key in values:
        if key not in TuneConfig.model_fields:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(str(key), TuneConfig.model_fields)}")
    try:
        return TuneConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise UsageError(f"{where}: {key}: {first['msg']}, found {found}") from error
