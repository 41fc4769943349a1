"""`pidep generate`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pidep.cli.options import OUTPUT, options
from pidep.errors import UsageError, fault_of_path, fault_of_text
from pidep.tuning.settings import GenerateSettings

if TYPE_CHECKING:
    from pidep.inputs.row import Row

__all__ = ["generate"]


@options(GenerateSettings)
def generate(
    settings: GenerateSettings,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Run folder or expert folder of an encoder-decoder, or an encoder-decoder's "
            "folder or hub id.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Text of a row. Repeat for several. Without --text and --image, rows are JSONL "
            "on standard input.",
            rich_help_panel="Rows",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Image of a row. Repeat: one for each text, or one for all of them.",
            rich_help_panel="Rows",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The expert's backbone. Without it, the name that the expert has for it.",
            rich_help_panel="Rows",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSONL: the text, and the label or boxes where there are some.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> None:
    """Answer texts and images offline with an encoder-decoder.

    Writes captions, free answers, boxes, or one of some candidate texts.
    """
    rows = list(_rows(text or [], image or []))
    if not rows:
        raise UsageError("nothing to answer; give `text`, `image`, or JSONL on standard input")
    from pidep.tuning.generate import generate as run

    for answer in run(source, rows, settings, backbone=backbone):
        typer.echo(jsonlib.dumps(answer.to_json(), ensure_ascii=False) if json else answer.text)


def _rows(texts: list[str], images: list[Path]) -> Iterator[Row]:
    from pidep.inputs.row import Row

    if not texts and not images:
        yield from _lines()
        return
    if texts and images and len(images) not in (1, len(texts)) and len(texts) != 1:
        raise UsageError(
            f"`text`: {len(texts)} texts and {len(images)} images; "
            "give one image for each text, or one for all of them"
        )
    count = max(len(texts), len(images))
    for number in range(count):
        text = texts[number if len(texts) > 1 else 0] if texts else ""
        yield Row(text, images[number if len(images) > 1 else 0] if images else None)


def _lines() -> Iterator[Row]:
    """Rows from standard input."""
    from pidep.inputs.row import Row

    # Bytes, so that a line that is not UTF-8 is an error of that line and not of the stream.
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            row = jsonlib.loads(line)
            text, image = row.get("text", ""), row.get("image")
            if not isinstance(text, str) or not isinstance(image, str | None):
                raise ValueError
            if fault_of_text(text) or (image is not None and fault_of_path(image)):
                raise ValueError
            if not row.keys() <= {"text", "image"}:
                raise ValueError
        except (ValueError, AttributeError, RecursionError) as error:
            raise UsageError(
                f'standard input, line {number}: expected {{"text": …, "image": PATH}}, '
                f"found {line.strip()[:80].decode(errors='backslashreplace')!r}"
            ) from error
        yield Row(text, image)
