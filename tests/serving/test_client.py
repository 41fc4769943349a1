"""Both clients over both transports: requests, results and errors."""

from __future__ import annotations

import asyncio
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from pidep.errors import ServingError, UnreachableError, UsageError
from pidep.serving import AsyncClient, Client, Request, Result
from pidep.serving.request import encode_rows
from tests.cli.run import nobody
from tests.serving.stub_server import Asked, Stub, stub_server

Call = Callable[..., Any]
ROWS = [Request("a cat", "first"), Request("dog", "second"), Request("", "first")]
ID = r" \(request [0-9a-f]{16}\)"


@pytest.fixture(params=["grpc", "http"])
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    with stub_server(request.param) as stub:
        yield stub


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    """`call(server, method, *given, client's options)`: the answer, from either client."""

    def blocking(
        stub: Stub,
        method: str,
        *given: Any,
        batch_size: int = 32,
        in_flight: int = 1,
        all_or_nothing: bool = True,
        **more: Any,
    ) -> Any:
        with Client(stub.url, protocol=stub.protocol, **more) as client:
            if method == "infer":
                return client.infer(*given, all_or_nothing=all_or_nothing)
            if method == "choose":
                return client.choose(*given, batch_size=batch_size)
            sizes = {"batch_size": batch_size, "in_flight": in_flight}
            return list(client.stream(*given, **sizes, all_or_nothing=all_or_nothing))

    async def awaited(
        stub: Stub,
        method: str,
        *given: Any,
        batch_size: int,
        in_flight: int,
        all_or_nothing: bool,
        **more: Any,
    ) -> Any:
        async with AsyncClient(stub.url, protocol=stub.protocol, **more) as client:
            if method == "infer":
                return await client.infer(*given, all_or_nothing=all_or_nothing)
            if method == "choose":
                return await client.choose(*given, batch_size=batch_size)
            sizes = {"batch_size": batch_size, "in_flight": in_flight}
            found = client.stream(*given, **sizes, all_or_nothing=all_or_nothing)
            return [result async for result in found]

    def on_a_loop(
        stub: Stub,
        method: str,
        *given: Any,
        batch_size: int = 32,
        in_flight: int = 1,
        all_or_nothing: bool = True,
        **more: Any,
    ) -> Any:
        sizes = {
            "batch_size": batch_size,
            "in_flight": in_flight,
            "all_or_nothing": all_or_nothing,
        }
        return asyncio.run(awaited(stub, method, *given, **sizes, **more))

    return blocking if request.param == "blocking" else on_a_loop


def test_a_batch_names_an_expert_for_each_row(stub: Stub, call: Call) -> None:
    found = call(stub, "infer", ROWS)
    assert stub.asked == [
        Asked(
            "pidep_bank",
            ["SCORES", "LABELS", "LABEL", "DIGEST", "ENTRY"],
            {"TEXT": [b"a cat", b"dog", b""], "EXPERT": [b"first", b"second", b"first"]},
        )
    ]
    first, second, _ = found
    # a label without a name is padding
    assert first == Result("first", "a cat", {"a cat": 1.0}, "sha256:first", "sha256:entry")
    assert second.digest == "sha256:second"
    assert second.scores == pytest.approx({"dog": 0.9, "other": 0.1})


def test_an_entry_of_an_older_release_answers_without_its_digest(stub: Stub, call: Call) -> None:
    stub.is_old = True
    found = call(stub, "infer", ROWS)
    assert [result.label for result in found] == ["a cat", "dog", ""]
    assert {result.entry for result in found} == {""}
    # Asked once with the output and once without; later batches ask without it at once.
    del stub.asked[:]
    call(stub, "stream", (Request("dog", "first") for _ in range(3)), batch_size=1)
    assert ["ENTRY" in asked.outputs for asked in stub.asked] == [True, False, False, False]
    choice = call(stub, "choose", ROWS[0], [Request("dog", ""), Request("cat", "")])
    assert (choice.label, choice.entry) == ("1", "")


def test_a_merged_model_has_no_expert_to_name(stub: Stub, call: Call) -> None:
    (found,) = call(stub, "infer", [Request("α < β", "")], model="film")
    assert stub.asked[0].model == "film"
    assert stub.asked[0].tensors == {"TEXT": ["α < β".encode()]}
    assert found.label == "α < β"


