"""`pidep infer`."""

from __future__ import annotations

import json as jsonlib
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.artifacts.names import BANK
from pidep.cli import render
from pidep.cli.options import OUTPUT, options
from pidep.deployment.settings import InferSettings
from pidep.errors import ServingError, UsageError, fault_of_path, fault_of_text

if TYPE_CHECKING:
    from pidep.inputs.decoding import Decoding
    from pidep.serving.client import Request, Result

__all__ = ["infer", "short"]

_SHOWN = 60
"""Characters of a text in the table."""


def _rows(expert: str | None) -> Iterator[Request]:
    from pidep.serving.client import Request

    # Bytes, so that a line that is not UTF-8 is an error of that line and not of the stream.
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            row = jsonlib.loads(line)
            image, columns = row.get("image"), row.get("columns")
            alone = image is None and columns is None
            text = _text(row["text"] if alone else row.get("text") or "")
            path = None if image is None else _path(image)
            if columns is not None and not isinstance(columns, dict):
                raise TypeError(f"expected an object of columns, found {type(columns).__name__}")
            key = _text(row.get("key") or "")
            name = _text(row.get("expert") or expert or "")
            where = f"standard input, line {number}"
            yield Request(text, name, path, columns, key, *_answering(row, where))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            expected = (
                '{"text": …, "image": PATH, "expert": …} (a text, an image or both), or '
                '{"columns": {…}, "expert": …}'
            )
            raise UsageError(
                f"standard input, line {number}: expected {expected}, found {_line(line)!r}"
            ) from error


def _answering(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], Decoding | None]:
    """A row's candidates, and how its answer is decoded."""
    from pidep.inputs.decoding import read_candidates, read_decoding

    candidates, decoding = row.get("candidates"), row.get("decoding")
    return (
        () if candidates is None else read_candidates(jsonlib.dumps(candidates).encode(), where),
        None if decoding is None else read_decoding(jsonlib.dumps(decoding).encode(), where),
    )


def _line(line: bytes) -> str:
    """The start of a line, as a message shows it."""
    return line.strip()[:80].decode(errors="backslashreplace")


def _text(value: object) -> str:
    """`value`, if it is text that UTF-8 can carry. Lone surrogates are not."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    if fault := fault_of_text(value):
        raise ValueError(fault)
    return value


def _path(value: object) -> Path:
    """`value` as a path."""
    if fault := fault_of_path(_text(value)):
        raise ValueError(fault)
    return Path(_text(value))


def _asked(texts: list[str], images: list[Path]) -> list[tuple[str, Path | None]]:
    """Texts and images side by side."""
    if texts and images and len(texts) != len(images):
        raise UsageError(
            f"`image`: {len(images)} images and {len(texts)} texts; "
            "give one image for each text, or no texts"
        )
    if images:
        return list(zip(texts or [""] * len(images), images, strict=True))
    return [(text, None) for text in texts]


def _shown(text: str, path: Path | None) -> str:
    return " + ".join(short(part) for part in (text, path.name if path else "") if part)


def short(text: str) -> str:
    """The text's first words, as many as fit into 60 characters."""
    words = text.split()
    # A text without a space, as in Chinese, has no words to keep whole.
    if len(words) < 2 or len(words[0]) >= _SHOWN:
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    return textwrap.shorten(text, _SHOWN, placeholder=" …")


def _scores(result: Result) -> str:
    return "  ".join(f"{name} {score:.3f}" for name, score in result.scores.items())


@options(InferSettings)
def infer(
    settings: InferSettings,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXTS",
            help="Texts to answer. Without texts and images, rows are JSONL on standard input.",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Image file. Repeat: one for each text, or images without texts.",
            rich_help_panel="Request",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSONL, also for rows given as arguments.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Ask a running server.

    Sends texts, images or both, and prints the label and the scores of each.
    """
    expert, model = settings.expert, settings.model
    asked = _asked(texts or [], image or [])
    if asked and model == BANK and not expert:
        raise UsageError("`expert`: expected a name, found none; name the expert that answers")
    from pidep.serving.client import Client, Request

    local = f"127.0.0.1:{8001 if settings.protocol == 'grpc' else 8000}"
    address = local if settings.url is None else settings.url
    with Client(address, protocol=settings.protocol, model=model) as client:
        given = iter([Request(text, expert or "", path) for text, path in asked])
        results = client.stream(
            given if asked else _rows(expert),
            batch_size=settings.batch_size,
            in_flight=settings.in_flight,
            all_or_nothing=not settings.keep_going,
        )
        if asked and not json:
            found = list(results)
            lines = [
                [_shown(*row), one.label, one.error or _scores(one), one.digest[:19]]
                for row, one in zip(asked, found, strict=True)
            ]
            title = f"{model}, expert {expert}" if expert else model
            render.table(title, ["asked", "label", "scores", "digest"], lines)
            _require_answers(sum(bool(one.error) for one in found), len(found))
            return
        wrong = total = 0
        for result in results:
            total, wrong = total + 1, wrong + bool(result.error)
            typer.echo(
                jsonlib.dumps(_record(result, with_error=settings.keep_going), ensure_ascii=False)
            )
        _require_answers(wrong, total)


def _record(result: Result, *, with_error: bool) -> dict[str, Any]:
    """A row of JSONL; it has an `error` and an id only where errors stay with their rows."""
    record = asdict(result)
    if not with_error:
        # The id is another one each time, and equal answers should be equal lines.
        del record["error"], record["request_id"]
    return record


def _require_answers(wrong: int, total: int) -> None:
    if wrong:
        raise ServingError(
            f"{wrong} of {total} rows were not answered; the answers say why, correct these rows "
            "and ask again"
        )
