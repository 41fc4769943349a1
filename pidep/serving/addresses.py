"""Where a server listens, checked before it starts: a host of this machine, three free ports."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass, replace
from typing import Any

from pidep.errors import ServingError, UsageError

__all__ = ["LOOPBACK", "Ports", "channel_options", "free_ports", "is_loopback", "require_free"]

LOOPBACK = "127.0.0.1"
_EVERY_ADDRESS = "0.0.0.0"


@dataclass(frozen=True)
class Ports:
    """Where the server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    host: str = LOOPBACK
    """An IPv4 address, or a name that stands for one."""
    allow_remote: bool = False
    """Whether `host` may be an address that other machines reach."""

    def named(self) -> dict[str, int]:
        """Ports by what listens there."""
        return {"HTTP": self.http, "gRPC": self.grpc, "metrics": self.metrics}

    @property
    def local_host(self) -> str:
        """The address at which clients on this machine reach the server."""
        return LOOPBACK if self.host == _EVERY_ADDRESS else self.host

    @property
    def warning(self) -> str:
        """The warning before the server starts; empty where only this machine can ask it."""
        if is_loopback(self.host):
            return ""
        return (
            f"warning: other machines can ask this server at {self.host}; it has no "
            "authentication, so protect the ports by a firewall or a proxy"
        )

    def resolved(self) -> Ports:
        """The same, with the IPv4 address in the place of a name.

        Raises:
            UsageError: no IPv4 address, one that other machines reach without `allow_remote`, or a
                port that is named twice.
        """
        address = _ipv4(self.host)
        if not is_loopback(address) and not self.allow_remote:
            raise UsageError(
                f"`host`: {self.host} lets other machines ask this server, which has no "
                "authentication; keep 127.0.0.1, or give `allow_remote` where a firewall or proxy "
                "protects the ports"
            )
        seen: dict[int, str] = {}
        for what, port in self.named().items():
            if port in seen:
                raise UsageError(
                    f"`{what.lower()}_port`: {port} is the {seen[port]} port already; "
                    "expected three different ports"
                )
            seen[port] = what
        return replace(self, host=address)


def free_ports() -> Ports:
    """Three ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        # All are bound before one is closed, so that they differ.
        for handle in sockets:
            handle.bind((LOOPBACK, 0))
        http, grpc, metrics = (handle.getsockname()[1] for handle in sockets)
        return Ports(http, grpc, metrics)
    finally:
        for handle in sockets:
            handle.close()


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone.

    >>> is_loopback("localhost"), is_loopback("127.0.1.1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def channel_options(url: str) -> dict[str, Any]:
    """Options of tritonclient's gRPC clients: gRPC would ask a proxy even for this machine.

    Args:
        url: host:port.
    """
    if not is_loopback(url.rpartition(":")[0]):
        return {}
    # tritonclient's own arguments are replaced, so its sizes (the largest) are repeated here.
    sizes = [(f"grpc.max_{way}_message_length", 2**31 - 1) for way in ("send", "receive")]
    return {"channel_args": [*sizes, ("grpc.enable_http_proxy", 0)]}


def _ipv4(host: str) -> str:
    """The IPv4 address of a host.

    Raises:
        UsageError: there is none.
    """
    try:
        if ":" not in host and host:
            # Triton Server takes no names: `localhost` never becomes ready.
            return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except (OSError, UnicodeError):
        pass  # The message below says all that is known.
    raise UsageError(
        f"`host`: expected an IPv4 address of this machine such as {LOOPBACK}, or its name, "
        f"found {host!r}"
    )


def require_free(ports: Ports) -> None:
    """Triton Server ends with a long log where it cannot listen; this is one line.

    Raises:
        UsageError: the host is no address of this machine.
        ServingError: a port is taken or not allowed.
    """
    for what, port in ports.named().items():
        setting = f"`{what.lower()}_port`"
        with socket.socket() as probe:
            # As the server does: a port that was closed a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ports.host, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise UsageError(
                        f"`host`: {ports.host} is no address of this machine; choose one of its own"
                    ) from error
                fault, remedy = "cannot be opened", f"choose {setting}"
                if error.errno == errno.EADDRINUSE:
                    fault, remedy = "is taken", f"stop what listens there or choose {setting}"
                raise ServingError(
                    f"{what} port {ports.host}:{port} {fault} ({error.strerror}); {remedy}"
                ) from error
