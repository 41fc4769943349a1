"""Options from settings: flags override YAML, lists take commas, older spellings work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from pidep.cli.command import PanelCommand, with_flags
from pidep.cli.options import options
from pidep.errors import UsageError
from pidep.settings import Settings, Shown


class Sample(Settings):
    """Settings of a command that exists in this test only."""

    task: Annotated[str, Shown("Data", argument=True)]
    """Task."""
    seeds: Annotated[tuple[int, ...], Shown("Data", aliases=("--seed",))] = (0, 1)
    """Seeds."""
    texts: Annotated[tuple[str, ...], Shown("Data", commas=False)] = ()
    """Texts."""
    full: Annotated[bool, Shown("Data")] = False
    """Full."""
    pool: Annotated[Path | None, Shown("Data")] = None
    """Pool, for `full` runs."""


Run = Callable[..., tuple[Sample, bool]]


@pytest.fixture
def run() -> Run:
    """Run the command with these arguments; gives the settings it was called with."""
    found: list[tuple[Sample, bool]] = []

    @options(Sample, yaml=True)
    def sample(settings: Sample, json: bool = False) -> None:
        """Do nothing."""
        if settings.task == "refused":
            raise UsageError("give `pool`, or `seeds=1,2`, never `stranger`")
        found.append((settings, json))

    app = typer.Typer(add_completion=False)
    app.command(cls=PanelCommand)(sample)

    def call(*arguments: object) -> tuple[Sample, bool]:
        app(list(map(str, arguments)), prog_name="sample", standalone_mode=False)
        return found[-1]

    return call


def test_only_what_is_given_counts(run: Run) -> None:
    assert run("film") == (Sample(task="film"), False)
    assert run("film", "--full", "--json", "--pool", "p") == (
        Sample(task="film", full=True, pool=Path("p")),
        True,
    )


def test_lists_take_commas_and_repeats_but_texts_keep_theirs(run: Run) -> None:
    found, _ = run("film", "--seeds", "3, 4", "--seeds", 5, "--texts", "a, b", "--texts", "c")
    assert found.seeds == (3, 4, 5)
    assert found.texts == ("a, b", "c")


def test_an_older_spelling_works(run: Run) -> None:
    assert run("film", "--seed", 7)[0].seeds == (7,)


def test_flags_win_over_the_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text("task: film\nseeds: [8]\nfull: true\n")
    assert run("--config", path)[0] == Sample(task="film", seeds=(8,), full=True)
    assert run("book", "--config", path, "--no-full")[0] == Sample(task="book", seeds=(8,))


class Place(Settings):
    """A second model of the same command."""

    out: Annotated[Path, Shown("Output")]
    """Folder."""
    again: Annotated[bool, Shown("Output")] = False
    """Once more."""
    evaluate: Annotated[bool, Shown("Output")] = True
    """Evaluate."""


def test_a_command_with_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[tuple[Sample, Place]] = []

    @options(Sample, Place, yaml=True)
    def sample(settings: Sample, place: Place) -> None:
        """Do nothing."""
        found.append((settings, place))

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=PanelCommand)(sample)
    (tmp_path / "sample.yaml").write_text("seeds: [8]\n")

    def call(*arguments: object) -> None:
        app(list(map(str, arguments)), prog_name="sample", standalone_mode=False)

    call("film", "--out", "o", "--config", tmp_path / "sample.yaml", "--again", "--no-evaluate")
    assert found == [
        (Sample(task="film", seeds=(8,)), Place(out=Path("o"), again=True, evaluate=False))
    ]
    with pytest.raises(UsageError, match=r"^sample: --out: expected a value, found none$"):
        call("film")
    # The file holds settings of the first model only.
    (tmp_path / "sample.yaml").write_text("out: o\n")
    with pytest.raises(UsageError, match=r"unknown key 'out'"):
        call("film", "--out", "o", "--config", tmp_path / "sample.yaml")
    capsys.readouterr()
    call("--help")
    shown = capsys.readouterr().out
    assert "--out PATH" in shown
    assert "[required]" in shown
    # No file can turn `again` on, so it needs no option that turns it off.
    assert "--no-again" not in shown
    assert "--full / --no-full" in shown
    assert "--evaluate / --no-evaluate" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("film", "--seeds", "a"), r"^sample: --seeds: expected a valid integer.*, found 'a'$"),
        ((), r"^sample: TASK: expected a value, found none$"),
        (("refused",), r"^give --pool, or --seeds 1,2, never `stranger`$"),
    ],
)
def test_messages_name_flags(run: Run, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(*arguments)


def test_flags_in_a_message() -> None:
    flags = {"top_k": "--top-k"}
    assert with_flags("give `top_k`, or `top_k=0`; `other`", flags) == (
        "give --top-k, or --top-k 0; `other`"
    )
