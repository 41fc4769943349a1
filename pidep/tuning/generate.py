"""`pidep generate` as a function: the texts of an encoder-decoder, with or without an expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.backbone import Backbone, GenerationMode
from pidep.backbones.device import put_on
from pidep.backbones.load_encoder_decoder import load_encoder_decoder
from pidep.errors import ExpertError, PidepError, TaskError, UsageError
from pidep.experts.folder import Expert, read_expert
from pidep.experts.resolve import holds_expert, resolve_expert_folder
from pidep.inputs.images import load_image
from pidep.inputs.locations import text_to_boxes
from pidep.inputs.row import Input, as_row
from pidep.runtime.ready_rows import ready_rows
from pidep.tuning.settings import GenerateSettings

__all__ = ["GeneratedAnswer", "generate"]

_MAX_LENGTH, _MAX_ANSWER_LENGTH = 512, 32


_DEFAULTS = GenerateSettings()


@dataclass(frozen=True)
class GeneratedAnswer:
    """The answer to one row."""

    text: str
    label: str | None = None
    """The label of this text, for an expert with labels."""
    boxes: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)
    """Labelled boxes in pixels of the image, from the location tokens of the answer."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`; without a label or boxes where there are none."""
        return {key: value for key, value in asdict(self).items() if value}


def generate(
    source: str,
    rows: Sequence[Input],
    settings: GenerateSettings = _DEFAULTS,
    *,
    backbone: Backbone | str | None = None,
) -> list[GeneratedAnswer]:
    """Answers of a run, an expert or a bare encoder-decoder, one for each row.

    Args:
        source: a run folder, an expert folder, or a folder or hub id of an encoder-decoder.
        backbone: the expert's backbone, loaded or by name; found by its recorded name when absent.

    Raises:
        ExpertError: the expert is damaged, belongs to another backbone, or to one that embeds.
        BackboneError, ImageError: the backbone or a row cannot be read.
        UsageError: the settings contradict each other.
    """
    expert = _expert_of(Path(source))
    if expert is None and backbone is not None:
        raise UsageError(
            f"{source}: holds no expert.json, so it is a backbone itself; leave `backbone` out"
        )
    asked = backbone or (expert.backbone if expert else source)
    if isinstance(asked, str):
        model: Backbone = put_on(load_encoder_decoder(asked), settings.device)
    else:
        model = asked
    # By digest: the shapes may fit another model of the same size, and the answers would be noise.
    if expert is not None and expert.backbone_digest != model.digest:
        raise ExpertError(
            f"expert {expert.name!r}: made for backbone {expert.backbone!r} "
            f"({expert.backbone_digest[:19]}…), "
            f"{model.name!r} is {model.digest[:19]}…; give its own as `backbone`"
        )
    for row in ready_rows(rows, [None if expert is None else expert.template] * len(rows)):
        if isinstance(row, PidepError):
            raise row
    candidates, mode = _choices(expert, settings)
    with attached(model.model, None if expert is None else Mixture.of([expert])):
        texts = model.generate(
            rows,
            max_length=settings.max_length
            or (expert.max_length if expert else min(_MAX_LENGTH, model.max_positions)),
            max_new_tokens=settings.max_answer_length
            or (expert and expert.max_answer_length)
            or _MAX_ANSWER_LENGTH,
            mode=mode,
            num_beams=settings.num_beams,
            candidates=candidates or None,
            batch_size=settings.batch_size,
        )
    names = (
        {}
        if expert is None or settings.candidates
        else dict(zip(expert.label_texts, expert.labels, strict=True))
    )
    return [
        GeneratedAnswer(text, names.get(text), _boxes(text, row))
        for text, row in zip(texts, rows, strict=True)
    ]


def _expert_of(folder: Path) -> Expert | None:
    """The expert of a run folder or an expert folder; None where there is none."""
    if not holds_expert(folder):
        return None
    expert = read_expert(resolve_expert_folder(folder))
    if not expert.scores_texts:
        raise ExpertError(
            f"expert {expert.name!r}: backbone {expert.backbone!r} embeds and generates nothing; "
            "use pidep export and pidep infer"
        )
    return expert


def _choices(
    expert: Expert | None, settings: GenerateSettings
) -> tuple[tuple[str, ...], GenerationMode]:
    """The texts to choose from, if any, and the mode."""
    texts = settings.candidates or (() if expert is None else expert.label_texts)
    mode = settings.mode or ("constrained" if texts else "greedy")
    if mode == "constrained" and not texts:
        raise UsageError(
            "mode 'constrained': needs candidates, and there is no expert with labels; "
            "give `candidates`"
        )
    if mode != "constrained" and settings.candidates:
        raise UsageError(f"mode {mode!r}: takes no candidates; use `mode=constrained`")
    return (texts if mode == "constrained" else ()), mode


def _boxes(text: str, row: Input) -> list[tuple[str, tuple[float, float, float, float]]]:
    image = as_row(row).image
    if image is None or "<loc_" not in text:
        return []
    try:
        return text_to_boxes(text, size=load_image(image).size)
    except TaskError:  # the text is an answer even if its locations form no box
        return []
