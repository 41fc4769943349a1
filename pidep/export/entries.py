"""Entries of a model repository: written whole, checked for parity, then renamed into place."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pidep.artifacts.bank import BankRecord, GroupRecord
from pidep.artifacts.engine import EngineRecord
from pidep.artifacts.gate import GateRecord
from pidep.artifacts.left_out import LeftOut
from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import BANK, CONFIG, ENGINE, GRAPH, NO_BYTECODE, SHIM, TOKENIZER, VERSION
from pidep.artifacts.parity import Parity
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import UsageError
from pidep.experts.bank import BankGroup
from pidep.experts.folder import Expert, check_name
from pidep.experts.mixed import Served
from pidep.export.bank_room import (
    checked_bank,
    groups_for,
    require_able,
    require_backbone,
    require_profile_room,
    text_room,
)
from pidep.export.compile import compile_bank, compile_merged
from pidep.export.config_pbtxt import bank_config, merged_config
from pidep.export.gate import gate_bank, gate_merged
from pidep.export.gate_report import write_gate_report
from pidep.export.gate_sample import Gated
from pidep.export.parity import BeyondTolerance, refusal_of
from pidep.export.recipe import Recipe, shipped
from pidep.export.source import Source
from pidep.export.towers import require_towers_able
from pidep.files.atomic_write import check_place, in_place, temporary_sibling
from pidep.runtime.engine import missing_for

__all__ = [
    "Exported",
    "Platform",
    "StagedEntry",
    "export_merged",
    "staged_bank",
    "staged_merged",
]

_LOG = logging.getLogger(__name__)

Platform = Literal["python", "onnxruntime", "tensorrt"]
"""Triton Server's backend for a merged model; the last two are in NVIDIA's container only."""


@dataclass(frozen=True)
class Exported:
    """An entry that passed the gate."""

    model: str
    """Its name in Triton Server."""
    folder: Path
    """`<repo>/<model>`."""
    parity: dict[str, Parity]
    """Expert name to the figures of the gate."""
    experts: dict[str, str]
    """Expert name to digest."""
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    """Expert that the gate of a bank refused, to the figures that it was refused for."""
    beside: tuple[Exported, ...] = ()
    """The merged models that serve these experts."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.model,
            "folder": str(self.folder),
            "parity": {name: value.to_json() for name, value in self.parity.items()},
            "experts": self.experts,
            "left_out": {name: one.model_dump() for name, one in self.left_out.items()},
            "beside": [one.to_json() for one in self.beside],
        }


@dataclass(frozen=True)
class StagedEntry:
    """A gated entry in a temporary folder beside its place."""

    exported: Exported
    temporary: Path
    behind: StagedEntry | None = None
    """The graph's model that a front asks. It is renamed into place before the front."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The entry in its place; an error inside the block puts the old entry back.

        Where a front was in this place, the model of its graph is removed afterwards: nobody asks
        it any more. A server that has loaded it goes on until it is stopped.
        """
        folder = self.exported.folder
        former = MergedRecord.graph_model_of(folder)
        with ExitStack() as stack:
            if self.behind is not None:
                stack.enter_context(self.behind.in_place())
            stack.enter_context(in_place(folder, self.temporary))
            yield
        if former is not None and former != MergedRecord.graph_model_of(folder):
            shutil.rmtree(folder.with_name(former), ignore_errors=True)


