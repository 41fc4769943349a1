"""Errors of serving: wrong repositories, ports, addresses and rows, and no server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pidep.serving.server import free_ports
from tests.cli.run import Done, assert_refused, nobody, pidep, untouched, write_run
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_small_bank
from tests.serving.stub_server import stub_server

Inside = Callable[..., Done]


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("absent", r"absent: no such model repository"),
        ("empty", r"empty: no model with a config\.pbtxt"),
        ("half", r"half/film: no bank\.json or merged\.json in version 1"),
    ],
)
def test_serving_a_repository_that_is_not_one(
    work: Path, inside: Inside, repo: str, message: str
) -> None:
    (work / "empty").mkdir()
    (work / "half" / "film" / "1").mkdir(parents=True)
    (work / "half" / "film" / "config.pbtxt").write_text('backend: "python"')
    with untouched(work):
        assert_refused(inside("serve", repo), message)


@pytest.fixture
def complete(work: Path) -> Path:
    """A repository with every file in place. Their contents are checked last."""
    version = work / "repo" / "film" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('backend: "python"')
    for name in ("merged.json", "model.onnx", "model.py"):
        (version / name).touch()
    return work / "repo"


@pytest.mark.parametrize("what", ["http", "grpc", "metrics"])
def test_serving_on_a_taken_port(work: Path, inside: Inside, complete: Path, what: str) -> None:
    with socket.socket() as taken, untouched(work):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = free_ports()
        options = {
            "http": ports.http,
            "grpc": ports.grpc,
            "metrics": ports.metrics,
            what: taken.getsockname()[1],
        }
        arguments = [part for name, port in options.items() for part in (f"--{name}-port", port)]
        done = inside("serve", complete, *arguments)
        assert_refused(
            done, rf"port 127\.0\.0\.1:{options[what]} is taken .*choose --{what}-port", code=1
        )


@pytest.mark.parametrize("port", [99999, -1])
def test_serving_on_an_invalid_port(work: Path, inside: Inside, complete: Path, port: int) -> None:
    with untouched(work):
        done = inside("serve", complete, "--http-port", port)
        assert_refused(done, rf"serve: --http-port: expected at (least 1|most 65535), found {port}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], r"--host: 0\.0\.0\.0 lets other machines .* give --allow-remote"),
        (["--host", "::1"], r"--host: expected an IPv4 address .* found '::1'"),
        (["--http-port", 8001], r"--grpc-port: 8001 is the HTTP port already"),
        (["--max-text-bytes", 0], r"serve: --max-text-bytes: expected at least 1, found 0"),
        (["--host", "192.0.2.7", "--allow-remote"], r"--host: 192\.0\.2\.7 is no address of"),
    ],
)
def test_serving_on_a_host_that_is_open_or_wrong(
    work: Path, inside: Inside, complete: Path, options: list[object], message: str
) -> None:
    with untouched(work):
        assert_refused(inside("serve", complete, *options), message)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_asking_where_nobody_listens(inside: Inside, protocol: str) -> None:
    url = nobody()
    assert_refused(
        inside("infer", "a film", "--expert", "film", "--url", url, "--protocol", protocol),
        url,
        code=1,
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:port"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_asking_at_an_invalid_address(inside: Inside, protocol: str, url: str) -> None:
    done = inside("infer", "a film", "--expert", "film", "--url", url, "--protocol", protocol)
    assert_refused(done, url)


def test_asking_without_naming_an_expert(inside: Inside) -> None:
    assert_refused(
        inside("infer", "a film"), r"--expert: expected a name, found none; name the expert"
    )


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b'{"txt": "a film"}',
        b'{"text": null}',
        b'{"text": ["a", "film"]}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "a", "image": "\\u0000"}',
        b'{"text": "a", "expert": "\\ud83d"}',
        b"[" * 100_000,
        b'{"text": ' + b"9" * 5001 + b"}",
    ],
)
def test_invalid_rows(inside: Inside, line: bytes) -> None:
    rows = b'{"text": "a film"}\n' + line + b"\n"
    done = inside("infer", "--expert", "film", "--url", nobody(), stdin=rows)
    assert_refused(
        done,
        r"standard input, line 2: expected \{\"text\": …, \"image\": PATH, \"expert\": …\} \(a "
        r"text, an image or both\)",
    )


def test_a_text_that_is_not_utf8(inside: Inside) -> None:
    done = inside("infer", "\udcff", "--expert", "film", "--url", nobody())
    assert_refused(done, r"argument: '\\udcff' is not UTF-8")


def test_a_real_process_that_swaps_without_a_server(work: Path) -> None:
    write_small_bank(work / "model_repo")
    write_run(work / "run", small_expert(), work / "film.yaml")
    url = nobody()
    with untouched(work):
        assert_refused(pidep("swap", "film", "run", "--url", url, cwd=work), url, code=1)


def test_a_real_process_that_serves(work: Path, complete: Path) -> None:
    with socket.socket() as taken, untouched(work):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = pidep("serve", complete, "--http-port", taken.getsockname()[1], cwd=work)
        assert_refused(done, r"HTTP port .* is taken", code=1)


def test_a_real_process_that_reads_rows(work: Path) -> None:
    done = pidep(
        "infer", "--expert", "film", "--url", nobody(), cwd=work, stdin=b'{"text": "\xff"}\n'
    )
    assert_refused(done, r"standard input, line 1: expected")


def test_infer_sends_rows_of_columns(inside: Inside) -> None:
    lines = b'{"columns": {"subject": "Re", "body": 3}, "expert": "mail"}\n{"text": "a film"}\n'
    with stub_server("grpc") as stub:
        done = inside("infer", "--url", stub.url, "--expert", "film", stdin=lines)
    assert done.code == 0, done.err
    (asked,) = stub.asked
    assert asked.tensors == {
        "TEXT": [b"", b"a film"],
        "EXPERT": [b"mail", b"film"],
        "COLUMNS": [b'{"subject": "Re", "body": 3}', b""],
    }
    wrong = b'{"columns": ["Re"], "expert": "mail"}\n'
    with stub_server("grpc") as stub:
        done = inside("infer", "--url", stub.url, stdin=wrong)
    assert_refused(done, r"line 1: expected .*\"columns\"")
    assert not stub.asked
