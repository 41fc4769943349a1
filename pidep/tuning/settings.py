"""The settings of `pidep tune`, `predict`, `generate`, `import` and `fold`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pidep.backbones.settings import Device
from pidep.experts.kind_names import kind_names
from pidep.experts.kind_setting import KindName
from pidep.settings import Settings, Shown

__all__ = [
    "CheckSettings",
    "FoldSettings",
    "GenerateSettings",
    "ImportSettings",
    "PredictSettings",
    "RunSettings",
    "TuneSettings",
]

DATA = Shown("Data")
EXPERT = Shown("Expert")
TRAINING = Shown("Training")
NEIGHBOURS = Shown("Neighbours")
INTERPOLATION = Shown("Interpolation")
GENERATION = Shown("Generation")
OUTPUT = Shown("Output")

MAX_SEED = 2**32 - 1
"""The largest seed that torch, numpy and Python all take, also times a number of epochs."""
MAX_RATE = 1000
"""Above any useful learning rate, and far below what fp32 can hold."""


class TuneSettings(Settings):
    """One run of `pidep tune`."""

    task: Annotated[str, Shown("Data", argument=True)]
    """Task file (YAML), or the name of a packaged task such as sentiment/movie."""
    shots: Annotated[int | None, DATA] = Field(default=None, ge=1)
    """Few-shot run: use this many training rows of each label. Without it, all rows."""
    train_limit: Annotated[int | None, DATA] = Field(default=None, ge=1)
    """Use at most this many training rows."""
    test_limit: Annotated[int | None, DATA] = Field(default=None, ge=1)
    """Use at most this many test rows."""
    validation_fraction: Annotated[float, DATA] = Field(default=0.1, gt=0, lt=1)
    """Share of the training rows held out for early stopping. A few-shot run holds out none."""
    max_length: Annotated[int | None, DATA] = Field(default=None, ge=4)
    """Texts are cut at this many tokens. Without it, at the task's own limit."""
    max_answer_length: Annotated[int, DATA] = Field(default=32, ge=1)
    """Free answers are cut at this many tokens. Used only for tasks with a `target`."""
    seed: Annotated[int, DATA] = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the shots, the held-out rows and the batches."""

    unlabelled: Annotated[Path | None, DATA] = None
    """Rows of the task as it is used, without labels: a file as in `pidep predict`. How common each
    label is there is estimated, and the answers are decided for it."""
    class_prior: Annotated[tuple[str, ...], DATA] = ()
    """How common a label is where the expert is used, as label=share, such as positive=0.72.
    Labels that are not named share the rest."""

    name: Annotated[str | None, EXPERT] = None
    """Name of the expert. Without it, the task's name."""
    backbone: Annotated[str, EXPERT] = "minilm"
    """Frozen model: minilm, pidep-mini (texts and images), a folder, or a hub id of a text encoder
    or an encoder-decoder."""
    device: Annotated[Device, EXPERT] = "auto"
    """Where the backbone runs: auto (an NVIDIA GPU where torch can use one), cpu, cuda, cuda:1."""
    kind: Annotated[KindName, Shown("Expert", choices=kind_names)] = "lora"
    """Kind of expert."""
    sites: Annotated[tuple[str, ...], EXPERT] = ("*",)
    """Shell patterns of the sites where the expert acts (`pidep sites` lists them); or pfeiffer,
    for adapters."""
    rank: Annotated[int, EXPERT] = Field(default=8, ge=1, le=256)
    """LoRA rank, adapter width, or number of virtual tokens."""
    lora_alpha: Annotated[float, EXPERT] = Field(default=16.0, gt=0)
    """LoRA alpha. The update is scaled by alpha / rank."""
    rank_stabilized: Annotated[bool, Shown("Expert", aliases=("--rslora/--no-rslora",))] = False
    """Scale a LoRA by alpha / sqrt(rank) instead (rsLoRA)."""

    steps: Annotated[int, TRAINING] = Field(default=150, ge=1)
    """Training steps of the task's own expert, at most."""
    batch_size: Annotated[int, TRAINING] = Field(default=16, ge=1)
    """Rows in each training step."""
    learning_rate: Annotated[float | None, TRAINING] = Field(default=None, gt=0, le=MAX_RATE)
    """Peak learning rate of the own expert. Without it, the default of the expert's kind."""
    warmup: Annotated[float, TRAINING] = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, TRAINING] = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    eval_every: Annotated[int, TRAINING] = Field(default=25, ge=1)
    """Steps between two validations. Each writes a checkpoint."""
    patience: Annotated[int, TRAINING] = Field(default=4, ge=1)
    """Training stops after this many validations without improvement."""

    pool: Annotated[Path | None, NEIGHBOURS] = None
    """Folder of experts. Neighbours are picked from it."""
    helpers: Annotated[tuple[str, ...], Shown("Neighbours", aliases=("--helper",))] = ()
    """Tasks whose experts are trained into the pool first, where they are missing."""
    top_k: Annotated[int, NEIGHBOURS] = Field(default=3, ge=0)
    """Number of neighbours to interpolate with. 0 for none."""
    neighbours_by: Annotated[
        Literal["auto", "trial", "h-score", "fisher", "ranker"],
        Shown("Neighbours", aliases=("--predict-by",)),
    ] = "auto"
    """How neighbours are chosen: trial, the default, takes the experts that answer the training
    rows best; h-score takes those whose embeddings of these rows tell the labels apart best, which
    was best in a pool of tasks with the same labels; fisher compares task embeddings, as the paper
    does; ranker predicts the gain from what `pidep graph --learn` measured in the pool, and leaves
    out losses."""
    fisher: Annotated[Literal["empirical", "true", "batch_squared"], NEIGHBOURS] = "empirical"
    """Fisher information of the task embedding: empirical uses the labels of the data, true draws
    labels from the model, batch_squared squares batch gradients as the authors' code does."""
    fisher_samples: Annotated[int, NEIGHBOURS] = Field(default=256, ge=1)
    """Training rows that the task embedding is computed from, at most."""
    add_to_pool: Annotated[bool | None, NEIGHBOURS] = None
    """Put the own expert into the pool. Without it, a few-shot run does not and other runs do."""

    policy: Annotated[
        Literal["auto", "frozen", "anchored", "free", "uniform", "zero-shot"], INTERPOLATION
    ] = "auto"
    """How experts are interpolated. auto chooses by the loss on held-out rows. The others are
    fixed: frozen trains α; anchored trains α, and the experts at `expert_learning_rate`; free
    trains α, and the experts at `learning_rate`; uniform trains nothing; zero-shot reads no label
    of the task."""
    folds: Annotated[int, INTERPOLATION] = Field(default=3, ge=2)
    """Cross-validation folds within the shots, for `policy=auto`."""
    alpha_per: Annotated[Literal["site", "layer", "global"], INTERPOLATION] = "site"
    """Whether each site, each layer or the whole backbone has its own α."""
    alpha_start: Annotated[Literal["uniform", "similarity"], INTERPOLATION] = "uniform"
    """Initial α: equal for all experts, or proportional to the Fisher similarity."""
    mixture_steps: Annotated[int, INTERPOLATION] = Field(default=40, ge=0)
    """Training steps of the mixture."""
    alpha_learning_rate: Annotated[float, INTERPOLATION] = Field(default=2e-2, ge=0, le=MAX_RATE)
    """Learning rate of α."""
    expert_learning_rate: Annotated[float, INTERPOLATION] = Field(default=1e-4, ge=0, le=MAX_RATE)
    """Learning rate of the experts, for `policy=anchored`."""
    temperature: Annotated[float, INTERPOLATION] = Field(default=0.1, ge=1e-6)
    """For `policy=zero-shot`: α is the softmax of similarity / temperature."""


