"""Log lines as JSON: what is in them, how many of them there are, and how they reach a reader."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pidep.serving.log_lines import LOG_FORMAT_VARIABLE, Bounded, JsonLines, TextLines
from pidep.serving.log_tail import LogTail, as_json, is_error, message_of
from tests.cli.run import environment
from tests.serving.served import wait_until

OWN = '{"time": "2026-01-01T00:00:00.000Z", "level": "error", "message": "store kept empty"}'


def record(
    message: str, *given: object, logger: str = "pidep.x", **fields: object
) -> logging.LogRecord:
    found = logging.LogRecord(logger, logging.WARNING, "x.py", 7, message, given, None)
    vars(found).update(fields)
    return found


def test_a_line_has_its_time_level_message_and_fields() -> None:
    made = record("film: %s", "two\nlines", expert="film", version=None, other="not a field")
    made.created = 1.5
    line = JsonLines(model="bank").format(made)
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "warning",
        "logger": "pidep.x",
        "message": "film: two\nlines",
        "model": "bank",
        "expert": "film",
    }


@pytest.mark.parametrize("text", ["a\nb\r\x0b\x0c\x1c\x85\u2028\u2029c", "\ud800", "é\x00", '"\\'])
def test_a_text_cannot_end_a_line(text: str) -> None:
    line = JsonLines().format(record("%s", text, request_id=text))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == json.loads(line)["request_id"] == text


def test_a_traceback_is_a_part_of_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        made = record("failed", exc_info=(type(error), error, error.__traceback__))
    line = JsonLines().format(made)
    assert len(line.splitlines()) == 1
    assert re.search(r"Traceback.*ValueError: two\nlines", json.loads(line)["exception"], re.DOTALL)


def test_a_flood_by_clients_leaves_few_lines_that_say_how_many_there_were() -> None:
    now = [0.0]
    bound = Bounded(clock=lambda: now[0])
    name = "pidep.serving.request_log"
    flood = [record(f"number {number}", logger=name) for number in range(1000)]
    assert sum(map(bound.filter, flood)) == 20
    now[0] = 1.0
    late, later = (record("late", logger=name) for _ in range(2))
    assert bound.filter(late)
    assert not bound.filter(later)
    assert json.loads(JsonLines().format(late))["suppressed"] == 980
    expected = "pidep: (980 lines like the next one were left out) late"
    assert TextLines().format(late) == expected
    # A quiet hour does not save up more than the 20.
    now[0] = 3600.0
    assert sum(map(bound.filter, flood)) == 20
    assert all(bound.filter(record("swap")) for _ in range(1000))


@pytest.mark.parametrize(
    ("line", "level", "message", "wrong"),
    [
        (OWN, "error", "store kept empty", True),
        ("2026-01-01T00:00:00Z I 7 server.cc:1] started", "info", "7 server.cc:1] started", False),
        ("2026-01-01T00:00:00Z E 7 x.cc:1] no port", "error", "7 x.cc:1] no port", True),
        ("E0101 00:00:00.1 7 x.cc:1] no port", "info", "E0101 00:00:00.1 7 x.cc:1] no port", True),
        ("| model | READY |", "info", "| model | READY |", False),
        ('{"time": cut', "info", '{"time": cut', False),
    ],
)
def test_every_line_of_the_log_becomes_json(
    line: str, level: str, message: str, wrong: bool
) -> None:
    found = json.loads(as_json(line))
    assert (found["level"], found["message"]) == (level, message)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", found["time"])
    assert is_error(line) is wrong
    assert message_of(line) == (message if line == OWN else line)


def test_a_log_is_followed_until_its_end(tmp_path: Path) -> None:
    path, lines = tmp_path / "log", list[str]()
    with open(path, "ab", buffering=0) as log:
        log.write(b"first\nhal")
        tail = LogTail(path, lines.append)
        wait_until(lambda: len(lines) == 1)
        log.write(b"f\n\n" + b"x" * 200_000 + b"\nlast \xff without an end")
        path.unlink()
        tail.stop()
    messages = [json.loads(line)["message"] for line in lines]
    assert messages[:2] == ["first", "half"]
    assert messages[-1] == "last \ufffd without an end"
    assert "".join(messages[2:-1]) == "x" * 200_000
    assert max(map(len, messages)) < 140_000


@pytest.mark.parametrize(("value", "code"), [("json", 0), ("text", 0), ("", 0), ("xml", 1)])
def test_a_process_of_a_model_logs_as_its_environment_says(value: str, code: int) -> None:
    script = (
        "import logging; from pidep.serving.log_lines import log_model; log_model('bank')\n"
        "logging.getLogger('pidep.y').info('swapped', extra={'revision': 7})"
    )
    given = {**environment(), LOG_FORMAT_VARIABLE: value}
    done = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True)
    assert done.returncode == code
    if value == "json":
        found = json.loads(done.stderr)
        assert (found["model"], found["revision"], found["level"]) == ("bank", 7, "info")
    elif code == 0:
        assert done.stderr == "pidep: swapped\n"
    else:
        assert "PIDEP_LOG_FORMAT: expected text or json, found 'xml'" in done.stderr