@contextmanager
def staged_merged(
    source: Source,
    repo: Path,
    recipe: Recipe,
    *,
    platform: Platform = "python",
    name: str | None = None,
    keep_rows: bool = False,
    has_front: bool = False,
) -> Iterator[StagedEntry]:
    """An expert folded into its backbone, exported, gated, and not yet published.

    Args:
        name: of the model; the expert's when absent.
        has_front: whether another model reads the texts; see `export.front`.
        keep_rows: whether the entry keeps rows of the gate, for `pidep verify`.

    Raises:
        UsageError: the name is taken by the bank.
        ExpertError: another backbone, or rows that bring their own candidates.
        ParityError: beyond the recipe's tolerance.
    """
    expert = source.expert
    model = check_name(name or expert.name)
    _require_mergeable(expert, model)
    _require_platform(platform, recipe)
    if platform != "python":
        _require_token_ids(platform, expert, keep_rows=keep_rows and not has_front)
    backbone = load_any_backbone(expert.backbone)
    require_backbone(backbone, expert)
    require_able(backbone, expert)
    require_towers_able(backbone, recipe, platform=platform)
    if platform != "python" and backbone.image_graph is not None:
        raise UsageError(
            f"`platform={platform}`: takes token ids only, and backbone {backbone.name!r} reads "
            "images, too; use `platform=python`"
        )
    check_place(repo, "`repo`")
    # Beside its place: the last step is a rename, which is atomic within one file system only.
    with temporary_sibling(repo / model) as temporary:
        version = _new_version(temporary, backbone, shim=platform == "python")
        record = _merged_record(backbone, source, version, recipe)
        runs = record.engine is not None and _runs_here(record.engine)
        gated = gate_merged(version, backbone, source, recipe, use_engine=runs)
        if record.engine is not None:
            gated = _noted(gated, engine_ran=runs)
        parity = gated.parity
        # The runtime needs a record to open the entry, so the figures are added afterwards.
        record.model_copy(update={"parity": parity}).write(version)
        config = merged_config(
            model,
            max_batch_size=recipe.max_batch_size,
            platform=platform,
            num_labels=len(expert.labels),
            images=record.reads_images,
            decodes=record.sequence is not None,
            entry_digest=record.entry_digest,
        )
        found = {expert.name: gated}
        _complete(temporary, config, found, recipe, record, keep_rows=keep_rows)
        exported = Exported(
            model, repo / model, {expert.name: parity}, {expert.name: expert.digest}
        )
        yield StagedEntry(exported, temporary)


@contextmanager
def staged_bank(
    sources: Sequence[Source],
    repo: Path,
    recipe: Recipe,
    *,
    max_rank: int | None = None,
    expert_store: str,
    published: Mapping[str, Served] = MappingProxyType({}),
    keep_rows: bool = False,
    leave_out: bool = False,
    left_out: Mapping[str, LeftOut] = MappingProxyType({}),
) -> Iterator[StagedEntry]:
    """One graph for all experts; each given expert passed the gate through it. Not yet published.

    Args:
        sources: experts of one backbone, with different names.
        max_rank: rank of the bank's rows; the largest expert's when absent.
        expert_store: the store's path, relative to the version folder.
        published: experts that the store serves now, by name; the new bank has room for them, too.
        keep_rows: as in `staged_merged`.
        leave_out: whether the bank may be without those experts that are beyond the recipe's
            tolerance. Their names are in `left_out` of the entry then.
        left_out: experts of earlier exports that a model of their own serves.

    Raises:
        UsageError: no expert, two of one name, or one of a larger rank than `max_rank`.
        ExpertError: an expert of another backbone, or of a kind that no bank holds.
        ParityError: an expert is beyond the recipe's tolerance; all of them, with `leave_out`.
    """
    check_place(repo, "`repo`")
    _require_platform("python", recipe)
    backbone, every = checked_bank(sources, published)
    require_profile_room(sources, recipe)
    # Room for the published experts too: the new bank serves them from its first batch on.
    groups = groups_for(backbone, every, max_rank)
    with temporary_sibling(repo / BANK) as temporary:
        version = _new_version(temporary, backbone, shim=True)
        record = _bank_record(backbone, groups, sources, version, recipe, store=expert_store)
        gated, refused = _gated_bank(
            version, backbone, sources, recipe, record.engine, leave_out=leave_out
        )
        digests = {source.expert.name: source.served.digest for source in sources}
        new = {
            name: _left_out(name, error, digests.pop(name), recipe)
            for name, error in refused.items()
        }
        parity = {name: one.parity for name, one in gated.items()}
        changes = {"parity": parity, "left_out": {**left_out, **new} or None}
        record = record.model_copy(update=changes)
        record.write(version)
        config = bank_config(
            BANK,
            max_batch_size=recipe.max_batch_size,
            hidden_size=backbone.hidden_size,
            images=record.reads_images,
            decodes=record.sequence is not None,
        )
        _complete(temporary, config, gated, recipe, record, keep_rows=keep_rows)
        yield StagedEntry(Exported(BANK, repo / BANK, parity, digests, new), temporary)


