"""The functions of the public API: `pidep.tune`, `interpolate`, `predict`, `compare`, `export`, …

Each checks its settings, calls one function of the library, and gives back a typed result.
Progress goes to a callback, messages to `logging`. Nothing is printed, and nothing exits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pidep.api_arguments import (
    as_list,
    backbone_name,
    check_task,
    loaded_backbone,
    row_of,
    task_in_memory,
    task_name,
)
from pidep.deployment.settings import ExportSettings, ServeSettings, SwapSettings
from pidep.errors import UsageError
from pidep.lab.settings import CompareSettings, GridSettings
from pidep.settings import Settings, checked, parameters_of
from pidep.tuning.settings import TuneSettings

if TYPE_CHECKING:
    from pidep.adapters.mixture import Mixture
    from pidep.backbones.backbone import Backbone
    from pidep.backbones.pooling import Pooling
    from pidep.experts.folder import Expert
    from pidep.experts.mixed import MixedExpert, Served
    from pidep.export.entries import Exported
    from pidep.inputs.row import Input
    from pidep.interpolation.guard import Decision
    from pidep.lab.compare import CompareResult, OnCell
    from pidep.serving.server import TritonServer
    from pidep.serving.swap import Swapped
    from pidep.tasks.task import Task
    from pidep.training.loop import OnStep
    from pidep.tuning.predict import Prediction
    from pidep.tuning.run_folder import TuneResult

__all__ = [
    "InterpolateResult",
    "compare",
    "export",
    "interpolate",
    "load_backbone",
    "predict",
    "serve",
    "swap",
    "tune",
]

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class InterpolateResult:
    """A mixture that was learned on a task's rows."""

    expert: Expert
    """The mixture folded into one expert."""
    by_reference: MixedExpert | None
    """The mixture by reference to its parts, which a bank serves; None where the folded expert is
    no larger than they are.
    """
    mixture: Mixture
    """The experts and their α."""
    experts: tuple[str, ...]
    """Names of the experts, in the order of α."""
    decision: Decision
    """What was chosen, and why."""


Exportable: TypeAlias = "str | Path | Expert | MixedExpert | TuneResult | InterpolateResult"
"""One expert: a run folder, an expert folder, an expert, a mixture of experts, or a result."""

_NOT_INTERPOLATED = {
    **dict.fromkeys(("kind", "sites", "rank"), "the helpers decide it"),
    **dict.fromkeys(
        ("pool", "helpers", "top_k", "neighbours_by", "add_to_pool"), "the helpers are given"
    ),
    "test_limit": "no test rows are read",
    "temperature": "only `policy=zero-shot` reads it, and that policy needs a pool",
}
"""Settings of `tune` that mean nothing to `interpolate`, with the reason. It takes all others."""


def _settings_of(
    model: type[Settings], *, without: Iterable[str] = ()
) -> Callable[[Function], Function]:
    """Show a model's settings in the signature of a function that takes them as `**settings`."""

    def decorate(function: Function) -> Function:
        own = [
            one
            for one in signature(function).parameters.values()
            if one.kind is not Parameter.VAR_KEYWORD
        ]
        more = parameters_of(model, without=[*without, *(one.name for one in own)])
        function.__signature__ = Signature(  # type: ignore[attr-defined]
            [
                *own,
                *(one for one in more if one.default is not Parameter.empty),
            ]
        )
        return function

    return decorate


def load_backbone(
    source: Any = "minilm",
    *,
    tokenizer: Any = None,
    name: str | None = None,
    pooling: Pooling = "mean",
    device: str = "auto",
) -> Backbone:
    """A frozen backbone.

    Args:
        source: `minilm`, `pidep-mini`, a folder or a hub id; or a text encoder of `transformers`
            that is loaded already, together with `tokenizer`.
        tokenizer: the fast tokenizer of a loaded model.
        name: what experts call the backbone of a loaded model. To use these experts in another
            process, give a folder or a hub id from which the same weights can be loaded again.
        pooling: how the tokens of a loaded model become one vector: `mean`, `cls`, `max`,
            `lasttoken` or `weightedmean`.
        device: where it runs: `auto` (an NVIDIA GPU where torch can use one), `cpu`, `cuda` or
            `cuda:1`. A loaded model stays where it is.

    Raises:
        BackboneError: nothing loadable is there, or it is no model that pidep can use.
        UsageError: torch has no such device.
    """
    from pidep.backbones.encoder import encoder_of
    from pidep.backbones.load import load_any_backbone, remember_backbone

    if tokenizer is None:
        if not isinstance(source, str | Path):
            raise UsageError(
                f"load_backbone: expected a name or a folder, found {type(source).__name__}; "
                "give a loaded model together with its tokenizer"
            )
        return load_any_backbone(str(source), device=device)
    backbone = encoder_of(source, tokenizer, name=name, pooling=pooling)
    remember_backbone(backbone)
    return backbone