class CheckSettings(Settings):
    """What `pidep check` reads."""

    task: Annotated[str, Shown("Data", argument=True)]
    """Task file (YAML), or the name of a packaged task."""
    backbone: Annotated[str | None, DATA] = None
    """Backbone whose tokenizer counts tokens. Without it, minilm where it is installed."""
    max_length: Annotated[int | None, DATA] = Field(default=None, ge=4)
    """Texts are cut at this many tokens. Without it, at the task's own limit."""


class RunSettings(Settings):
    """The run folder of `pidep tune`."""

    out: Annotated[Path | None, OUTPUT] = None
    """Run folder to write. Without it, runs/<task>."""
    resume: Annotated[bool, OUTPUT] = False
    """Continue from the run folder's checkpoint."""
    overwrite: Annotated[bool, OUTPUT] = False
    """Replace another run in the run folder, and the pool's expert of this name."""


class GenerateSettings(Settings):
    """How an encoder-decoder answers. What is absent comes from the expert."""

    mode: Annotated[Literal["greedy", "beam", "constrained"] | None, GENERATION] = None
    """Search. constrained answers with one of the candidates; it is the default where there are
    labels or candidates, and greedy elsewhere."""
    num_beams: Annotated[int | None, GENERATION] = Field(default=None, ge=1, le=1024)
    """Beams. Without it, 4 for beam, and one a candidate (16 at most) for constrained."""
    candidates: Annotated[
        tuple[str, ...], Shown("Generation", aliases=("--candidate",), commas=False)
    ] = ()
    """Text the answer may be, instead of the expert's labels. Repeat the option for each text."""
    max_length: Annotated[int | None, GENERATION] = Field(default=None, ge=4)
    """Texts are cut at this many tokens. Without it, at the expert's own limit."""
    max_answer_length: Annotated[int | None, GENERATION] = Field(default=None, ge=1)
    """Answers are cut at this many tokens. Without it, at the expert's own limit, or 32."""
    batch_size: Annotated[int, GENERATION] = Field(default=16, ge=1)
    """Rows answered at a time."""
    device: Annotated[Device, GENERATION] = "auto"
    """Where the backbone runs: auto, cpu, cuda or cuda:1."""


