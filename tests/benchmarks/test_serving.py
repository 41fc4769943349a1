"""The claims of the serving benchmark follow from its figures, and its requests are Triton's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving_claims import claims_of
from benchmarks.serving_load import Asked, find_wrk, texts, write_requests
from pidep.errors import UsageError
from tests.serving.stub_server import stub_server


def raw(
    *,
    p50_ms: float = 10.5,
    by_hand_ms: float = 10.2,
    rows_per_s: float = 95.0,
    lost: int = 0,
    swaps: int = 10_000,
) -> dict[str, Any]:
    load = {"requests": 9, "not_200": lost, "socket_errors": 0, "timeouts": 0}
    turns = [
        {
            "served": {"connections": count, "p50_ms": p50_ms, "rows_per_s": rate},
            "in_process": {"rows_of_a_batch": count, "p50_ms": 10.0, "rows_per_s": 100.0},
            **({"by_hand": {"p50_ms": by_hand_ms}} if count == 1 else {}),
        }
        # The best number of connections counts; one client's rate does not.
        for count, rate in ((1, 500.0), (8, rows_per_s), (16, 1.0))
    ]
    memory = [{"swaps": at, "server": 1.0, "stub": 99.0} for at in range(5)]
    return {
        "rates": {"rounds": turns},
        "swaps": {"swaps": swaps, "memory": memory, "loads": [load]},
    }


@pytest.mark.parametrize(
    ("figures", "unmet"),
    [
        ({}, []),
        (
            {"p50_ms": 11.5, "by_hand_ms": 11.4},
            ["ms that serving adds to p50 of one client"],
        ),
        (
            {"by_hand_ms": 9.9},
            ["ms of it over a model written by hand, without queue, limits and metrics"],
        ),
        ({"rows_per_s": 89.0}, ["rows/s when saturated, over the bank in process"]),
        ({"lost": 1}, ["requests lost of 9 during 10000 swaps"]),
        ({"swaps": 9_990}, ["swaps under load, each shown by an answer"]),
    ],
)
def test_claims_follow_from_the_figures(figures: dict[str, Any], unmet: list[str]) -> None:
    claims = claims_of(raw(**figures))
    assert len(claims) == 6
    assert [claim["claim"] for claim in claims if not claim["met"]] == unmet


def test_a_request_is_the_protocol_s(tmp_path: Path) -> None:
    """A server that reads the protocol finds the row in the written bytes."""
    import http.client

    path = tmp_path / "requests"
    write_requests(path, [Asked("a film", "movie")])
    line, _, body = path.read_bytes().partition(b"\n")
    where, head, size = line.decode().split()
    assert len(body) == int(size)
    with stub_server("http") as server:
        connection = http.client.HTTPConnection(server.url)
        connection.request("POST", where, body, {"Inference-Header-Content-Length": head})
        assert connection.getresponse().status == 200
        connection.close()
    (asked,) = server.asked
    assert asked.model == "pidep_bank"
    assert asked.tensors == {"TEXT": [b"a film"], "EXPERT": [b"movie"]}


def test_texts_have_many_lengths() -> None:
    sizes = {len(text.split()) for text in texts(200)}
    assert (min(sizes), max(sizes)) == (4, 40)
    assert len(sizes) > 15


def test_without_wrk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="apt-get install -y wrk"):
        find_wrk()