@_settings_of(TuneSettings)
def tune(
    task: str | Path | Task,
    *,
    backbone: str | Backbone = "minilm",
    pool: str | Path | None = None,
    shots: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnStep | None = None,
    **settings: Any,
) -> TuneResult:
    """Train an expert for a task and interpolate it with its neighbours; writes a run folder.

    Args:
        task: a task file, the name of a packaged task, or a `Task`, whose rows are kept in the run
            folder where they are in memory.
        backbone: a name, or a backbone of `load_backbone`.
        pool: folder of experts from which neighbours are picked.
        shots: few-shot run with this many training rows of each label.
        out: run folder; `runs/<task>` by default.
        resume: continue from the run folder's checkpoint.
        overwrite: replace another run in the run folder, and the pool's expert of this name.
        on_progress: called as `on_progress(phase, step, total, loss)` after every training step.
        settings: the other settings of `pidep tune`.

    Raises:
        UsageError: a setting is unknown or out of range, or the run would replace another.
        TaskError, BackboneError, ExpertError: the request does not fit together.
    """
    from pidep.tuning.tune import tune as run

    check_task(task, "tune")
    given = {"backbone": backbone_name(backbone), "pool": pool, "shots": shots, **settings}
    config = checked(TuneSettings, {"task": task_name(task), **given}, where="tune")
    in_memory = task_in_memory(task)
    # A packaged task such as sentiment/movie, or a file, gives its last part.
    name = Path(config.task).stem if in_memory is None else in_memory.name
    return run(
        config,
        Path("runs") / name if out is None else Path(out),
        task=in_memory,
        resume=resume,
        overwrite=overwrite,
        backbone=loaded_backbone(backbone),
        on_step=on_progress,
    )


@_settings_of(TuneSettings, without=_NOT_INTERPOLATED)
def interpolate(
    task: str | Path | Task,
    helpers: Exportable | Sequence[Exportable],
    *,
    own: Exportable | None = None,
    backbone: str | Backbone | None = None,
    shots: int | None = None,
    on_progress: OnStep | None = None,
    **settings: Any,
) -> InterpolateResult:
    """Interpolate given experts on a task's rows. No neighbours are searched, no folder is written.

    Args:
        task: as for `tune`.
        helpers: experts, folders of experts or runs, or results; of one kind, sites, rank and
            backbone, and each of another name.
        own: the task's own expert. Without it, one is trained first.
        backbone: the experts' backbone; found by the name they have for it by default.
        shots: use this many training rows of each label.
        on_progress: as for `tune`.
        settings: the other settings of `pidep tune` for training and interpolation. `name` is the
            name of the own expert and of the result.

    Raises:
        UsageError: no helper, two experts of one name, or a setting is unknown or out of range.
        TaskError, BackboneError, ExpertError: the request does not fit together.
    """
    for name in settings:
        if name in _NOT_INTERPOLATED:
            raise UsageError(
                f"interpolate: `{name}` does not apply here: {_NOT_INTERPOLATED[name]}"
            )
    from pidep.tuning.interpolate_experts import Helper, interpolate_experts
    from pidep.tuning.predict import load_expert, task_embedding

    check_task(task, "interpolate")
    sources = [_run_or_expert(one, "interpolate") for one in as_list(helpers)]
    if not sources:
        raise UsageError("interpolate: expected at least one helper, found none")
    given = [Helper(load_expert(one), task_embedding(one)) for one in sources]
    # The experts decide these, so that nobody has to repeat them.
    first = given[0].expert
    fixed = {"kind": first.kind, "sites": tuple(first.sites), "rank": first.rank}
    chosen = backbone or first.backbone
    values = {"backbone": backbone_name(chosen), "shots": shots, **fixed, **settings}
    found = interpolate_experts(
        checked(TuneSettings, {"task": task_name(task), **values}, where="interpolate"),
        given,
        own=None if own is None else load_expert(_run_or_expert(own, "interpolate")),
        task=task_in_memory(task),
        backbone=loaded_backbone(chosen),
        on_step=on_progress,
    )
    return InterpolateResult(
        found.expert,
        found.by_reference,
        found.mixed.mixture,
        found.mixed.experts,
        found.mixed.decision,
    )


