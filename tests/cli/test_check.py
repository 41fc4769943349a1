"""`pidep check`: all problems, the exit code, and a run that says how many texts are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.run import Done, assert_refused


def write(folder: Path, wrong: int) -> str:
    lines = [f"a film {number},{'xy'[number % 2]}" for number in range(40)]
    lines += [f"the film {number},z" for number in range(wrong)]
    (folder / "a.csv").write_text("\n".join(["text,label", *lines, ""]))
    (folder / "t.yaml").write_text(
        "name: t\nlabels: {x: good, y: bad}\ndata: {path: a.csv}\nmax_length: 4\n"
    )
    return str(folder / "t.yaml")


def test_all_problems_and_the_exit_code(
    tmp_path: Path, tiny_folder: Path, inside: Callable[..., Done]
) -> None:
    task = write(tmp_path, wrong=12)
    done = inside("check", task, "--backbone", tiny_folder)
    lines = done.out.splitlines()
    assert (done.code, done.err) == (1, "")
    assert lines[0].startswith(f"error: {tmp_path}/a.csv, row 41 (line 42): label 'z' is not in")
    assert [line for line in lines if "more like these" in line] == [
        "  and 2 more like these; --show 0 lists all",
        "  and 30 more like these; --show 0 lists all",
    ]
    assert lines[-2] == "40 of 40 texts (100 %) are cut at 4 tokens; max_length 5 cuts none"
    assert lines[-1].endswith("12 errors, 40 warnings")
    found = json.loads(inside("check", task, "--backbone", tiny_folder, "--json").out)
    assert (found["errors"], len(found["problems"])) == (12, 52)
    assert {one["line"] for one in found["problems"] if one["kind"] == "label"} == set(
        range(42, 54)
    )
    whole = inside("check", task, "--backbone", tiny_folder, "--show", 0).out
    assert whole.count("error: ") == 12


def test_good_data_exits_with_0_and_a_wrong_request_with_2(
    tmp_path: Path, tiny_folder: Path, inside: Callable[..., Done]
) -> None:
    task = write(tmp_path, wrong=0)
    done = inside("check", task, "--backbone", tiny_folder, "--max-length", 8)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].endswith("0 errors, 0 warnings")
    assert_refused(inside("check", tmp_path / "none.yaml"), "none.yaml': no such file")
    assert_refused(inside("check", task, "--backbone", tmp_path / "none"), "backbone")


def test_tune_and_compare_warn_of_cut_texts_on_stderr(
    tmp_path: Path, tiny_folder: Path, inside: Callable[..., Done]
) -> None:
    task = write(tmp_path, wrong=0)
    other = tmp_path / "other.yaml"
    other.write_text(Path(task).read_text().replace("name: t", "name: other"))
    quick = ("--backbone", tiny_folder, "--steps", 1, "--max-length", 4, "--test-limit", 4)
    done = inside("tune", task, *quick, "--out", tmp_path / "run", "--json")
    said = "warning: task 't': "
    assert done.err.startswith(said)
    assert "texts (100 %) are cut at 4 tokens; max_length 5 cuts none" in done.err
    assert json.loads(done.out)["cut_texts"]["fitting"] == 5
    grid = (
        "--shots",
        2,
        "--seeds",
        0,
        "--methods",
        "own",
        "--out",
        tmp_path / "grid",
        "--epochs",
        0,
    )
    done = inside("compare", task, other, *quick, *grid)
    assert [line for line in done.err.splitlines() if line.startswith(said)]
