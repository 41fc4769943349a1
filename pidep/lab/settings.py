"""The settings of `pidep compare` and `pidep report`. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pidep.backbones.settings import Device
from pidep.experts.kind_names import kind_names
from pidep.experts.kind_setting import KindName
from pidep.settings import Settings, Shown, ends_in
from pidep.tuning.settings import MAX_RATE, MAX_SEED

__all__ = [
    "METHODS",
    "ONLY_FOR",
    "CompareSettings",
    "GridSettings",
    "Method",
    "ReportSettings",
]

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
ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "uniform_outputs": ("adapter", "prefix"),
    "peft_linear": ("lora",),
    "peft_svd": ("lora",),
    "peft_cat": ("lora",),
    "lorahub": ("lora",),
}
"""Methods that exist for some kinds of expert only. Cells of other kinds lack them."""

DATA = Shown("Data")
EXPERT = Shown("Expert")
TRAINING = Shown("Training")
NEIGHBOURS = Shown("Neighbours")
BASELINES = Shown("Baselines")
CELLS = Shown("Cells")
FIGURES = Shown("Figures")
OUTPUT = Shown("Output")


class CompareSettings(Settings):
    """One grid: tasks × shots × seeds × kinds of expert, and the methods measured in every cell."""

    tasks: Annotated[tuple[str, ...], Shown("Data", argument=True)] = Field(min_length=2)
    """Task files or packaged tasks, at least two. Each is the target once; the others help it."""
    targets: Annotated[tuple[str, ...], Shown("Data", aliases=("--target",))] = ()
    """Tasks among these that are targets. Without it, all of them. The others only help."""
    shots: Annotated[tuple[int, ...], DATA] = ()
    """Columns of the grid: this many training rows of each label."""
    full: Annotated[bool, DATA] = False
    """One more column: all training rows."""
    seeds: Annotated[tuple[int, ...], DATA] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of the shots, the held-out rows and the batches."""
    full_seeds: Annotated[tuple[int, ...] | None, DATA] = None
    """Seeds of the column of all rows. Without it, the same seeds."""
    methods: Annotated[tuple[Method, ...], DATA] = Field(default=METHODS, min_length=1)
    """Methods measured in every cell."""
    train_limit: Annotated[int | None, DATA] = Field(default=None, ge=1)
    """All rows means at most this many training rows."""
    test_limit: Annotated[int | None, DATA] = Field(default=None, ge=1)
    """Use at most this many test rows."""
    validation_rows: Annotated[int, DATA] = Field(default=200, ge=1)
    """Held-out rows of the column of all rows, at most, and never more than a tenth."""
    max_length: Annotated[int | None, DATA] = Field(default=None, ge=4)
    """Texts are cut at this many tokens. Without it, at the task's own limit."""

    backbone: Annotated[str, EXPERT] = "minilm"
    """Frozen model: minilm, pidep-mini (texts and images), a folder, or a hub id of a text
    encoder."""
    device: Annotated[Device, EXPERT] = "auto"
    """Where the backbone runs: auto (an NVIDIA GPU where torch can use one), cpu, cuda, cuda:1."""
    kinds: Annotated[
        tuple[KindName, ...], Shown("Expert", aliases=("--kind",), choices=kind_names)
    ] = Field(default=("lora",), min_length=1)
    """Kinds of expert."""
    sites: Annotated[tuple[str, ...], EXPERT] = ("*",)
    """Shell patterns of the sites where experts act (`pidep sites` lists them)."""
    rank: Annotated[int, Shown("Expert", aliases=("--size",))] = Field(default=8, ge=1, le=256)
    """LoRA rank, adapter width, or number of virtual tokens."""
    lora_alpha: Annotated[float, EXPERT] = Field(default=16.0, gt=0)
    """LoRA alpha. The update is scaled by alpha / rank."""

    steps: Annotated[int, TRAINING] = Field(default=40, ge=1)
    """Training steps at few shots."""
    epochs: Annotated[int, TRAINING] = Field(default=5, ge=0)
    """At few shots, train for at least this many passes over the rows."""
    batch_size: Annotated[int, TRAINING] = Field(default=16, ge=1)
    """Rows in each training step at few shots."""
    learning_rate_factor: Annotated[float | None, TRAINING] = Field(default=None, gt=0, le=MAX_RATE)
    """Peak learning rate at few shots, as a multiple of the kind's default. Without it, 0.5 below
    128 rows and 1 from there."""
    full_steps: Annotated[int, TRAINING] = Field(default=200, ge=1)
    """Training steps on all rows, at most."""
    full_batch_size: Annotated[int, TRAINING] = Field(default=32, ge=1)
    """Rows in each training step on all rows."""
    full_learning_rate_factor: Annotated[float, TRAINING] = Field(default=1.0, gt=0, le=MAX_RATE)
    """Peak learning rate on all rows, as a multiple of the kind's default."""
    eval_every: Annotated[int, TRAINING] = Field(default=40, ge=1)
    """Steps between two validations."""
    patience: Annotated[int, TRAINING] = Field(default=3, ge=1)
    """Training stops after this many validations without improvement."""
    warmup: Annotated[float, TRAINING] = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, TRAINING] = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""

    pool: Annotated[Path | None, NEIGHBOURS] = None
    """Folder of further experts that can be neighbours."""
    top_k: Annotated[int, NEIGHBOURS] = Field(default=3, ge=1)
    """Number of neighbours to interpolate with."""
    fisher_samples: Annotated[int, NEIGHBOURS] = Field(default=64, ge=1)
    """Training rows that a task embedding is computed from, at most."""

    finetune_learning_rate: Annotated[float, BASELINES] = Field(default=5e-5, gt=0, le=MAX_RATE)
    """Peak learning rate of full fine-tuning."""
    finetune_steps: Annotated[int | None, BASELINES] = Field(default=None, ge=1)
    """Steps of full fine-tuning, where they are fewer than the experts' own."""
    lorahub_budget: Annotated[int, BASELINES] = Field(default=40, ge=1)
    """Mixtures that LoraHub's search tries."""
    lorahub_rows: Annotated[int, BASELINES] = Field(default=64, ge=1)
    """Training rows that LoraHub's search is scored on, at most."""
    interpolation: Annotated[dict[str, Any], Shown("Interpolation", flag=False)] = Field(
        default_factory=dict
    )
    """Settings of π's interpolation that differ from the defaults. Only in YAML and Python."""

    @field_validator("shots")
    @classmethod
    def _positive(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 1 for count in shots):
            raise ValueError("expected numbers of at least 1")
        return shots

    @field_validator("seeds", "full_seeds")
    @classmethod
    def _are_seeds(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if any(not 0 <= seed <= MAX_SEED for seed in seeds or ()):
            raise ValueError(f"expected numbers from 0 to {MAX_SEED}")
        return seeds

    @field_validator("tasks", "targets", "kinds", "shots", "seeds", "full_seeds", "methods")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        twice = [value for value in dict.fromkeys(values or ()) if (values or ()).count(value) > 1]
        if twice:
            raise ValueError(f"expected each value once, {twice[0]!r} is there twice")
        return values

    @model_validator(mode="after")
    def _some_column(self) -> CompareSettings:
        if not self.shots and not self.full:
            raise ValueError("no column to measure; give `shots`, `full`, or both")
        return self


class GridSettings(Settings):
    """Which cells of a grid are measured, and where they are kept."""

    prepare: Annotated[bool, CELLS] = False
    """Train the helpers and stop."""
    part: Annotated[str | None, CELLS] = None
    """Measure one of N shares of the cells, as I/N, such as 0/2. Run with `prepare` before."""
    redo: Annotated[tuple[Method, ...], CELLS] = ()
    """Methods that are measured again in every cell."""
    overwrite: Annotated[bool, CELLS] = False
    """Measure cells of other settings again, instead of refusing them."""
    out: Annotated[Path, OUTPUT] = Path("compare")
    """Run folder. Cells that are finished in it are not measured again."""

    @field_validator("part")
    @classmethod
    def _share(cls, part: str | None) -> str | None:
        if part is not None:
            found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
            if found is None or int(found[1]) >= int(found[2]):
                raise ValueError("expected I/N with I from 0 to N - 1, such as 0/2")
        return part


class ReportSettings(Settings):
    """A run, and what its page shows."""

    run: Annotated[Path, Shown("Data", argument=True)]
    """Run folder of pidep tune."""
    pool: Annotated[Path | None, Shown("Data")] = None
    """Folder of the helpers' experts. Without it, the run's own pool."""
    evaluate: Annotated[bool, FIGURES] = True
    """Predict the test rows again, for the confusion matrix. Loads the backbone."""
    paths: Annotated[bool, Shown("Figures", aliases=("--path",))] = False
    """Also measure the loss along the lines from the own expert to the others."""
    out: Annotated[Path | None, OUTPUT] = None
    """Page to write. Without it, report.html in the run folder."""

    @field_validator("out")
    @classmethod
    def _is_html(cls, path: Path | None) -> Path | None:
        return ends_in(path, ".html", ".htm")

    @model_validator(mode="after")
    def _paths_need_rows(self) -> ReportSettings:
        if self.paths and not self.evaluate:
            raise ValueError("`paths` measures on rows, and `evaluate` is off; turn it on")
        return self
