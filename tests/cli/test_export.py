"""`pidep export`: NAME=RUN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pidep.cli.export import named_run
from pidep.errors import UsageError
from tests.cli.run import Done, assert_refused, untouched


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/a", Path("runs/a")),
        ("film=runs/a", ("film", Path("runs/a"))),
        ("film=runs/lr=2", ("film", Path("runs/lr=2"))),
        ("runs/lr=1", Path("runs/lr=1")),
        ("here=1", Path("here=1")),
    ],
)
def test_a_run_and_its_name(
    text: str, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here=1").mkdir()
    assert named_run(text) == expected


@pytest.mark.parametrize("text", ["=runs/a", "film=", "="])
def test_half_of_a_pair_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected RUN or NAME=RUN"):
        named_run(text)


def test_a_pair_without_a_run_names_the_run(work: Path, inside: Callable[..., Done]) -> None:
    with untouched(work):
        assert_refused(inside("export", "film=runs/gone"), r"runs/gone: no such expert folder")
