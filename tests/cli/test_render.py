"""Tables keep every word whole, and take brackets and colons as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidep.cli import render
from pidep.cli.infer import short

WORD = st.text("abcdefgxyz0123456789:…", min_size=1, max_size=40)
CELL = st.lists(WORD, max_size=6).map(" ".join)


def printed(
    capsys: pytest.CaptureFixture[str],
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    capsys.readouterr()
    render.table(title, columns, rows)
    return capsys.readouterr().out


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    width=st.integers(1, 120),
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4),
)
def test_no_word_is_broken_at_any_width(
    width: int,
    rows: list[tuple[str, str, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = printed(capsys, "a title", ["asked", "label", "scores"], rows)
    found = sorted(re.findall(r"[^\s│┃─-╿]+", out))
    assert found == sorted(f"a title asked label scores {' '.join(map(' '.join, rows))}".split())


def test_without_a_terminal_each_row_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    scores = "  ".join(f"label{number} 0.{number:03}" for number in range(30))
    out = printed(capsys, "a title", ["asked", "scores"], [["a film", scores]])
    assert f"│ a film │ {scores} │" in out.splitlines()


def test_a_long_title_stays_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    title = f"out/folded  sha256:{'0' * 64}"
    assert title in printed(capsys, title, ["site"], [["a"]]).splitlines()


@pytest.mark.parametrize("text", ["[/x]", "[red]a", "a :star: b", "[link=x]"])
def test_markup_is_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, text, [text], [[text]])
    assert out.count(text) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a film", "a film"),
        ("word " * 20, "word word word word word word word word word word word …"),
        ("字" * 80, "字" * 59 + "…"),
        ("x" * 70 + " y", "x" * 59 + "…"),
    ],
)
def test_a_text_is_shortened_between_words(text: str, expected: str) -> None:
    assert short(text) == expected
