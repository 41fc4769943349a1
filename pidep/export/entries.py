"""`pidep export` as a function: graph, parity gate, repository entry, in that order."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.backbone import Backbone
from pidep.backbones.choices import Choices
from pidep.backbones.load import load_backbone
from pidep.errors import ExpertError, ParityError, UsageError
from pidep.experts.bank import BankGroup, pack, require_bank_kind
from pidep.experts.folder import Expert, check_name, read_expert, require_embeddings
from pidep.export.config_pbtxt import bank_config, merged_config
from pidep.export.graph import bank_groups, export_bank_graph, export_merged_graph, export_vision_graph
from pidep.export.parity import Parity, compare, gate
from pidep.export.recipe import Recipe, shipped
from pidep.files.atomic_write import atomic_folder, check_place
from pidep.tasks.data import UNLABELLED, Split, limit, load_texts
from pidep.tasks.hub import with_labels
from pidep.tasks.task import Task, load_task

__all__ = ["BANK", "Exported", "Source", "export_bank", "export_merged", "read_source"]

BANK = "pidep_bank"
_FAR_BELOW = -1e4


@dataclass(frozen=True)
class Source:
    """An expert to export, with real rows of its task for the gate."""

    expert: Expert
    task: Task
    rows: Split


@dataclass(frozen=True)
class Exported:
    """What was published."""

    model: str
    folder: Path
    parity: dict[str, Parity]
    experts: dict[str, str]
    """Expert name to digest."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        parity = {name: value.to_json() for name, value in self.parity.items()}
        return {"model": self.model, "folder": str(self.folder), "parity": parity, "experts": self.experts}


def read_source(run: Path, *, rows: int, task: str | None = None) -> Source:
    """A run folder's (or expert folder's) expert, and up to `rows` test rows of its task.

    Raises:
        UsageError: an expert folder without a task, and none given.
        ExpertError: it is no expert, or one of an encoder-decoder.
    """
    expert = read_expert(run / "expert" if (run / "expert" / "expert.json").is_file() else run)
    require_embeddings(expert)
    if task is not None:
        found = with_labels(load_task(task))
    elif (run / "task.json").is_file():
        found = _task_of(run / "task.json")
    else:
        raise UsageError(f"{run}: no task.json, so there are no real rows for the parity gate; give --task")
    if tuple(found.labels) != expert.labels:
        raise UsageError(f"{run}: expert has the labels {', '.join(expert.labels)}, task {found.name!r} has {', '.join(found.labels)}")
    return Source(expert, found, limit(load_texts(found).test, rows, seed=0))


def _task_of(path: Path) -> Task:
    try:
        return Task.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: damaged ({' '.join(str(error).split())[:160]}); give --task, or run pidep tune again") from error


def _torch_logits(backbone: Backbone, source: Source) -> npt.NDArray[np.float32]:
    """The reference: PyTorch with the expert attached, not folded."""
    expert = source.expert
    with attached(backbone.model, Mixture.of([expert])):
        embeddings = backbone.encode(source.rows.rows, max_length=expert.max_length)
    return _logits(backbone, source, embeddings)


def _logits(backbone: Backbone, source: Source, embeddings: torch.Tensor) -> npt.NDArray[np.float32]:
    """`[N, C]` of embeddings `[N, D]` against the labels, or against each row's own candidates; places left over are far below."""
    choices = Choices(backbone, torch.from_numpy(source.expert.label_embeddings), logit_scale=source.expert.logit_scale)
    choices.learn(source.rows.rows)
    logits = source.expert.logit_scale * choices.cosines(embeddings, source.rows.rows)
    return np.nan_to_num(logits.numpy(), neginf=_FAR_BELOW)


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _exported_logits(session: Any, backbone: Backbone, source: Source, feeds: dict[str, Any], row: int | None) -> npt.NDArray[np.float32]:
    parts = []
    for start in range(0, len(source.rows.rows), 32):
        prepared = backbone.prepare(source.rows.rows[start : start + 32], max_length=source.expert.max_length)
        inputs = {**{name: tensor.numpy() for name, tensor in prepared.items()}, **feeds}
        if row is not None:
            inputs["expert_index"] = np.full(len(prepared["input_ids"]), row, dtype=np.int64)
        parts.append(session.run(None, inputs)[0])
    return np.concatenate(parts)


