"""Output of a page compared with the output of its run: allowed and forbidden differences."""

from __future__ import annotations

import pytest

from tools.docs.compare_output import TOLERANCE, difference, same_line


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("done", "done"),
        ("accuracy 0.7067", "accuracy 0.6500"),
        ("max abs 4.29e-06", "max abs 1.5e-07"),
        ("in 0.163 s", "in 12.5 s"),
        ("report.html  104 kB", "report.html 131 kB"),
        ("runs/movie  sha256:…", "runs/movie  sha256:27f817586e11"),
        ("movie: sha256:27f8… → sha256:8428… in 0.1 s", "movie: sha256:aaaa → sha256:bbbb in 3 s"),
        ("label 'sales' is unknown…", "label 'sales' is unknown (a, b)"),
        ("│ movie │ 128 │", "│ movie      │ 128  │"),
        ("┏━━━━┳━━┓", "┏━━━━━━━━┳━━━━┓"),
    ],
)
def test_these_lines_agree(wanted: str, given: str) -> None:
    assert difference([wanted], [given]) is None


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("done", "gone"),
        ("rows 128", "rows 129"),
        ("accuracy 0.7067", "accuracy 0.5"),
        ("accuracy 0.7", "accuracy nan"),
        ("accuracy 0.7", "accuracy"),
        ("0 flips", "1 flips"),
        ("movie sha256:27f817586e11", "nyt sha256:27f817586e11"),
        ("movie sha256:27f817586e11", "movie none"),
    ],
)
def test_these_lines_differ(wanted: str, given: str) -> None:
    found = difference([wanted], [given])
    assert found is not None
    assert repr(given) in found


def test_the_tolerance_is_what_the_quickstart_says() -> None:
    assert same_line("0.50", "0.65")
    assert not same_line("0.50", "0.66")
    assert TOLERANCE == 0.15


def test_dots_alone_stand_for_any_lines() -> None:
    assert difference(["first", "…", "last"], ["first", "last"]) is None
    assert difference(["first", "…", "last"], ["first", "a", "b", "last"]) is None
    assert difference(["…"], []) is None
    assert difference(["first", "…"], ["second"]) == "expected 'first', found 'second'"


def test_progress_lines_do_not_count() -> None:
    page = ["runs/movie/report.html  104 kB"]
    slow = ["pidep: starting (0:05 so far)", "pidep: own, 9 of 20, loss 0.2 (1:00:05 so far)"]
    assert difference(page, [*slow, *page]) is None
    assert difference(page, ["pidep: no run folder", *page]) is not None


def test_rows_of_a_table_may_stand_in_another_order() -> None:
    page = ["┡━━━━┩", "│ amazon │ 0.46 │", "│ nyt │ 0.44 │", "└────┘"]
    assert difference(page, [page[0], "│ nyt │ 0.50 │", "│ amazon │ 0.45 │", page[3]]) is None
    assert difference(page, [page[0], "│ nyt │ 0.50 │", page[3]]) is not None
    assert difference(page, [page[0], "│ nyt │ 0.50 │", "│ nyt │ 0.45 │", page[3]]) is not None
    assert difference(["b", "a"], ["a", "b"]) is not None


def test_missing_and_further_lines_are_named() -> None:
    assert difference(["a", "b"], ["a"]) == "expected 'b', found the end of the output"
    assert difference(["a"], ["a", "b"]) == "expected the end of the output, found 'b'"
