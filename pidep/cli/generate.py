"""`pidep generate`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pidep.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pidep.backbones.encoder_decoder import Mode
    from pidep.inputs.row import Row

__all__ = ["generate"]

_MODES = ("greedy", "beam", "constrained")


def generate(
    source: Annotated[str, typer.Argument(help="A run or expert of an encoder-decoder, or the folder or hub id of one.")],
    text: Annotated[list[str] | None, typer.Option(help="Text of a row; repeat. Without --text and --image: JSONL on stdin.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image of a row; repeat. One for each text, or one for all of them.")] = None,
    mode: Annotated[str | None, typer.Option(help="greedy, beam or constrained. Constrained where there are labels or candidates.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams; 4 for beam, one a candidate (16 at most) for constrained.")] = None,
    candidate: Annotated[list[str] | None, typer.Option(help="A text the answer may be; repeat. Instead of the expert's labels.")] = None,
    max_length: Annotated[int | None, typer.Option(min=4, help="Tokens a text is cut to; the expert's own when absent.")] = None,
    max_answer_length: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer; the expert's own, or 32.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 16,
    backbone: Annotated[str | None, typer.Option(help="The expert's backbone, where it is now.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSONL: text, and label or boxes where there are some.")] = False,
) -> None:
    """Answer texts and images with an encoder-decoder: captions, answers, boxes, or one of some candidates."""
    if mode is not None and mode not in _MODES:
        raise UsageError(f"--mode {mode!r}: expected {', '.join(_MODES)}{did_you_mean(mode, _MODES)}")
    rows = list(_rows(text or [], image or []))
    if not rows:
        raise UsageError("nothing to answer: give --text, --image, or JSONL on standard input")
    from pidep.tuning.generate import GenerateSettings
    from pidep.tuning.generate import generate as run

    settings = GenerateSettings(cast("Mode | None", mode), num_beams, tuple(candidate or ()), max_length, max_answer_length, batch_size)
    for answer in run(source, rows, settings, backbone=backbone):
        typer.echo(jsonlib.dumps(answer.to_json(), ensure_ascii=False) if json else answer.text)


def _rows(texts: list[str], images: list[Path]) -> Iterator[Row]:
    from pidep.inputs.row import Row

    if not texts and not images:
        yield from _lines()
        return
    if texts and images and len(images) not in (1, len(texts)) and len(texts) != 1:
        raise UsageError(f"--text: {len(texts)} texts and {len(images)} images; give one image for each text, or one for all of them")
    count = max(len(texts), len(images))
    for number in range(count):
        text = texts[number if len(texts) > 1 else 0] if texts else ""
        yield Row(text, images[number if len(images) > 1 else 0] if images else None)


def _lines() -> Iterator[Row]:
    """Rows from standard input."""
    from pidep.inputs.row import Row

    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            row = jsonlib.loads(line)
            text, image = row.get("text", ""), row.get("image")
            if not isinstance(text, str) or not isinstance(image, str | None) or not row.keys() <= {"text", "image"}:
                raise ValueError
        except (ValueError, AttributeError) as error:
            raise UsageError(
                f'standard input, line {number}: expected {{"text": …, "image": PATH}}, found {line.strip()[:80]!r}'
            ) from error
        yield Row(text, image)
