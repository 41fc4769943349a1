"""Starts wait longer while they do not last, and not where the process had worked well."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pidep.errors import ServingError
from pidep.serving import TritonServer
from pidep.serving.restarts import Restarts
from pidep.serving.supervisor import Supervisor


def waits(ends: list[tuple[float, float]], *, most: int = 100) -> list[float | None]:
    """What each end must wait, given by its time and by how long it had worked."""
    restarts = Restarts(most)
    return [restarts.wait_s(at, worked_s=worked) for at, worked in ends]


def test_a_crash_loop_waits_longer_each_time() -> None:
    assert waits([(10.0 * at, 1.0) for at in range(8)]) == [0, 1, 3, 7, 15, 30, 30, 30]


def test_the_first_end_waits_for_nothing() -> None:
    assert waits([(5.0, 0.1)]) == [0]


def test_who_worked_well_is_started_at_once() -> None:
    # Killed once a minute, as the soak does.
    assert waits([(60.0 * at, 55.0) for at in range(20)]) == [0.0] * 20
    assert waits([(0.0, 1.0), (5.0, 1.0), (10.0, 1.0), (70.0, 50.0), (75.0, 1.0)]) == [
        0,
        1,
        3,
        0,
        1,
    ]


def test_too_many_within_ten_minutes_are_the_last() -> None:
    ends = [(100.0 * at, 90.0) for at in range(4)]
    assert waits(ends, most=3) == [0, 0, 0, None]
    # Six minutes later the first one is forgotten.
    assert waits([*ends[:3], (601.0, 90.0)], most=3) == [0, 0, 0, 0]
    assert waits([(0.0, 90.0)], most=0) == [None]


def test_a_start_that_fails_has_not_worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = TritonServer(tmp_path)
    ended = ["it ended by itself"]
    monkeypatch.setattr(server, "ended", lambda: ended[0])
    monkeypatch.setattr(server, "stop", lambda *, at_once: None)

    def start() -> None:
        raise ServingError("its port is taken")

    monkeypatch.setattr(server, "start", start)
    now, waited = [1000.0], list[float]()

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(
        "pidep.serving.supervisor.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    )
    supervisor = Supervisor(server, max_restarts=6)
    now[0] += 90.0  # it had worked for long
    with pytest.raises(ServingError, match="its port is taken, after 6 restarts"):
        supervisor.run()
    assert waited == [0, 1, 3, 7, 15, 30]
