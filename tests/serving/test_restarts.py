"""Starts wait longer while they do not last, and not where the process had worked well."""

from __future__ import annotations

from pidep.serving.restarts import Restarts


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