def _parity(backbone: Backbone, source: Source, exported: npt.NDArray[np.float32]) -> Parity:
    """Against PyTorch; where the rows have no labels, its answers stand for them."""
    reference, labels = _torch_logits(backbone, source), source.rows.labels
    if UNLABELLED in labels:
        labels = reference.argmax(1).tolist()
    return compare(reference, exported, labels, source.task.metric)


def _sha256(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _fitting(backbone: Backbone, expert: Expert) -> None:
    if expert.backbone_digest not in backbone.fitting:
        raise ExpertError(
            f"expert {expert.name!r}: made for backbone {expert.backbone!r} ({expert.backbone_digest[:19]}…), "
            f"this is {backbone.name!r} ({backbone.digest[:19]}…); export it with its own backbone"
        )


def _write_entry(
    folder: Path, config: str, record: tuple[str, dict[str, Any]], graph: Path, tokenizer_json: str, *, shim: bool = True
) -> None:
    """A whole model folder at once; Triton Server never sees half of one."""
    with atomic_folder(folder) as temporary:
        version = temporary / "1"
        version.mkdir()
        shutil.copyfile(graph, version / "model.onnx")
        if (graph.parent / "vision.onnx").is_file():
            shutil.copyfile(graph.parent / "vision.onnx", version / "vision.onnx")
        (version / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        (version / record[0]).write_text(json.dumps(record[1], indent=2) + "\n", encoding="utf-8")
        if shim:
            shutil.copyfile(shipped("model.py"), version / "model.py")
        (temporary / "config.pbtxt").write_text(config, encoding="utf-8")


def export_merged(
    source: Source, repo: Path, recipe: Recipe, *, platform: Literal["python", "onnxruntime"] = "python", name: str | None = None
) -> Exported:
    """Fold the expert into the backbone, export, gate, publish `<repo>/<name>`.

    Raises:
        ParityError: beyond the recipe's tolerance; nothing is published.
    """
    expert = source.expert
    backbone = load_backbone(expert.backbone)
    _fitting(backbone, expert)
    model = check_name(name or expert.name)
    if model == BANK:
        raise UsageError(f"export: a merged model cannot be called {BANK!r}, the name of the bank; rename the expert")
    if not expert.labels:
        raise UsageError(
            f"expert {expert.name!r}: its rows bring their own candidates, which a merged graph has no input for; use --form bank"
        )
    check_place(repo, "--repo")
    with tempfile.TemporaryDirectory() as temporary:
        graph = Path(temporary) / "model.onnx"
        export_merged_graph(backbone, expert, graph, opset=recipe.opset)
        exported = _exported_logits(_session(graph), backbone, source, {}, None)
        parity = _parity(backbone, source, exported)
        gate(model, parity, recipe.tolerance)
        record = {
            "schema": 1,
            "expert": expert.name,
            "digest": expert.digest,
            "labels": expert.labels,
            "max_length": expert.max_length,
            "backbone_digest": backbone.digest,
            "graph_digest": _sha256(graph),
            "parity": parity.to_json(),
        }
        vision = _vision(backbone, Path(temporary), recipe)
        count = len(expert.labels)
        config = merged_config(model, max_batch_size=recipe.max_batch_size, platform=platform, num_labels=count, images=vision is not None)
        entry = ("merged.json", record | _recorded(vision))
        _write_entry(repo / model, config, entry, graph, backbone.tokenizer_json, shim=platform == "python")
    return Exported(model, repo / model, {expert.name: parity}, {expert.name: expert.digest})


def _vision(backbone: Backbone, folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Export the vision graph beside the model's, hold it against PyTorch; its record, or None for a backbone of texts."""
    if backbone.image_graph is None or backbone.preprocess is None:
        return None
    path = folder / "vision.onnx"
    export_vision_graph(backbone, path, opset=recipe.opset)
    pixels = np.random.default_rng(0).standard_normal((4, 3, backbone.preprocess.size, backbone.preprocess.size)).astype(np.float32)
    (found,) = _session(path).run(None, {"pixels": pixels})
    with torch.no_grad():
        expected = backbone.image_graph(torch.from_numpy(pixels)).numpy()
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= recipe.tolerance.max_abs:
        bound = recipe.tolerance.max_abs
        raise ParityError(f"parity of the vision graph: relative error is {error:.3g}, allowed {bound:.3g}; nothing was published")
    return {
        "graph_digest": _sha256(path),
        "preprocess": asdict(backbone.preprocess),
        "preprocess_digest": backbone.preprocess.digest,
        "num_tokens": found.shape[1],
        "width": found.shape[2],
        "relative_error": error,
    }


def _recorded(vision: dict[str, Any] | None) -> dict[str, Any]:
    return {} if vision is None else {"vision": vision}


def _backbone_of(experts: Sequence[Expert]) -> Backbone:
    """Of the experts' backbones the one that all of them fit: `pidep-mini` where some are of its text encoder.

    Raises:
        ExpertError: there is none.
    """
    found = [load_backbone(name) for name in dict.fromkeys(expert.backbone for expert in experts)]
    backbone = max(found, key=lambda one: sum(expert.backbone_digest in one.fitting for expert in experts))
    for expert in experts:
        _fitting(backbone, expert)
    return backbone


def _bank_sites(backbone: Backbone, experts: Sequence[Expert]) -> list[str]:
    """The union of the experts' sites, in the backbone's order."""
    wanted = {site for expert in experts for site in expert.sites}
    return [name for name, _ in backbone.model.named_modules() if name in wanted]


def export_bank(
    sources: Sequence[Source],
    repo: Path,
    recipe: Recipe,
    *,
    max_rank: int | None = None,
    expert_store: str,
    published: Mapping[str, Expert] = MappingProxyType({}),
) -> Exported:
    """One graph for all experts; every given expert passes the gate through it. Publishes `<repo>/pidep_bank`, not the experts.

    Args:
        sources: experts of one backbone.
        max_rank: rank of the bank's rows; the largest expert's when absent.
        published: experts the store serves already, by name; the new bank has room for them, too.
        expert_store: the store's path, relative to the version folder.

    Raises:
        ParityError: beyond the recipe's tolerance; nothing is published.
    """
    names = [source.expert.name for source in sources]
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"export: expected runs with different names, found {', '.join(names) or 'none'}")
    backbone = _backbone_of([source.expert for source in sources])
    for source in sources:
        require_bank_kind(source.expert)
    check_place(repo, "--repo")
    kept = [expert for name, expert in published.items() if name not in names]
    for expert in kept:
        _fitting(backbone, expert)
    every = [*(source.expert for source in sources), *kept]
    largest = max(expert.rank for expert in every)
    rank = largest if max_rank is None else max_rank
    if rank < largest:
        raise UsageError(f"--max-rank {rank}: an expert has rank {largest}; raise it or fold that expert to a smaller rank")
    groups = bank_groups(backbone.model, _bank_sites(backbone, every))
    with tempfile.TemporaryDirectory() as temporary:
        graph = Path(temporary) / "model.onnx"
        export_bank_graph(backbone, groups, graph, max_rank=rank, opset=recipe.opset)
        parity = _bank_parity(graph, backbone, sources, groups, rank=rank)
        for name, found in parity.items():
            gate(name, found, recipe.tolerance)
        record = {
            "schema": 1,
            "backbone": backbone.name,
            "backbone_digest": backbone.digest,
            "also_fitting": backbone.fitting[1:],
            "graph_digest": _sha256(graph),
            "hidden_size": backbone.hidden_size,
            "max_positions": backbone.max_positions,
            "max_rank": rank,
            "expert_store": expert_store,
            "groups": [asdict(group) for group in groups],
            "parity": {name: found.to_json() for name, found in parity.items()},
        }
        vision = _vision(backbone, Path(temporary), recipe)
        config = bank_config(BANK, max_batch_size=recipe.max_batch_size, hidden_size=backbone.hidden_size, images=vision is not None)
        _write_entry(repo / BANK, config, ("bank.json", record | _recorded(vision)), graph, backbone.tokenizer_json)
    return Exported(BANK, repo / BANK, parity, {source.expert.name: source.expert.digest for source in sources})


def _bank_parity(graph: Path, backbone: Backbone, sources: Sequence[Source], groups: Sequence[BankGroup], *, rank: int) -> dict[str, Parity]:
    session = _session(graph)
    experts: list[Expert | None] = [None, *(source.expert for source in sources)]
    feeds = {group.input: pack(group, experts, max_rank=rank) for group in groups}
    parity = {}
    for row, source in enumerate(sources, 1):
        embeddings = _exported_logits(session, backbone, source, feeds, row)
        parity[source.expert.name] = _parity(backbone, source, _logits(backbone, source, torch.from_numpy(embeddings)))
    return parity
