"""`pidep infer`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pidep.cli import render
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.serving.client import Request

__all__ = ["infer"]


def _rows(expert: str | None) -> Iterator[Request]:
    from pidep.serving.client import Request

    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            row = jsonlib.loads(line)
            yield Request(_text(row["text"]), _text(row.get("expert") or expert or ""))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f'standard input, line {number}: expected {{"text": …, "expert": …}}, found {line.strip()[:80]!r}') from error


def _text(value: object) -> str:
    """`value` if it is text that can be sent; lone surrogates cannot."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    value.encode()
    return value


def infer(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, JSONL is read from standard input.")] = None,
    expert: Annotated[str | None, typer.Option(help="Expert to answer (rows of JSONL may name their own).")] = None,
    url: Annotated[str | None, typer.Option(help="host:port; 127.0.0.1:8001 for gRPC, :8000 for HTTP.")] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http.")] = "grpc",
    model: Annotated[str, typer.Option(help="Model name; the bank by default.")] = "pidep_bank",
    batch_size: Annotated[int, typer.Option(min=1, max=64, help="Rows a request.")] = 32,
    json: Annotated[bool, typer.Option("--json", help="Print JSONL also for texts given as arguments.")] = False,
) -> None:
    """Ask a running server: text in, labels and scores out."""
    if protocol not in ("grpc", "http"):
        raise UsageError(f"--protocol {protocol!r}: expected grpc or http")
    if texts and model == "pidep_bank" and not expert:
        raise UsageError("--expert: name the expert that should answer")
    for text in texts or ():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"text {ascii(text)[:80]}: is not UTF-8; encode it as UTF-8") from error
    from pidep.serving.client import Client, Request

    address = url or ("127.0.0.1:8001" if protocol == "grpc" else "127.0.0.1:8000")
    with Client(address, protocol="grpc" if protocol == "grpc" else "http", model=model) as client:
        rows = iter([Request(text, expert or "") for text in texts]) if texts else _rows(expert)
        if texts and not json:
            results = list(client.stream(rows, batch_size=batch_size))
            lines = [
                [text[:60], result.label, "  ".join(f"{name} {score:.3f}" for name, score in result.scores.items()), result.digest[:19]]
                for text, result in zip(texts, results, strict=True)
            ]
            render.table(f"{model}, expert {expert}" if expert else model, ["text", "label", "scores", "digest"], lines)
            return
        for result in client.stream(rows, batch_size=batch_size):
            typer.echo(jsonlib.dumps(asdict(result), ensure_ascii=False))