class PredictSettings(Settings):
    """An expert, a file of rows, and where the answers go."""

    run: Annotated[Path, Shown("Expert", argument=True)]
    """Run folder or expert folder."""
    file: Annotated[Path, Shown("Data", argument=True)]
    """Rows to answer: CSV, TSV, JSONL or Parquet, also compressed, a glob, or a folder (of images
    for a task of images). It has the columns of the expert's template."""
    encoding: Annotated[str | None, DATA] = None
    """Encoding of a text file. Without it, UTF-8, or what a byte order mark says."""
    delimiter: Annotated[str | None, DATA] = None
    """Delimiter of a CSV file. Without it, the one that fits the header."""
    quoting: Annotated[Literal["auto", "csv", "none"], DATA] = "auto"
    """Whether quotation marks enclose fields (csv) or are part of the texts (none)."""
    backbone: Annotated[str | None, EXPERT] = None
    """The expert's backbone. Without it, the name that the expert has for it."""
    device: Annotated[Device, EXPERT] = "auto"
    """Where the backbone runs: auto, cpu, cuda or cuda:1."""
    task: Annotated[str | None, EXPERT] = None
    """Task of an expert that has no template, because an older release made it."""
    batch_size: Annotated[int, EXPERT] = Field(default=256, ge=1)
    """Rows answered at a time."""
    out: Annotated[Path | None, OUTPUT] = None
    """File to write: .csv, .jsonl or .parquet. Without it, JSONL on standard output."""
    overwrite: Annotated[bool, OUTPUT] = False
    """Replace the file that is there."""


class ImportSettings(Settings):
    """An adapter of another program, and what an expert needs beside its tensors."""

    folder: Annotated[Path, Shown("Data", argument=True)]
    """Folder written by PEFT's save_pretrained (LoRA, prompt or prefix tuning), its hub id ORG/NAME
    or ORG/NAME@REVISION, or a file of Olive (.onnx_adapter, .safetensors, .npz)."""
    task: Annotated[str, DATA]
    """Task file or packaged task the adapter was trained for. Labels come from it."""
    name: Annotated[str | None, EXPERT] = None
    """Name of the expert. Without it, the task's name."""
    backbone: Annotated[str, EXPERT] = "minilm"
    """Backbone the adapter was trained on."""
    out: Annotated[Path, OUTPUT]
    """Expert folder to write."""
    overwrite: Annotated[bool, OUTPUT] = False
    """Replace another expert in that folder."""


class FoldSettings(Settings):
    """A LoRA, and how small it becomes."""

    run: Annotated[Path, Shown("Expert", argument=True)]
    """Run folder or expert folder of a LoRA."""
    rank: Annotated[int, EXPERT] = Field(ge=1, le=4096)
    """Rank of the LoRA to write."""
    max_error: Annotated[float, EXPERT] = Field(default=0.1, ge=0, le=1)
    """Refuse a larger relative error of any site's update."""
    out: Annotated[Path, OUTPUT]
    """Expert folder to write."""
    overwrite: Annotated[bool, OUTPUT] = False
    """Replace another expert in that folder."""
