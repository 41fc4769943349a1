"""Metrics of experts and their versions, on Triton Server's own `/metrics`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pidep.errors import AnswerError, ExpertError, PidepError
from pidep.runtime.answer import Answer

__all__ = ["Metrics", "error_code"]

_log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["COUNTER", "GAUGE", "HISTOGRAM"]
Labels: TypeAlias = tuple[tuple[str, str], ...]

_FAMILIES: dict[str, tuple[Kind, str]] = {
    "pidep_rows_total": ("COUNTER", "Rows answered, by expert and version."),
    "pidep_row_errors_total": (
        "COUNTER",
        "Rows not answered, and requests not read, by code.",
    ),
    "pidep_batch_rows": ("HISTOGRAM", "Rows of a batch."),
    "pidep_batch_seconds": ("HISTOGRAM", "Seconds that a batch took, without its time in a queue."),
    "pidep_resident_experts": ("GAUGE", "Experts and mixtures that are served."),
    "pidep_resident_bytes": ("GAUGE", "Bytes of the slots that experts take."),
    "pidep_refused_versions": ("GAUGE", "Versions that the store names and the server refuses."),
    "pidep_store_revision": ("GAUGE", "Revision of the store's manifest that is served."),
    "pidep_swaps_total": ("COUNTER", "Times that the served experts were replaced."),
}
_BUCKETS = {
    "pidep_batch_rows": [1, 2, 4, 8, 16, 32, 64],
    "pidep_batch_seconds": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0],
}


def error_code(error: PidepError) -> str:
    """Triton Server's code of a row's error. Over HTTP clients see 400, 404 and 500."""
    if isinstance(error, ExpertError):
        return "NOT_FOUND"
    return "INTERNAL" if isinstance(error, AnswerError) else "INVALID_ARG"


class Metrics:
    """Counts what a model does. Without Triton Server's metrics it does nothing."""

    def __init__(self, model: str) -> None:
        """Register the families with the server.

        Args:
            model: name of the served model, a label of every metric.
        """
        self._model = model
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], Any] = {}
        try:
            import triton_python_backend_utils as pb_utils

            for name, (kind, text) in _FAMILIES.items():
                self._families[name] = pb_utils.MetricFamily(
                    name=name, description=text, kind=getattr(pb_utils.MetricFamily, kind)
                )
        except Exception as error:  # metrics are off, or a server of another version
            self._families = {}
            _log.warning("metrics of experts are not available: %s", error)

    def batch(
        self, experts: Sequence[str], answers: Sequence[Answer | PidepError], *, seconds: float
    ) -> None:
        """Count a batch.

        Args:
            experts: the name that each row asked for.
        """
        if not self._families or not answers:
            return
        answered: Counter[Labels] = Counter()
        failed: Counter[Labels] = Counter()
        for name, answer in zip(experts, answers, strict=True):
            if isinstance(answer, PidepError):
                # A client chooses the name of an unknown expert, and labels must stay few.
                known = "" if isinstance(answer, ExpertError) else name
                failed[("expert", known), ("code", error_code(answer))] += 1
            else:
                answered[("expert", name), ("version", answer.digest[:19])] += 1
        for labels, rows in answered.items():
            self._metric("pidep_rows_total", labels).increment(rows)
        for labels, rows in failed.items():
            self._metric("pidep_row_errors_total", labels).increment(rows)
        self._metric("pidep_batch_rows").observe(len(answers))
        self._metric("pidep_batch_seconds").observe(seconds)

    def refused(self, errors: Sequence[PidepError]) -> None:
        """Count requests that could not be read: their rows and experts are not known."""
        if not self._families:
            return
        for code, count in Counter(map(error_code, errors)).items():
            labels = (("expert", ""), ("code", code))
            self._metric("pidep_row_errors_total", labels).increment(count)

    def residents(self, digests: Mapping[str, str], **gauges: float) -> None:
        """Set the gauges after a swap, and forget the rows of versions that have gone.

        Args:
            digests: served name to digest.
            gauges: `resident_bytes`, `refused_versions` and `store_revision`.
        """
        if not self._families:
            return
        self._metric("pidep_swaps_total").increment(1)
        for name, value in {"resident_experts": len(digests), **gauges}.items():
            self._metric(f"pidep_{name}").set(value)
        versions = {digest[:19] for digest in digests.values()}
        for family, labels in list(self._metrics):
            found = dict(labels).get("version", "")
            # The bare backbone and the status are versions of no name.
            is_named = family == "pidep_rows_total" and dict(labels)["expert"][:1] != "@"
            if is_named and found not in versions:
                del self._metrics[family, labels]

    def close(self) -> None:
        """Leave the server's registry: metrics first, then their families."""
        self._metrics.clear()
        self._families.clear()

    def _metric(self, family: str, labels: Labels = ()) -> Any:
        key = (family, labels)
        if key not in self._metrics:
            more = {"buckets": _BUCKETS[family]} if family in _BUCKETS else {}
            values = {"model": self._model, **dict(labels)}
            self._metrics[key] = self._families[family].Metric(labels=values, **more)
        return self._metrics[key]