def _bank_record(
    backbone: Backbone,
    groups: Sequence[BankGroup],
    sources: Sequence[Source],
    version: Path,
    recipe: Recipe,
    *,
    store: str,
) -> BankRecord:
    """Compile a bank and write its record, without the gate's figures."""
    record = BankRecord(
        **compile_bank(backbone, groups, sources, version, recipe),
        engine=_engine(version, recipe),
        backbone=backbone.name,
        also_fitting=backbone.compatible_digests[1:],
        hidden_size=backbone.hidden_size,
        max_positions=backbone.max_positions,
        max_rank=max((group.size for group in groups if group.kind == "lora"), default=1),
        expert_store=store,
        groups=_records_of(groups),
    ).sealed(version)
    record.write(version)
    return record


def _merged_record(
    backbone: Backbone, source: Source, version: Path, recipe: Recipe
) -> MergedRecord:
    """Compile a merged model and write its record, without the gate's figures."""
    expert = source.expert
    record = MergedRecord(
        **compile_merged(backbone, source, version, recipe),
        engine=_engine(version, recipe),
        expert=expert.name,
        digest=expert.digest,
        labels=expert.labels,
        max_length=text_room(backbone, expert),
        template=expert.template,
        label_texts=expert.label_texts if expert.scores_texts else None,
        max_answer_length=expert.max_answer_length,
        label_bias=(expert.label_bias or None) if expert.scores_texts else None,
    ).sealed(version)
    record.write(version)
    return record


def _gated_bank(
    version: Path,
    backbone: Backbone,
    sources: Sequence[Source],
    recipe: Recipe,
    engine: EngineRecord | None,
    *,
    leave_out: bool,
) -> tuple[dict[str, Gated], dict[str, BeyondTolerance]]:
    """The experts that passed the gate, and those that the bank leaves out.

    Raises:
        ParityError: an expert is refused; all of them, with `leave_out`.
    """
    runs = engine is not None and _runs_here(engine)
    found = gate_bank(version, backbone, sources, recipe, explain=not leave_out, use_engine=runs)
    if found.refused and not (leave_out and found.passed):
        hint = _instead(recipe, leave_out=leave_out)
        raise refusal_of(found.refused, asked=len(sources), hint=hint)
    if engine is None:
        return found.passed, found.refused
    passed = {name: _noted(one, engine_ran=runs) for name, one in found.passed.items()}
    return passed, found.refused


def _left_out(name: str, error: BeyondTolerance, digest: str, recipe: Recipe) -> LeftOut:
    """What the bank records about a refused expert."""
    return LeftOut(
        model=name,
        digest=digest,
        precision=recipe.precision,
        reason=error.reason,
        parity=error.parity,
    )


def _instead(recipe: Recipe, *, leave_out: bool) -> str:
    """What to do about experts that a bank refuses, where fp32 would help."""
    if recipe.precision == "fp32":
        return ""
    if leave_out:
        return "; no expert is left for the bank, use `recipe=onnx-cpu`"
    return "; use `recipe=onnx-cpu`, or `fallback=fp32` for these experts alone"


def export_merged(
    source: Source,
    repo: Path,
    recipe: Recipe,
    *,
    platform: Platform = "python",
    name: str | None = None,
    keep_rows: bool = False,
) -> Exported:
    """Fold, export, gate and publish `<repo>/<name>`; as `staged_merged`."""
    with staged_merged(
        source, repo, recipe, platform=platform, name=name, keep_rows=keep_rows
    ) as entry:
        with entry.in_place():
            return entry.exported


def _require_mergeable(expert: Expert, model: str) -> None:
    if model == BANK:
        raise UsageError(
            f"export: a merged model cannot be called {BANK!r}, the name of the bank; "
            "rename the expert"
        )
    if not expert.sites:
        raise UsageError(
            f"mixture {expert.name!r}: has no tensors of its own to fold into the backbone; give "
            "the run folder, or its folder `expert`"
        )
    if not expert.labels and not expert.scores_texts:
        raise UsageError(
            f"expert {expert.name!r}: its rows bring their own candidates, "
            "which a merged graph has no input for; use `form=bank`"
        )


