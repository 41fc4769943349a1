"""`pidep generate` as a function: an encoder-decoder's answers, by an expert or by the bare backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.backbone import Backbone, GenerationMode
from pidep.backbones.load_encoder_decoder import load_encoder_decoder
from pidep.errors import ExpertError, TaskError, UsageError
from pidep.experts.folder import Expert, read_expert
from pidep.inputs.images import load_image
from pidep.inputs.locations import text_to_boxes
from pidep.inputs.row import Input, as_row
from pidep.tuning.settings import GenerateSettings

__all__ = ["Answer", "generate"]

_MAX_LENGTH, _MAX_ANSWER_LENGTH = 512, 32
_DEFAULTS = GenerateSettings()


@dataclass(frozen=True)
class Answer:
    """What a row is answered."""

    text: str
    label: str | None = None
    """Name of the label whose text it is, for an expert with labels."""
    boxes: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)
    """Labelled boxes in pixels of the row's image, where the answer holds location tokens."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`; a label or boxes only where there are some."""
        return {key: value for key, value in asdict(self).items() if value}


def generate(
    source: str,
    rows: Sequence[Input],
    settings: GenerateSettings = _DEFAULTS,
    *,
    backbone: Backbone | str | None = None,
) -> list[Answer]:
    """Answers of a run, of an expert, or of a bare encoder-decoder, one a row.

    Args:
        source: a run folder, an expert folder, or a folder or hub id of an encoder-decoder.
        backbone: the expert's own when absent.

    Raises:
        ExpertError: the expert is damaged, embeds, or is of another backbone.
        BackboneError, ImageError, UsageError: the backbone or a row cannot be read, or the settings do not go together.
    """
    expert = _expert_of(Path(source))
    if expert is None and backbone is not None:
        raise UsageError(f"{source}: holds no expert.json, so it is a backbone itself; leave --backbone out")
    asked = backbone or (expert.backbone if expert else source)
    model = load_encoder_decoder(asked) if isinstance(asked, str) else asked
    if expert is not None and expert.backbone_digest != model.digest:
        raise ExpertError(
            f"expert {expert.name!r}: made for backbone {expert.backbone!r} ({expert.backbone_digest[:19]}…), "
            f"{model.name!r} is {model.digest[:19]}…; give its own with --backbone"
        )
    candidates, mode = _choices(expert, settings)
    with attached(model.model, None if expert is None else Mixture.of([expert])):
        texts = model.generate(
            rows,
            max_length=settings.max_length or (expert.max_length if expert else min(_MAX_LENGTH, model.max_positions)),
            max_new_tokens=settings.max_answer_length or (expert and expert.max_answer_length) or _MAX_ANSWER_LENGTH,
            mode=mode,
            num_beams=settings.num_beams,
            candidates=candidates or None,
            batch_size=settings.batch_size,
        )
    names = {} if expert is None or settings.candidates else dict(zip(expert.label_texts, expert.labels, strict=True))
    return [Answer(text, names.get(text), _boxes(text, row)) for text, row in zip(texts, rows, strict=True)]


def _expert_of(folder: Path) -> Expert | None:
    """The expert of a run folder or an expert folder; None where there is none."""
    for place in (folder / "expert", folder):
        if (place / "expert.json").is_file():
            expert = read_expert(place)
            if not expert.scores_texts:
                raise ExpertError(
                    f"expert {expert.name!r}: backbone {expert.backbone!r} embeds and generates nothing; use pidep export and pidep infer"
                )
            return expert
    return None


def _choices(expert: Expert | None, settings: GenerateSettings) -> tuple[tuple[str, ...], GenerationMode]:
    """What is chosen from, if anything, and the mode."""
    texts = settings.candidates or (() if expert is None else expert.label_texts)
    mode = settings.mode or ("constrained" if texts else "greedy")
    if mode == "constrained" and not texts:
        raise UsageError("mode 'constrained': needs candidates, and there is no expert with labels; give --candidate")
    if mode != "constrained" and settings.candidates:
        raise UsageError(f"mode {mode!r}: takes no candidates; use --mode constrained")
    return (texts if mode == "constrained" else ()), mode


def _boxes(text: str, row: Input) -> list[tuple[str, tuple[float, float, float, float]]]:
    image = as_row(row).image
    if image is None or "<loc_" not in text:
        return []
    try:
        return text_to_boxes(text, size=load_image(image).size)
    except TaskError:  # locations that are no box are still an answer
        return []
