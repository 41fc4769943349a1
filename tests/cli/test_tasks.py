"""`pidep tasks`: listing needs no package, showing draws few pictures, an export can be
tuned on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pidep.gallery.suite.facts import FACTS
from pidep.tasks.data import load_data
from pidep.tasks.task import load_task
from tests.cli.run import Done, assert_refused, untouched

Inside = Callable[..., Done]


def test_the_list_draws_and_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pidep.cli.app import app\nsys.argv = ['pidep', 'tasks']\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {"PATH": "", "PIDEP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=60,
    )
    assert done.stderr == "[]\n"
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if not line[0].isspace()] == [
        *("vision", *(name for name in FACTS if name.startswith("vision/"))),
        *("language", *(name for name in FACTS if FACTS[name].modality == "language")),
        *("vision-language", *(name for name in FACTS if name.startswith("vl/"))),
    ]
    assert not (tmp_path / "cache").exists()
    (line,) = [line for line in lines if line.startswith("vl/caption")]
    assert line.split()[1:6] == ["2000", "500", "accuracy", "four", "texts"]


def test_the_list_for_machines(inside: Inside) -> None:
    done = inside("tasks", "--json")
    assert done.code == 0
    found = {entry["name"]: entry for entry in json.loads(done.out)}
    assert list(found) == list(FACTS)
    assert found["vision/filled"]["labels"] == {
        "filled": "a filled icon",
        "outline": "an outlined icon",
    }
    assert found["vl/find"]["candidates"] == "image"
    assert all(
        "MIT" in entry["licence"] or "CC" in entry["licence"] or "Apache" in entry["licence"]
        for entry in found.values()
    )


def test_three_rows_of_each_label_and_only_they_are_drawn(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "cache"))
    done = inside("tasks", "vl/badge", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert [row["label"] for row in found["examples"]] == [
        label for label in found["labels"] for _ in range(3)
    ]
    drawn = {Path(row["image"]) for row in found["examples"]}
    assert set((tmp_path / "cache").rglob("*.png")) == drawn

    shown = inside("tasks", "vl/badge").out
    assert "1077 training and 282 test rows" in shown
    assert shown.count("plus: with a plus sign") == 3
    assert (
        f"  image  {found['examples'][0]['image']}\n  text  {found['examples'][0]['text']}\n"
        in shown
    )


def test_choices_of_each_row_have_a_star_at_the_right_one(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "cache"))
    blocks = inside("tasks", "vl/caption").out.split("\n\n")[1:]
    starred = [[line[2] == "*" for line in block.splitlines()[1:]] for block in blocks]
    assert [row.index(True) for row in starred] == [0, 1, 2]
    assert all(sum(row) == 1 for row in starred)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vl/badge", "language/strength"])
def test_an_export_is_the_same_task(name: str, inside: Inside, tmp_path: Path) -> None:
    done = inside("tasks", name, "--export", tmp_path / "mine")
    path = Path(done.out.strip())
    assert (done.code, done.err, path) == (
        0,
        "",
        tmp_path / "mine" / f"{FACTS[name].fields['name']}.yaml",
    )
    assert FACTS[name].licence in path.read_text()
    mine, packaged = load_task(path), load_task(name)
    assert mine.model_dump(exclude={"data"}) == packaged.model_dump(exclude={"data"})
    from pidep.tasks.data import data_digest

    (tmp_path / "mine").rename(tmp_path / "moved")
    here, there = load_data(load_task(tmp_path / "moved" / path.name)), load_data(packaged)
    assert data_digest(here.train) == data_digest(there.train)
    assert data_digest(here.test) == data_digest(there.test)


def test_an_export_brings_the_pictures_to_choose_from(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pidep.gallery.suite import files
    from pidep.gallery.suite.row import Sides

    sides = files.sides_of("vl/find")
    monkeypatch.setitem(files.CHOOSE, "vl/find", lambda: Sides(sides.train[:8], sides.test[:4]))
    done = inside("tasks", "vl/find", "--export", tmp_path / "mine", "--json")
    assert json.loads(done.out) == {"task": "vl/find", "path": str(tmp_path / "mine" / "find.yaml")}
    data = load_data(load_task(tmp_path / "mine" / "find.yaml"))
    assert [data.train.labels, data.test.labels] == [[0, 1, 2, 3] * 2, [0, 1, 2, 3]]
    pictures = {
        row["choices"][row["label"]]
        for row in map(json.loads, (tmp_path / "mine" / "test.jsonl").read_text().splitlines())
    }
    assert pictures <= {
        path.relative_to(tmp_path / "mine").as_posix()
        for path in (tmp_path / "mine" / "images").iterdir()
    }
    assert all(
        path.startswith("images/material-default-") or path.startswith("images/fontawesome-solid-")
        for path in pictures
    )


def test_impossible_requests(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with untouched(tmp_path):
        assert_refused(
            inside("tasks", "vl/badg"),
            r"task 'vl/badg': expected one of vision/digits.*did you mean 'vl/badge'",
        )
        assert_refused(
            inside("tasks", "--export", tmp_path / "new"), "--export: needs the name of a task"
        )
        assert_refused(
            inside("tasks", "vl/badge", "--export", tmp_path / "full"),
            r"new or empty folder, found 'notes\.txt' in it",
        )
        assert_refused(
            inside("tasks", "vl/badge", "--export", tmp_path / "file"),
            r"--export .*file: is a file; give a folder",
        )