def predict(
    source: Exportable,
    rows: Input | Mapping[str, Any] | Sequence[Input | Mapping[str, Any]],
    *,
    backbone: str | Backbone | None = None,
) -> list[Prediction]:
    """The answers of an expert to rows, offline, one each.

    Args:
        source: a run folder, an expert folder, an expert, or a result of `tune` or `interpolate`.
        rows: texts, or dicts with the columns of the task, of which the expert's template makes a
            row. For an expert without a template, dicts have `text`, `image` and `candidates`. One
            row alone is a list of one.
        backbone: the expert's backbone; found by its recorded name by default.

    Raises:
        ExpertError: there is no expert, or it belongs to another backbone.
        BackboneError, ImageError: the backbone cannot be loaded, or cannot read a row.
    """
    from pidep.experts.mixed import head_of
    from pidep.tuning.predict import load_served
    from pidep.tuning.predict import predict as run

    served = load_served(_run_or_served(source, "predict"))
    expert = head_of(served)
    asked = [row_of(row, expert, f"row {at}") for at, row in enumerate(as_list(rows), 1)]
    return run(served, asked, backbone=backbone)


@_settings_of(CompareSettings)
def compare(
    tasks: Sequence[str | Path | Task],
    *,
    shots: int | Sequence[int] = (),
    full: bool = False,
    backbone: str | Backbone = "minilm",
    out: str | Path = "compare",
    on_progress: OnCell | None = None,
    **settings: Any,
) -> CompareResult:
    """Measure π-Tuning against its baselines on the same rows and seeds.

    Args:
        tasks: at least two, as for `tune`. Each is the target once; the others help it.
        shots: columns of the grid, each with this many training rows of each label.
        full: one more column, with all training rows.
        backbone: a name, or a backbone of `load_backbone`.
        out: run folder. Cells that are finished in it are not measured again.
        on_progress: called as `on_progress(cells_done, cells, what)`.
        settings: the other settings of `pidep compare`.

    Raises:
        UsageError: a setting is unknown or out of range, or there is no column.
        TaskError, BackboneError, ExpertError: the request does not fit together.
    """
    from pidep.backbones.load import load_backbone
    from pidep.files.atomic_write import check_place
    from pidep.lab.compare import compare as run
    from pidep.lab.compare_grid import Grid
    from pidep.tasks.task import load_task

    several = as_list(tasks)
    for task in several:
        check_task(task, "compare")
    values = {"backbone": backbone_name(backbone), "shots": as_list(shots), "full": full}
    names = [task_name(task) for task in several]
    config = checked(CompareSettings, {"tasks": names, **values, **settings}, where="compare")
    check_place(Path(out), "`out`")
    grid = Grid(
        config,
        loaded_backbone(backbone) or load_backbone(config.backbone, device=config.device),
        tasks=[task_in_memory(task) or load_task(str(task)) for task in several],
    )
    return run(grid, GridSettings(out=Path(out)), on_cell=on_progress)


