"""`pidep verify` as a function: the gate once more, against a live server. No torch."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pidep.artifacts.gate import GateRecord, GateRow, GateSample
from pidep.errors import ServingError
from pidep.runtime.answer import Array, softmax
from pidep.serving.client import Client
from pidep.serving.request import Request, Result
from pidep.tasks.metrics import score

__all__ = ["ServedExpert", "require_verified", "verify_entry"]

_BATCH = 32
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ServedExpert:
    """How a server's answers compare with PyTorch's."""

    name: str
    rows: int
    max_abs: float
    """Largest difference of a score, a probability; of a logit where rows bring candidates."""
    argmax_flips: int
    """Rows whose best label differs."""
    metric: str
    metric_torch: float
    metric_served: float
    digest: str
    """The version that answered."""
    fault: str = ""
    """What is wrong; empty where the server answers as the gate has seen."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def verify_entry(entry: str | Path, url: str, *, timeout_s: float = 30.0) -> list[ServedExpert]:
    """Ask a server the rows of an entry's gate, and compare with PyTorch's answers to them.

    Args:
        entry: a model's folder in a repository.
        url: gRPC address of the server, host:port.

    Returns:
        The experts of the gate in the order of their names, each with what is wrong with it.

    Raises:
        ServingError: the entry has no `gate.json`, or nobody answers.
    """
    entry = Path(entry)
    record = GateRecord.read(entry)
    with Client(url, model=entry.resolve().name, timeout_s=timeout_s) as client:
        return [
            _compared(client, record, name, sample)
            for name, sample in sorted(record.experts.items())
        ]


def _compared(client: Client, record: GateRecord, name: str, sample: GateSample) -> ServedExpert:
    expert = name if record.with_expert else ""
    asked = [_request(row, expert, sample) for row in sample.rows]
    if sample.labels or sample.scores_texts:
        answers = list(client.stream(asked, batch_size=_BATCH))
        wanted = [softmax(np.array(logits)) for logits in sample.logits]
        found = [
            np.array([answer.scores.get(name, np.nan) for name in _names(row, sample)])
            for answer, row in zip(answers, sample.rows, strict=True)
        ]
        # A logit that is off by ε moves a probability by at most ε / 2.
        bound = record.max_abs / 2 + _ROUNDING
    else:
        answers = [
            client.choose(one, [_request(each, expert, sample) for each in row.candidates])
            for one, row in zip(asked, sample.rows, strict=True)
        ]
        wanted = [np.array(logits) for logits in sample.logits]
        found = [sample.logit_scale * np.array(list(one.scores.values())) for one in answers]
        bound = record.max_abs
    return _figures(record, name, sample, answers, wanted, found, bound=bound)


def _request(row: GateRow, expert: str, sample: GateSample) -> Request:
    image = None if row.image is None else base64.b64decode(row.image)
    # What embeds compares candidates at the client (`Client.choose`).
    own = tuple(each.text for each in row.candidates) if sample.scores_texts else ()
    return Request(row.text, expert, image, candidates=own)


def _names(row: GateRow, sample: GateSample) -> tuple[str, ...]:
    """What a row's scores are of."""
    return tuple(each.text for each in row.candidates) or sample.labels


def _figures(
    record: GateRecord,
    name: str,
    sample: GateSample,
    answers: Sequence[Result],
    wanted: Sequence[Array],
    found: Sequence[Array],
    *,
    bound: float,
) -> ServedExpert:
    best, served = ([int(row.argmax()) for row in rows] for rows in (wanted, found))
    right = list(sample.right)
    digests = sorted({answer.digest for answer in answers})
    result = ServedExpert(
        name=name,
        rows=len(answers),
        # NaN where the server has other labels: every comparison with it is false.
        max_abs=float(np.max([np.abs(a - b).max() for a, b in zip(wanted, found, strict=True)])),
        argmax_flips=sum(a != b for a, b in zip(best, served, strict=True)),
        metric=sample.metric,
        metric_torch=score(sample.metric, right, best),
        metric_served=score(sample.metric, right, served),
        digest=digests[0] if len(digests) == 1 else ", ".join(digests),
    )
    entries = {answer.entry for answer in answers} - {""}
    return _with_fault(result, record, sample, entries, bound=bound)


def _with_fault(
    result: ServedExpert,
    record: GateRecord,
    sample: GateSample,
    entries: set[str],
    *,
    bound: float,
) -> ServedExpert:
    """The figures with the first thing that is wrong."""
    lost = result.metric_torch - result.metric_served
    checks = (
        (
            result.digest != sample.digest,
            f"{result.digest[:40]} answers, the gate compared {sample.digest[:19]}…; it was "
            "swapped: export the served expert again, or swap the compared one back",
        ),
        (
            entries - {record.entry} != set(),
            f"entry {next(iter(sorted(entries)), '')[:19]}… answers, this folder is "
            f"{record.entry[:19]}…; load the model again",
        ),
        (
            not result.max_abs <= bound,
            f"a score is off by {result.max_abs:.3g}, the recipe allows {bound:.3g}",
        ),
        (
            result.argmax_flips > record.argmax_flips,
            f"{result.argmax_flips} rows have another label than in PyTorch, the recipe allows "
            f"{record.argmax_flips}",
        ),
        (
            lost > record.metric_drop,
            f"{result.metric} is lower by {lost:.3g}, the recipe allows {record.metric_drop:.3g}",
        ),
    )
    faults = [text for is_wrong, text in checks if is_wrong]
    return ServedExpert(**{**asdict(result), "fault": faults[0]}) if faults else result


def require_verified(found: Sequence[ServedExpert]) -> None:
    """Raise where an expert is not served as its gate has seen.

    Raises:
        ServingError: names the first such expert.
    """
    wrong = [one for one in found if one.fault]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ServingError(f"expert {wrong[0].name!r}: {wrong[0].fault}{more}")
