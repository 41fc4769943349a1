"""`pidep convert` as a function: experts for other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pidep.artifacts.names import GRAPH, TOKENIZER
from pidep.deployment.settings import ConvertSettings
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert, read_expert
from pidep.experts.peft_folder import require_peft_format, write_peft
from pidep.experts.resolve import resolve_expert_folder
from pidep.files.atomic_write import atomic_folder, check_place

__all__ = ["Converted", "convert_runs"]

_WRITTEN = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|README\.md|tokenizer\.json|"
    r"model\.onnx(\.data)?|.+\.onnx_adapter"
)
"""Names of the files in a folder that may be replaced; PEFT adds the README."""


@dataclass(frozen=True)
class Converted:
    """What was written."""

    out: Path
    experts: dict[str, str]
    """Name to digest."""
    max_abs: dict[str, float]
    """Largest difference of a logit from PyTorch's, by expert; empty for `peft`."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "out": str(self.out)}


def convert_runs(runs: Sequence[Path], settings: ConvertSettings) -> Converted:
    """Write `out`: a folder of PEFT, or a graph and an `.onnx_adapter` for each expert.

    Raises:
        UsageError: `out` is not empty and `overwrite` is not set, or runs do not fit together.
        ExpertError: an expert that the other program does not have; the message says why.
        ParityError: ONNX Runtime does not answer as PyTorch; nothing was written.
    """
    experts = [read_expert(resolve_expert_folder(run)) for run in runs]
    _require_place(settings)
    names = {expert.name for expert in experts}
    if len(names) != len(experts):
        raise UsageError("RUNS: two experts have one name; convert them into two folders")
    if settings.to == "peft":
        if len(experts) != 1:
            raise UsageError(f"`to=peft`: takes one run, found {len(experts)}")
        require_peft_format(experts[0])
        with atomic_folder(settings.out) as temporary:
            write_peft(experts[0], temporary, base=settings.base)
        errors: dict[str, float] = {}
    else:
        errors = _write_adapters(experts, settings)
    return Converted(settings.out, {one.name: one.digest for one in experts}, errors)


def _require_place(settings: ConvertSettings) -> None:
    out = settings.out
    check_place(out, "`out`")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if held and not settings.overwrite:
        raise UsageError(f"{out}: is not empty; choose another `out`, or give `overwrite`")
    # `--out . --overwrite` would otherwise delete whatever is there.
    foreign = [name for name in held if not _WRITTEN.fullmatch(name)]
    if foreign:
        raise UsageError(
            f"{out}: holds {foreign[0]}, which this command does not write; choose another `out`"
        )


def _write_adapters(experts: Sequence[Expert], settings: ConvertSettings) -> dict[str, float]:
    """Write graph and adapters; the difference of each from PyTorch's answers."""
    from pidep.backbones.load import load_backbone
    from pidep.export.adapter_check import check_adapters
    from pidep.export.adapter_graph import adapter_tensors, export_adapter_graph
    from pidep.export.recipe import load_recipe
    from pidep.runtime.adapter_file import SUFFIX, write_adapter_file

    for expert in experts:
        if expert.scores_texts:
            raise ExpertError(
                f"expert {expert.name!r}: is of the encoder-decoder {expert.backbone!r}, which has "
                "two graphs and no adapter file; use pidep export, or convert it for peft"
            )
        adapter_tensors(expert)  # refuses other kinds before a backbone is loaded
    if len({expert.backbone_digest for expert in experts}) != 1:
        raise UsageError("RUNS: experts of different backbones; one graph has one backbone")
    backbone = load_backbone(settings.backbone or experts[0].backbone)
    if backbone.digest != experts[0].backbone_digest:
        raise ExpertError(
            f"expert {experts[0].name!r}: needs the backbone {experts[0].backbone_digest}, "
            f"{backbone.name} is {backbone.digest}; give `backbone`"
        )
    if backbone.image_graph is not None:
        raise ExpertError(
            f"expert {experts[0].name!r}: {backbone.name} reads images by a graph of its own, "
            "which the adapter's graph does not have; export it with `pidep export`"
        )
    recipe = load_recipe("onnx-cpu")
    with atomic_folder(settings.out) as temporary:
        export_adapter_graph(backbone, experts, temporary / GRAPH, opset=recipe.opset)
        (temporary / TOKENIZER).write_text(backbone.tokenizer_json, encoding="utf-8")
        for expert in experts:
            write_adapter_file(temporary / f"{expert.name}{SUFFIX}", adapter_tensors(expert))
        return check_adapters(backbone, experts, temporary, bound=recipe.tolerance.max_abs)