@_settings_of(ExportSettings)
def export(
    runs: Exportable | Sequence[Exportable] | Mapping[str, Exportable],
    *,
    repo: str | Path = Path("model_repo"),
    form: Literal["bank", "merged"] = "bank",
    recipe: str = "onnx-cpu",
    task: str | Path | Task | None = None,
    **settings: Any,
) -> Exported:
    """Compile experts to ONNX, check them against PyTorch, publish them.

    Args:
        runs: run folders, expert folders, experts, or results of `tune` or `interpolate`. Several
            make one bank. A mapping publishes each under its key.
        repo: model repository to publish into.
        form: `bank`, whose experts can be swapped, or `merged`, one expert in the weights.
        recipe: recipe name or YAML file.
        task: as for `tune`. Its test rows check the export. Run folders and experts of a pool know
            their own.
        settings: the other settings of `pidep export`.

    Raises:
        UsageError: a setting is unknown or out of range, or a folder holds no run.
        ExpertError, BackboneError: an expert does not fit.
        ParityError: an expert is outside the recipe's tolerance; nothing was published.
    """
    from pidep.deployment.release import Named, release_runs

    in_memory = None if task is None else task_in_memory(task)
    name = None if task is None or in_memory is not None else str(task)
    values = {"repo": repo, "form": form, "recipe": recipe, "task": name, **settings}
    found = checked(ExportSettings, values, where="export")
    read = partial(_run_or_served if form == "bank" else _run_or_expert, where="export")
    sources: list[Named] = (
        [(name, read(run)) for name, run in runs.items()]
        if isinstance(runs, Mapping)
        else [read(run) for run in as_list(runs)]
    )
    return release_runs(sources, found, task=in_memory)


@_settings_of(ServeSettings)
def serve(repo: str | Path = "model_repo", **settings: Any) -> TritonServer:
    """Triton Server on a model repository, as a context manager.

        with pidep.serve("model_repo", grpc_port=8001) as server:
            client = pidep.Client(server.grpc_url)

    The server runs inside the block. Leaving the block stops it after its running requests.

    Raises:
        UsageError: a setting is unknown or out of range.
        ServingError: on entering, the server is missing, a port is taken, or it did not get ready.
    """
    from pidep.serving.admin_key import read_admin_key
    from pidep.serving.server import TritonServer

    found = checked(ServeSettings, settings, where="serve")
    return TritonServer(
        Path(repo),
        found.ports,
        limits=found.limits,
        resident_bytes=found.resident_bytes,
        admin_key=read_admin_key(found.admin_key_file),
        log_format=found.log_format,
        tracing=found.tracing,
    )


@_settings_of(SwapSettings)
def swap(name: str, expert: Exportable, **settings: Any) -> Swapped:
    """Replace an expert on a running server; returns when the server answers with its digest.

    Args:
        name: name under which the expert is served.
        expert: a run folder, an expert folder, an expert, or a result of `tune` or `interpolate`.
        settings: `repo`, `url`, `timeout` and `allow_new_labels`, as for `pidep swap`.

    Raises:
        ExpertError: the bank cannot hold the expert, or `name` would mean something else; nothing
            was published.
        ServingError: the server cannot be reached, or did not answer with the digest in time.
    """
    from pidep.serving.swap import swap_expert
    from pidep.tuning.predict import load_served

    found = checked(SwapSettings, settings, where="swap")
    loaded = load_served(_run_or_served(expert, "swap"))
    return swap_expert(
        name,
        loaded,
        found.repo,
        found.url,
        timeout_s=found.timeout,
        allow_new_labels=found.allow_new_labels,
    )


def _run_or_expert(source: Any, where: str) -> Path | Expert:
    from pidep.experts.folder import Expert
    from pidep.tuning.run_folder import TuneResult

    if isinstance(source, str | Path):
        return Path(source)
    if isinstance(source, TuneResult):
        return source.run
    if isinstance(source, InterpolateResult):
        return source.expert
    if isinstance(source, Expert):
        return source
    raise UsageError(
        f"{where}: expected a run folder, an expert folder, an expert, or a result of tune or "
        f"interpolate, found {type(source).__name__}"
    )


def _run_or_served(source: Any, where: str) -> Path | Served:
    """As `_run_or_expert`, with a mixture by reference where the source has one."""
    from pidep.experts.mixed import MixedExpert

    if isinstance(source, MixedExpert):
        return source
    if isinstance(source, InterpolateResult) and source.by_reference is not None:
        return source.by_reference
    return _run_or_expert(source, where)
