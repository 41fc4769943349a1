"""Metrics of experts and their versions, on Triton Server's own `/metrics`."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from pidep.errors import AnswerError, ExpertError, OverloadError, PidepError
from pidep.runtime.answer import Answer
from pidep.serving.batcher import ShedReason
from pidep.serving.stubs import stubs_of

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
    "pidep_shed_rows_total": ("COUNTER", "Rows not answered under overload, by reason."),
    "pidep_queue_seconds_total": ("COUNTER", "Seconds that requests waited for their batch."),
    "pidep_requests_total": ("COUNTER", "Requests that came into a batch."),
    "pidep_resident_experts": ("GAUGE", "Experts and mixtures that are in memory."),
    "pidep_cold_experts": ("GAUGE", "Experts and mixtures that are loaded when a row names them."),
    "pidep_resident_bytes": ("GAUGE", "Bytes of the slots that experts take."),
    "pidep_refused_versions": ("GAUGE", "Versions that the store names and the server refuses."),
    "pidep_store_revision": ("GAUGE", "Revision of the store's manifest that is served."),
    "pidep_swaps_total": ("COUNTER", "Times that the served experts were replaced."),
    "pidep_evictions_total": ("COUNTER", "Experts that left memory for others."),
    "pidep_cold_loads_total": ("COUNTER", "Experts that were loaded because a row named them."),
}
_GONE = 256
"""Versions that have gone, and whose rows are still listed: they may come back. Each metric that is
made anew takes 200 bytes of the stub's shared memory for good (Triton Server 2.51).
"""
_BUCKETS = {
    "pidep_batch_rows": [1, 2, 4, 8, 16, 32, 64],
    "pidep_batch_seconds": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0],
}


def error_code(error: PidepError) -> str:
    """Triton Server's code of a row's error. Over HTTP clients see 400, 404, 500 and 503."""
    if isinstance(error, ExpertError):
        return "NOT_FOUND"
    if isinstance(error, OverloadError):
        return "UNAVAILABLE"
    return "INTERNAL" if isinstance(error, AnswerError) else "INVALID_ARG"


class Metrics:
    """Counts what a model does. Without Triton Server's metrics it does nothing.

    While a model is loaded again, its old and its new process run side by side. Metrics of one name
    and the same labels are one object in the server then, and a process that removed it would leave
    the other with a dangling pointer: the server ends or hangs (2.51). So nothing is removed at the
    end, and the counters go on where they were.
    """

    def __init__(self, model: str) -> None:
        """Register the families with the server.

        Args:
            model: name of the served model, a label of every metric.
        """
        self._model = model
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], Any] = {}
        self._lock = threading.Lock()
        """Requests are refused on one thread and answered on others."""
        self._due: deque[tuple[Sequence[str], Sequence[Answer | PidepError], float]] = deque()
        """Batches that are not counted yet."""
        self._counted: dict[str, int] = {}
        """What counters of totals have been raised to."""
        try:
            import triton_python_backend_utils as pb_utils

            for name, (kind, text) in _FAMILIES.items():
                self._families[name] = pb_utils.MetricFamily(
                    name=name, description=text, kind=getattr(pb_utils.MetricFamily, kind)
                )
            # From the start, so that a rate over them sees the first one.
            for reason in get_args(ShedReason):
                self._metric("pidep_shed_rows_total", (("reason", reason),))
        except Exception as error:  # metrics are off, or a server of another version
            self._families = {}
            _log.warning("metrics of experts are not available: %s", error)

    def batch(
        self, experts: Sequence[str], answers: Sequence[Answer | PidepError], *, seconds: float
    ) -> None:
        """Note a batch for `count`.

        Args:
            experts: the name that each row asked for.
        """
        if self._families and answers:
            self._due.append((experts, answers, seconds))

    def count(self) -> None:
        """Count the batches that were noted.

        After their replies: each metric is a call of 0.1 ms to the server.
        """
        with self._lock:
            while self._due:
                self._count(*self._due.popleft())

    def _count(
        self, experts: Sequence[str], answers: Sequence[Answer | PidepError], seconds: float
    ) -> None:
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

    def waited(self, requests: int, seconds: float) -> None:
        """Count the requests of a batch, and the time that they waited together."""
        if self._families:
            with self._lock:
                self._metric("pidep_requests_total").increment(requests)
                self._metric("pidep_queue_seconds_total").increment(seconds)

    def shed(self, reason: ShedReason, rows: int) -> None:
        """Count rows that overload left without an answer.

        Args:
            reason: of `ShedReason`.
        """
        if self._families:
            with self._lock:
                self._metric("pidep_shed_rows_total", (("reason", reason),)).increment(rows)

    def refused(self, errors: Sequence[PidepError]) -> None:
        """Count requests that could not be read: their rows and experts are not known."""
        if not self._families:
            return
        with self._lock:
            for code, count in Counter(map(error_code, errors)).items():
                labels = (("expert", ""), ("code", code))
                self._metric("pidep_row_errors_total", labels).increment(count)

    def residents(
        self, digests: Mapping[str, str], *, counted: Mapping[str, int], **gauges: float
    ) -> None:
        """Set the gauges after a change, and forget the first of many versions that have gone.

        Args:
            digests: served name to digest.
            counted: `swaps`, `evictions` and `cold_loads` since the start.
            gauges: `resident_bytes`, `cold_experts`, `refused_versions` and `store_revision`.
        """
        if not self._families:
            return
        with self._lock:
            self._set(digests, counted, gauges)

    def _set(
        self, digests: Mapping[str, str], counted: Mapping[str, int], gauges: Mapping[str, float]
    ) -> None:
        for name, total in counted.items():
            self._metric(f"pidep_{name}_total").increment(total - self._counted.get(name, 0))
            self._counted[name] = total
        resident = len(digests) - gauges["cold_experts"]
        for name, value in {"resident_experts": resident, **gauges}.items():
            self._metric(f"pidep_{name}").set(value)
        versions = {digest[:19] for digest in digests.values()}
        gone = [
            (family, labels)
            for family, labels in self._metrics
            # The bare backbone and the status are versions of no name.
            if family == "pidep_rows_total"
            and dict(labels)["expert"][:1] != "@"
            and dict(labels)["version"] not in versions
        ]
        if len(gone) > _GONE and self._is_alone():
            for key in gone[:-_GONE]:
                del self._metrics[key]

    def _is_alone(self) -> bool:
        """Whether no other load of the model runs beside this one."""
        return sum(stub.model == self._model for stub in stubs_of(os.getppid())) < 2

    def _metric(self, family: str, labels: Labels = ()) -> Any:
        key = (family, labels)
        if key not in self._metrics:
            more = {"buckets": _BUCKETS[family]} if family in _BUCKETS else {}
            values = {"model": self._model, **dict(labels)}
            self._metrics[key] = self._families[family].Metric(labels=values, **more)
        return self._metrics[key]