def _require_platform(platform: Platform, recipe: Recipe) -> None:
    """Refuse, before minutes of work, what cannot be compiled or run.

    Raises:
        UsageError: the backend of Triton Server cannot run what the recipe makes, or TensorRT is
            missing or does not offer a GPU.
    """
    if platform not in ("python", recipe.runtime):
        raise UsageError(
            f"`platform={platform}`: runs no model of recipe {recipe.name!r}, which is for "
            f"{recipe.runtime}; use `platform=python`, or a recipe of {platform}"
        )
    if recipe.runtime != "onnxruntime":
        from pidep.export.tensorrt.library import find_library

        library = find_library(recipe.runtime)
        for text in recipe.compute_capabilities:
            library.capability(text)


def _require_token_ids(platform: Platform, expert: Expert, *, keep_rows: bool) -> None:
    """Refuse what a model that takes token ids cannot do.

    Raises:
        UsageError: texts are to be decoded, or rows of texts are to be asked.
    """
    if expert.scores_texts:
        raise UsageError(
            f"`platform={platform}`: decodes no texts, and expert {expert.name!r} is of an "
            "encoder-decoder; use `platform=python`"
        )
    if keep_rows:
        raise UsageError(
            f"`keep_rows`: pidep verify sends texts, and a model of `platform={platform}` takes "
            "token ids; add `front`, use `platform=python`, or leave the rows out"
        )


def _engine(version: Path, recipe: Recipe) -> EngineRecord | None:
    """The engine beside a graph, where the recipe compiles one."""
    if recipe.runtime == "onnxruntime":
        return None
    # Imported here: most exports need no TensorRT.
    from pidep.export.tensorrt.compile import compile_engine

    return compile_engine(version / GRAPH, version / ENGINE, recipe)


def _runs_here(engine: EngineRecord) -> bool:
    """Whether the gate can run the engine itself; says so where it cannot."""
    missing = missing_for(engine)
    if missing is not None:
        _LOG.warning(
            "export: the engine was not run, this machine lacks %s; the gate compares the graph "
            "that it was compiled from",
            missing,
        )
    return missing is None


def _noted(gated: Gated, *, engine_ran: bool) -> Gated:
    """The figures, and whether they are those of the engine or of the graph that made it."""
    return replace(gated, parity=gated.parity.model_copy(update={"engine_ran": engine_ran}))


def _new_version(entry: Path, backbone: Backbone, *, shim: bool) -> Path:
    """The entry's version folder with what does not depend on the expert."""
    version = entry / VERSION
    version.mkdir()
    # A copy in every entry: the entry must serve where the backbone's folder is not.
    (version / TOKENIZER).write_text(backbone.tokenizer_json, encoding="utf-8")
    if shim:
        shutil.copyfile(shipped(SHIM), version / SHIM)
        # A new folder looks like a changed model, and the stub ignores PYTHONDONTWRITEBYTECODE.
        (version / NO_BYTECODE).touch()
    return version


def _keep_samples(
    entry: Path, gated: Mapping[str, Gated], recipe: Recipe, record: BankRecord | MergedRecord
) -> None:
    """Write what `pidep verify` asks a live server."""
    bounds = recipe.tolerance
    GateRecord(
        recipe=recipe.name,
        max_abs=bounds.max_abs,
        argmax_flips=bounds.argmax_flips,
        metric_drop=bounds.metric_drop,
        entry=record.entry_digest or "",
        with_expert=isinstance(record, BankRecord),
        experts={name: one.sample for name, one in gated.items()},
    ).write(entry)


def _complete(
    entry: Path,
    config: str,
    gated: Mapping[str, Gated],
    recipe: Recipe,
    record: BankRecord | MergedRecord,
    *,
    keep_rows: bool,
) -> None:
    """Write what is beside the version, the configuration last: without it no server takes the
    folder for a model.
    """
    write_gate_report(entry, gated, recipe, record, with_texts=keep_rows)
    if keep_rows:
        _keep_samples(entry, gated, recipe, record)
    (entry / CONFIG).write_text(config, encoding="utf-8")


def _records_of(groups: Sequence[BankGroup]) -> tuple[GroupRecord, ...]:
    return tuple(GroupRecord(**asdict(group)) for group in groups)
