"""Hosts and ports of a server: a wrong address, a taken port or an open host is one line."""

from __future__ import annotations

import socket

import pytest

from pidep.errors import ServingError, UsageError
from pidep.serving.addresses import (
    Ports,
    channel_options,
    free_ports,
    is_loopback,
    require_free,
)


def test_ports_that_are_free_differ() -> None:
    ports = free_ports()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "127.0.0.2", "LOCALHOST"])
def test_loopback_needs_no_permission(host: str) -> None:
    """Triton Server takes addresses only, so a name is resolved before it starts."""
    resolved = Ports(host=host).resolved()
    assert socket.inet_aton(resolved.host)
    assert resolved.host.count(".") == 3
    assert is_loopback(resolved.host)
    assert resolved.local_host == resolved.host
    assert not resolved.warning


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "0"])
def test_other_machines_need_permission(host: str) -> None:
    with pytest.raises(UsageError, match=r"`host`: .* no authentication; .*`allow_remote`"):
        Ports(host=host).resolved()
    resolved = Ports(host=host, allow_remote=True).resolved()
    assert not is_loopback(resolved.host)
    assert "no authentication" in resolved.warning


def test_a_server_on_every_address_is_asked_at_this_machine() -> None:
    ports = Ports(host="0.0.0.0", allow_remote=True).resolved()
    assert (ports.host, ports.local_host) == ("0.0.0.0", "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    [
        "::1",
        "[::1]",
        "::",
        "fe80::1%lo",
        "",
        "no such host",
        "a" * 70 + ".example",
        "127.0.0.1:8000",
    ],
)
def test_what_is_no_ipv4_address_is_called_that(host: str) -> None:
    with pytest.raises(UsageError, match=r"`host`: expected an IPv4 address of this machine"):
        Ports(host=host).resolved()


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        (Ports(8000, 8000, 8002), "`grpc_port`: 8000 is the HTTP port already"),
        (Ports(8000, 8001, 8000), "`metrics_port`: 8000 is the HTTP port already"),
        (Ports(8000, 8001, 8001), "`metrics_port`: 8001 is the gRPC port already"),
    ],
)
def test_equal_ports_are_named(ports: Ports, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ports.resolved()


@pytest.mark.parametrize("what", ["HTTP", "gRPC", "metrics"])
def test_a_taken_port_is_named(what: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        ports = Ports(**{**vars(free_ports()), what.lower(): number})
        with pytest.raises(ServingError, match=rf"{what} port 127\.0\.0\.1:{number} is taken"):
            require_free(ports)


def test_an_address_of_another_machine_is_no_taken_port() -> None:
    ports = Ports(host="192.0.2.7", allow_remote=True).resolved()
    with pytest.raises(UsageError, match=r"`host`: 192\.0\.2\.7 is no address of this machine"):
        require_free(ports)


def test_no_proxy_is_asked_for_this_machine() -> None:
    assert channel_options("gpu7.example:8001") == {}
    for url in ("127.0.0.1:8001", "localhost:8001", "[::1]:8001", "127.9.9.9:1"):
        assert ("grpc.enable_http_proxy", 0) in channel_options(url)["channel_args"]
