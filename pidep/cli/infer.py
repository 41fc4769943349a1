"""`pidep infer`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pidep.cli import render
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.serving.client import Request, Result

__all__ = ["infer"]


def _rows(expert: str | None) -> Iterator[Request]:
    from pidep.serving.client import Request

    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            row = jsonlib.loads(line)
            image = row.get("image")
            text = _text(row["text"] if image is None else row.get("text") or "")
            yield Request(text, _text(row.get("expert") or expert or ""), None if image is None else Path(_text(image)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            expected = '{"text": …, "image": PATH, "expert": …} (a text, an image or both)'
            raise UsageError(f"standard input, line {number}: expected {expected}, found {line.strip()[:80]!r}") from error


def _text(value: object) -> str:
    """`value` if it is text that can be sent; lone surrogates cannot."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    value.encode()
    return value


def _asked(texts: list[str], images: list[Path]) -> list[tuple[str, Path | None]]:
    """Texts and images side by side."""
    if texts and images and len(texts) != len(images):
        raise UsageError(f"--image: {len(images)} images beside {len(texts)} texts; give one for each text, or no texts")
    if images:
        return list(zip(texts or [""] * len(images), images, strict=True))
    return [(text, None) for text in texts]


def _shown(text: str, path: Path | None) -> str:
    return " + ".join(part[:60] for part in (text, path.name if path else "") if part)


def _scores(result: Result) -> str:
    return "  ".join(f"{name} {score:.3f}" for name, score in result.scores.items())


def infer(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, JSONL is read from standard input.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image file; one for each text, or without texts. Repeatable.")] = None,
    expert: Annotated[str | None, typer.Option(help="Expert to answer (rows of JSONL may name their own).")] = None,
    url: Annotated[str | None, typer.Option(help="host:port; 127.0.0.1:8001 for gRPC, :8000 for HTTP.")] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http.")] = "grpc",
    model: Annotated[str, typer.Option(help="Model name; the bank by default.")] = "pidep_bank",
    batch_size: Annotated[int, typer.Option(min=1, max=64, help="Rows a request.")] = 32,
    json: Annotated[bool, typer.Option("--json", help="Print JSONL also for texts given as arguments.")] = False,
) -> None:
    """Ask a running server: text, images or both in, labels and scores out."""
    if protocol not in ("grpc", "http"):
        raise UsageError(f"--protocol {protocol!r}: expected grpc or http")
    asked = _asked(texts or [], image or [])
    if asked and model == "pidep_bank" and not expert:
        raise UsageError("--expert: name the expert that should answer")
    for text in texts or ():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"text {ascii(text)[:80]}: is not UTF-8; encode it as UTF-8") from error
    from pidep.serving.client import Client, Request

    address = url or ("127.0.0.1:8001" if protocol == "grpc" else "127.0.0.1:8000")
    with Client(address, protocol="grpc" if protocol == "grpc" else "http", model=model) as client:
        rows = iter([Request(text, expert or "", path) for text, path in asked]) if asked else _rows(expert)
        if asked and not json:
            results = list(client.stream(rows, batch_size=batch_size))
            lines = [[_shown(*row), result.label, _scores(result), result.digest[:19]] for row, result in zip(asked, results, strict=True)]
            render.table(f"{model}, expert {expert}" if expert else model, ["asked", "label", "scores", "digest"], lines)
            return
        for result in client.stream(rows, batch_size=batch_size):
            typer.echo(jsonlib.dumps(asdict(result), ensure_ascii=False))
