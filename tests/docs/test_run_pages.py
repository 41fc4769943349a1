"""The runner of pages: it runs the right blocks, compares their output, and stops at a failure."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from pidep.serving.server import Ports
from tools.docs import run_pages

SAMPLE = """\
Some words.

```yaml title="words.yaml"
word: there
```

```console
$ export WORD=hello
$ printf '%s %s\\n' "$WORD" \\
    there | tee out.txt
hello there
```

```sh
exit 9   # blocks of other languages are skipped
```

<!-- not run: it fails -->
```console
$ exit 9
```

```python
import pathlib

print(pathlib.Path("out.txt").read_text(), pathlib.Path("words.yaml").read_text())
```

```output
hello there
word: there
```
"""


def test_blocks_become_steps_in_order() -> None:
    steps = run_pages.extract(SAMPLE)
    kinds = [(step.line, step.kind) for step in steps]
    assert kinds == [(3, "file"), (8, "console"), (9, "console"), (23, "python")]
    assert steps[0].name == "words.yaml"
    assert steps[0].text == "word: there"
    assert steps[1].expected == ()
    assert steps[2].text == "printf '%s %s\\n' \"$WORD\" \\\n    there | tee out.txt"
    assert steps[2].expected == ("hello there",)
    assert steps[3].expected == ("hello there", "word: there")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```console\n$ true\n", "line 1: the block has no closing"),
        ("```console\n$ true \\\n```\n", "line 2: the command ends in a backsl"),
        ("```output\nhello\n```\n", "line 1: an output block stands behind no Python block"),
    ],
)
def test_a_wrong_block_is_named(text: str, message: str) -> None:
    with pytest.raises(run_pages.RunError, match=message):
        run_pages.extract(text)


def test_steps_share_a_session_and_a_fresh_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "sample.md"
    page.write_text(SAMPLE)
    run_pages.run([page], timeout_s=60)
    assert "1 pages in" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == [page]


def test_pages_share_a_folder_and_no_variables(tmp_path: Path) -> None:
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    first.write_text("```console\n$ WORD=hello\n$ echo hi > file.txt\n```\n")
    second.write_text('```console\n$ cat file.txt\nhi\n$ echo "[$WORD]"\n[]\n```\n')
    run_pages.run([first, second], timeout_s=60)


def test_another_output_fails_the_run_and_can_be_written(tmp_path: Path) -> None:
    page = tmp_path / "sample.md"
    page.write_text("```console\n$ echo new\nold\n$ echo same\nsame\n```\n\nwords\n")
    expected = "sample.md, line 2: \\$ echo new: expected 'old', found 'new'"
    with pytest.raises(run_pages.RunError, match=expected):
        run_pages.run([page], timeout_s=60)
    with pytest.raises(run_pages.RunError, match=expected):
        run_pages.run([page], timeout_s=60, write=True)
    assert page.read_text() == "```console\n$ echo new\nnew\n$ echo same\nsame\n```\n\nwords\n"
    run_pages.run([page], timeout_s=60)


def test_written_output_has_short_digests_and_no_path_of_this_machine(tmp_path: Path) -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    lines = run_pages.shown(f"{tmp_path}/runs/movie  {digest}  \n\n", folder=tmp_path)
    assert lines == ["…/runs/movie  sha256:0123456789ab…"]


def test_a_command_that_shows_an_error_has_to_fail(tmp_path: Path) -> None:
    page = tmp_path / "sample.md"
    page.write_text("```console\n$ echo pidep: wrong >&2 && false\npidep: wrong\n```\n")
    run_pages.run([page], timeout_s=60)
    page.write_text("```console\n$ echo pidep: wrong\npidep: wrong\n```\n")
    with pytest.raises(run_pages.RunError, match="exit code 0, expected a failure"):
        run_pages.run([page], timeout_s=60)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false | cat", r"line 3: \$ false \| cat: ended with exit code 1"),
        ("exit 0", r"line 3: \$ exit 0: ended the session"),
        ('echo "', r"line 3: .*ended with exit code 2"),
    ],
)
def test_the_first_failing_command_stops_the_run(
    tmp_path: Path, command: str, message: str
) -> None:
    page, witness = tmp_path / "sample.md", tmp_path / "witness"
    touch = f"touch {shlex.quote(str(witness))}"
    page.write_text(f"```console\n$ true\n$ {command}\n$ {touch}\n```\n")
    with pytest.raises(run_pages.RunError, match=message):
        run_pages.run([page], timeout_s=60)
    assert not witness.exists()


def test_a_hanging_command_is_stopped_with_the_jobs_it_left(tmp_path: Path) -> None:
    page, pids = tmp_path / "sample.md", tmp_path / "pids"
    start = f"$ sleep 600 &\n$ echo $! > {shlex.quote(str(pids))}"
    page.write_text(f"```console\n{start}\n$ sleep 601\n```\n")
    with pytest.raises(run_pages.RunError, match=r"line 4: \$ sleep 601: still running"):
        run_pages.run([page], timeout_s=2)
    assert not Path(f"/proc/{pids.read_text().strip()}").exists()


def test_a_failing_page_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "sample.md"
    page.write_text("```console\n$ exit 4\n```\n")
    monkeypatch.setattr(sys, "argv", ["run_pages", str(page)])
    with pytest.raises(SystemExit, match="1"):
        run_pages.main()
    assert capsys.readouterr().err == "sample.md: line 2: $ exit 4: ended the session\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "pidep serve &",
            "pidep serve --http-port 18000 --grpc-port 18001 --metrics-port 18002 &",
        ),
        ("cat rows | pidep infer", "cat rows | pidep infer --url 127.0.0.1:18001"),
        (
            "pidep infer x --protocol http",
            "pidep infer --url 127.0.0.1:18000 x --protocol http",
        ),
        ("pidep swap a b", "pidep swap --url 127.0.0.1:18001 a b"),
        ("curl 127.0.0.1:8000/v2", "curl 127.0.0.1:18000/v2"),
        ('Client("127.0.0.1:8001")', 'Client("127.0.0.1:18001")'),
        ("pidep tune task", "pidep tune task"),
    ],
)
def test_other_ports_replace_the_default_ones(text: str, expected: str) -> None:
    ports = Ports(http=18000, grpc=18001, metrics=18002)
    assert run_pages.with_ports(text, ports) == expected
