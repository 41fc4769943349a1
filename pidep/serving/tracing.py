"""Traces of requests by Triton Server itself, sent to an OpenTelemetry collector."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pidep.errors import UsageError

__all__ = ["TRACE_RATE", "Tracing"]

TRACE_RATE = 1000
"""Triton Server's own default."""
_URL = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+/[A-Za-z0-9._~/-]*")
"""No user or password: every local user can read Triton Server's command line."""


@dataclass(frozen=True)
class Tracing:
    """Where spans go, and of how many requests."""

    url: str
    """Of the collector, for OTLP over HTTP, such as `http://collector:4318/v1/traces`."""
    rate: int = TRACE_RATE
    """One request of so many is traced."""

    def __post_init__(self) -> None:
        """Check the address.

        Raises:
            UsageError: it is none.
        """
        if not _URL.fullmatch(self.url) or not self._has_port:
            raise UsageError(
                f"`trace_url`: expected the address of a collector without a password, such as "
                f"http://127.0.0.1:4318/v1/traces, found {self.url!r}"
            )

    @property
    def _has_port(self) -> bool:
        try:
            return 0 < self.port < 65536
        except ValueError:  # out of range, or brackets that do not close
            return False

    @classmethod
    def of(cls, url: str | None, rate: int) -> Tracing | None:
        """What two settings mean; None without an address."""
        return None if url is None else cls(url, rate)

    @property
    def port(self) -> int:
        """The collector's port."""
        address = urlsplit(self.url)
        return address.port or (443 if address.scheme == "https" else 80)

    def options(self, service: str) -> list[str]:
        """Options of Triton Server.

        Args:
            service: the name that spans have for this server.

        >>> Tracing("http://127.0.0.1:4318/v1/traces").options("pidep")[0]
        '--trace-config=mode=opentelemetry'
        """
        return [
            "--trace-config=mode=opentelemetry",
            f"--trace-config=opentelemetry,url={self.url}",
            f"--trace-config=opentelemetry,resource=service.name={service}",
            f"--trace-config=rate={self.rate}",
            "--trace-config=level=TIMESTAMPS",
        ]
