"""Settings models: how they are read, checked, and listed for the command line and the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pidep.deployment.settings import ExportSettings, SwapSettings
from pidep.errors import UsageError
from pidep.lab.settings import CompareSettings
from pidep.settings import Settings, Shown, checked, parameters_of, read_settings, settings_of
from pidep.tuning.settings import TuneSettings
from tools.docs.settings_tables import SETTINGS

DATA = Shown("Data")


class Sample(Settings):
    """A setting of every type."""

    task: Annotated[str, Shown("Data", argument=True)]
    """Task
    file."""
    rank: Annotated[int, DATA] = Field(default=8, ge=1, le=256)
    """Rank."""
    rate: Annotated[float | None, DATA] = Field(default=None, gt=0)
    """Rate."""
    kind: Annotated[Literal["lora", "prefix"], DATA] = "lora"
    """Kind."""
    seeds: Annotated[tuple[int, ...], DATA] = (0, 1)
    """Seeds."""
    pool: Annotated[Path | None, DATA] = None
    """Pool."""
    full: Annotated[bool, DATA] = False
    """Full."""
    other: Annotated[dict[str, Any], Shown("Other", flag=False)] = Field(default_factory=dict)
    """Other."""


def test_rows_for_help_and_documentation() -> None:
    found = [
        (row.flag, row.type_text, row.default_text, row.bounds_text) for row in settings_of(Sample)
    ]
    assert found == [
        ("TASK", "text", "", ""),
        ("--rank", "whole number", "8", "1 to 256"),
        ("--rate", "number", "", ""),
        ("--kind", "`lora` or `prefix`", "lora", ""),
        ("--seeds", "list of whole number", "0, 1", ""),
        ("--pool", "path", "", ""),
        ("--full", "yes or no", "no", ""),
        ("", "mapping", "{}", ""),
    ]
    assert settings_of(Sample)[0].help == "Task file."
    assert settings_of(Sample)[0].required


def test_parameters_of_a_function() -> None:
    found = {one.name: one.default for one in parameters_of(Sample, without=["task", "other"])}
    defaults = {"rank": 8, "rate": None, "kind": "lora", "seeds": (0, 1), "pool": None}
    assert found == {**defaults, "full": False}


def test_what_is_given_replaces_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text("task: film\nrank: 4\nseeds: [3]\n")
    found = read_settings(Sample, path, {"rank": 2}, where="sample")
    assert (found.task, found.rank, found.seeds) == ("film", 2, (3,))
    with pytest.raises(ValueError, match="frozen"):
        found.rank = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnk": 1}, r"sample: unknown key 'rnk' \(did you mean 'rank'\?\)"),
        ({"rank": 0}, "sample: `rank`: expected at least 1, found 0"),
        ({"rank": 300}, "sample: `rank`: expected at most 256, found 300"),
        ({"rate": 0}, "sample: `rate`: expected more than 0, found 0"),
        ({"kind": "prefx"}, r"sample: `kind`: .*, found 'prefx' \(did you mean 'prefix'\?\)"),
        ({"seeds": [0, "x"]}, "sample: `seeds`: expected a valid integer.*, found 'x'"),
        ({"task": None}, "sample: `task`: expected a valid string, found None"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked(Sample, {"task": "film", **values}, where="sample")


def test_a_missing_value_is_named() -> None:
    with pytest.raises(UsageError, match="sample: `task`: expected a value, found none"):
        checked(Sample, {}, where="sample")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: 0", r"sample\.yaml: rank: expected at least 1, found 0"),
        ("rnk: 1", r"sample\.yaml: unknown key 'rnk'"),
        ("[1]", r"sample\.yaml: expected a mapping of settings, found list"),
        ("{", r"sample\.yaml: not readable as YAML"),
        (f"other: {'[' * 5000}{']' * 5000}", r"not readable as YAML \(nested too deeply\)$"),
        (f"rank: {'9' * 5001}", r"not readable as YAML \(Exceeds the limit"),
        ("rank: 2026-13-45", r"not readable as YAML \(month must be in 1\.\.12\)"),
        ("seeds: &a [*a]", r"sample\.yaml: seeds: is nested too deeply"),
        (f"rate: 1{'0' * 400}", r"sample\.yaml: rate: has more than 64 bits"),
        ("rate: 1e400", r"sample\.yaml: rate: expected a finite number, found '1e400'"),
        ("rate: .inf", r"sample\.yaml: rate: expected a finite number, found inf"),
        ('pool: "a\\ud83d"', r"sample\.yaml: pool: 'a\\ud83d' is not UTF-8"),
        ('pool: "a\\0"', r"sample\.yaml: pool: has a zero byte"),
        ('other: {a: ["\\ud83d"]}', r"sample\.yaml: other: '\\ud83d' is not UTF-8"),
        ('"\\ud83d": 1', r"sample\.yaml: a key '\\ud83d' is not UTF-8"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_settings(Sample, path, {"task": "film"}, where="sample")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(path))


NEEDED: dict[type[Settings], dict[str, Any]] = {
    TuneSettings: {"task": "a"},
    CompareSettings: {"tasks": ["a", "b"], "shots": [1]},
}


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (TuneSettings, {"seed": 2**62}, "`seed`: expected at most 4294967295"),
        (TuneSettings, {"learning_rate": 1e300}, "`learning_rate`: expected at most 1000"),
        (TuneSettings, {"temperature": 1e-320}, "`temperature`: expected at least 0.000001"),
        (CompareSettings, {"seeds": [-1]}, "`seeds`: expected numbers from 0 to 4294967295"),
        (ExportSettings, {"max_rank": 2**40}, "`max_rank`: expected at most 4096"),
        (SwapSettings, {"timeout": 1e300}, "`timeout`: expected at most 86400"),
    ],
)
def test_a_number_that_torch_or_numpy_cannot_hold_is_refused(
    model: type[Settings], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        checked(model, {**NEEDED.get(model, {}), **values}, where="here")


EXTREMES: list[Any] = ["9" * 5001, 10**400, 10**5000, "1e400", "nan", "\ud83d", "\0", 1 << 64]
TEXTS = ("9" * 5001, "1e400", "nan")
"""Numbers that are texts as good as others."""
EVERY_SETTING = [(model, one) for model in SETTINGS.values() for one in settings_of(model)]


@pytest.mark.parametrize(
    ("model", "setting"),
    EVERY_SETTING,
    ids=lambda part: getattr(part, "name", None) or part.__name__,
)
def test_every_setting_refuses_extremes_in_one_line(model: type[Settings], setting: Any) -> None:
    """Each setting takes a value, or refuses it with one line that names the setting."""
    needed = {one.name: ("a", "b") for one in settings_of(model) if one.many and one.required}
    needed |= {
        one.name: 1 if one.kind is int else (one.choices or ("a",))[0]
        for one in settings_of(model)
        if one.required and not one.many
    }
    for value in EXTREMES:
        if setting.kind in (str, Path) and not setting.choices and value in TEXTS:
            continue
        with pytest.raises(UsageError) as error:
            checked(model, {**needed, setting.name: value}, where="here")
        assert setting.name in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400