def test_images_go_as_they_are_encoded(stub: Stub, call: Call, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG in a file")
    rows = [
        Request("a cat", "first", b"\x89PNG\0 in memory"),
        Request("dog", "first"),
        Request("", "first", tmp_path / "cat.png"),
    ]
    call(stub, "infer", rows)
    images = stub.asked[0].tensors["IMAGE"]
    assert images == [b"\x89PNG\0 in memory", b"", b"\x89PNG in a file"]


def test_an_image_that_is_not_there_is_not_sent(stub: Stub, call: Call, tmp_path: Path) -> None:
    rows = [Request("", "first", tmp_path / "gone.png")]
    with pytest.raises(UsageError, match=r"gone\.png: expected an image file, No such file"):
        call(stub, "infer", rows)
    assert not stub.asked


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (4, [2, 2]), (5, [2, 2, 1])])
def test_a_stream_is_answered_in_order_a_batch_at_a_time(
    stub: Stub, call: Call, count: int, sizes: Sequence[int]
) -> None:
    rows = (Request(f"row {number}", "first") for number in range(count))
    found = call(stub, "stream", rows, batch_size=2)
    assert [result.label for result in found] == [f"row {number}" for number in range(count)]
    assert [len(asked.tensors["TEXT"]) for asked in stub.asked] == sizes


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_choice_is_the_nearest_candidate(stub: Stub, call: Call, batch_size: int) -> None:
    candidates = [Request("dog", "first"), Request("cat", "first")]
    found = call(stub, "choose", ROWS[0], candidates, batch_size=batch_size)
    assert (found.label, found.digest) == ("1", "sha256:first")
    assert found.scores == pytest.approx({"0": 0.0, "1": 0.8})
    asked = [expert for one in stub.asked for expert in one.tensors["EXPERT"]]
    assert asked == [b"first", b"@backbone", b"@backbone"]
    assert stub.asked[0].outputs == ["EMBEDDING", "DIGEST", "ENTRY"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Request("a \ud83d", "film"), r"^row 2: 'a \\ud83d' is not UTF-8"),
        (Request("a", "\ud83d"), r"^row 2: expert: '\\ud83d' is not UTF-8"),
        (Request(cast(str, 5), "film"), r"^row 2: expected a text, found int"),
        (Request("a", "film", columns={"text": "\ud83d"}), r"^row 2: columns: "),
    ],
)
def test_a_request_that_is_no_text_is_refused_before_it_is_sent(row: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encode_rows([Request("a", "film"), row], with_expert=True)


def test_a_choice_among_nothing_is_refused(stub: Stub, call: Call) -> None:
    with pytest.raises(UsageError, match="choose: expected at least one candidate, found none"):
        call(stub, "choose", ROWS[0], [])
    assert not stub.asked


def test_a_refusal_is_one_line_that_names_the_server_and_the_model(stub: Stub, call: Call) -> None:
    stub.error = "unknown expert 'nope';\nthis server has: film"
    message = rf"^{stub.url}, model pidep_bank: unknown expert 'nope'; this server has: film{ID}$"
    with pytest.raises(ServingError, match=message):
        call(stub, "infer", ROWS)


def test_a_server_that_is_too_slow_is_an_error(stub: Stub, call: Call) -> None:
    stub.delay_s = 20.0
    message = rf"^{stub.url}, model pidep_bank: no answer within 0\.2 s; is the server busy\?{ID}$"
    with pytest.raises(ServingError, match=message):
        call(stub, "infer", ROWS, timeout_s=0.2)


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that answers each connection with a line of an unknown protocol."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            """Read a part of the request, so that the client reads before the connection
            is reset.
            """
            self.request.recv(65536)
            self.request.sendall(b"220 mail.example ESMTP\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_of_another_protocol_is_an_error(call: Call, mute: str, protocol: str) -> None:
    with pytest.raises(ServingError, match=rf"^{mute}.*; is pidep serve running there\?$"):
        call(Stub(protocol, url=mute), "infer", ROWS, timeout_s=5.0)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_nobody_there_is_an_error_that_says_so(call: Call, protocol: str) -> None:
    url = nobody()
    with pytest.raises(ServingError, match=rf"^{url}.*; is pidep serve running there\?$"):
        call(Stub(protocol, url=url), "infer", ROWS, timeout_s=5.0)


@pytest.mark.parametrize("url", ["localhost", "http://127.0.0.1:8001", "a:port", ":1", "a:0"])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_invalid_address_is_refused_at_once(client: Any, url: str) -> None:
    with pytest.raises(UsageError, match=r"not a server address, expected host:port"):
        client(url)


def test_many_requests_are_in_flight_at_once(stub: Stub) -> None:
    async def four() -> list[list[Result]]:
        async with AsyncClient(stub.url, protocol=stub.protocol) as client:
            rows = [[Request(f"row {number}", "first")] for number in range(4)]
            return await asyncio.gather(*(client.infer(batch) for batch in rows))

    found = asyncio.run(four())
    assert [result.label for batch in found for result in batch] == [f"row {n}" for n in range(4)]


def test_a_closed_client_connects_anew(stub: Stub) -> None:
    async def twice() -> list[Result]:
        client = AsyncClient(stub.url, protocol=stub.protocol)
        first = await client.infer(ROWS[:1])
        await client.close()
        second = await client.infer(ROWS[:1])
        await client.close()
        await client.close()
        return [*first, *second]

    first, second = asyncio.run(twice())
    assert first == second


def test_columns_travel_as_json_beside_texts(stub: Stub, call: Call) -> None:
    mail = {"subject": "Grüße", "body": 3}
    rows = [Request(columns=mail, expert="mail"), Request("a cat", "first")]
    call(stub, "infer", rows)
    (asked,) = stub.asked
    assert asked.tensors == {
        "TEXT": [b"", b"a cat"],
        "EXPERT": [b"mail", b"first"],
        "COLUMNS": ['{"subject": "Grüße", "body": 3}'.encode(), b""],
    }
    with pytest.raises(UsageError, match="row 1: columns: expected texts and numbers"):
        call(stub, "infer", [Request(columns={"photo": b"x"}, expert="mail")])


def test_a_request_that_was_shed_is_sent_again(stub: Stub, call: Call) -> None:
    stub.sheds = 2
    assert len(call(stub, "infer", ROWS)) == 3
    assert len(stub.asked) == 3


@pytest.mark.parametrize("retries", [0, 1])
def test_a_server_that_sheds_everything_is_an_error(stub: Stub, call: Call, retries: int) -> None:
    stub.sheds = 100
    message = rf"Exceeds maximum queue size; the server sheds .* again later or less often{ID}$"
    with pytest.raises(UnreachableError, match=message):
        call(stub, "infer", ROWS, retries=retries)
    assert len(stub.asked) == 1 + retries


def test_retries_end_at_the_deadline(stub: Stub, call: Call) -> None:
    stub.sheds = 10**6
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        call(stub, "infer", ROWS, retries=10**6, timeout_s=0.3)
    assert time.monotonic() - started < 3
    assert len(stub.asked) > 2


def test_a_refused_request_is_not_sent_again(stub: Stub, call: Call) -> None:
    stub.error = "unknown expert"
    with pytest.raises(ServingError, match="unknown expert"):
        call(stub, "infer", ROWS)
    assert len(stub.asked) == 1


@pytest.mark.parametrize("in_flight", [2, 3, 8])
def test_a_stream_with_batches_in_flight_keeps_its_order_and_its_bound(
    stub: Stub, call: Call, in_flight: int
) -> None:
    drawn: list[int] = []

    def rows() -> Iterator[Request]:
        for number in range(21):
            # What is not answered yet is in memory: at most the batches in flight.
            assert number - 2 * len(stub.asked) < 2 * in_flight + 2
            drawn.append(number)
            yield Request(f"row {number}", "first")

    found = call(stub, "stream", rows(), batch_size=2, in_flight=in_flight)
    assert [result.label for result in found] == [f"row {number}" for number in range(21)]
    assert len(stub.asked) == 11


def test_an_error_ends_a_stream_with_batches_in_flight(stub: Stub, call: Call) -> None:
    stub.bad_text = b"row 7"
    rows = (Request(f"row {number}", "first") for number in range(1000))
    with pytest.raises(ServingError, match="no row 7"):
        call(stub, "stream", rows, batch_size=1, in_flight=3)
    assert len(stub.asked) < 50


@pytest.mark.parametrize("method", ["infer", "stream"])
def test_an_error_stays_with_its_row_where_asked_for(stub: Stub, call: Call, method: str) -> None:
    rows = [Request("a cat", "first"), Request("bad", "first")]
    good, bad = call(stub, method, rows, all_or_nothing=False)
    assert (good.error, good.label) == ("", "a cat")
    assert bad.error == "wrong"
    assert [(one.row_errors, "ERROR" in one.outputs) for one in stub.asked] == [(True, True)]
    del stub.asked[:]
    call(stub, method, rows)
    assert [(one.row_errors, "ERROR" in one.outputs) for one in stub.asked] == [(False, False)]
