"""The queue of a model: batches in order, an end, deadlines, cancelled requests, and faults."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

import pytest

from pidep.errors import AnswerError, OverloadError, PidepError
from pidep.inputs.row import Row
from pidep.serving.asked import Asked
from pidep.serving.batcher import Batcher, Waiting, most_rows, reply_to

WITHIN_S = 20


class Door:
    """An `answer` that waits until it is opened, and keeps the batches that came."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered: SimpleQueue[list[int]] = SimpleQueue()

    def __call__(self, requests: Sequence[Waiting]) -> None:
        self.entered.put([len(one.asked) for one in requests])
        assert self.opened.wait(WITHIN_S)
        for one in requests:
            one.reply([AnswerError("none")] * len(one.asked))

    def batch(self) -> list[int]:
        """Rows of the requests of the next batch."""
        return self.entered.get(timeout=WITHIN_S)


class Client:
    """Sends requests, and keeps what they get."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.replies: SimpleQueue[Sequence[object] | PidepError] = SimpleQueue()

    def send(
        self,
        rows: int = 1,
        *,
        timeout_s: float = 0.0,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        asked = [Asked(Row("a"))] * rows
        waiting = Waiting(asked, self.replies.put, timeout_s=timeout_s, is_cancelled=is_cancelled)
        self.batcher.add(waiting)

    def reply(self) -> Sequence[object] | PidepError:
        return self.replies.get(timeout=WITHIN_S)


@pytest.fixture
def shed() -> Counter[str]:
    return Counter()


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def client(door: Door, shed: Counter[str]) -> Iterator[Client]:
    batcher = Batcher(door, max_batch=4, shed=lambda reason, rows: shed.update({reason: rows}))
    yield Client(batcher)
    door.opened.set()
    batcher.stop()
    assert not batcher.is_alive


def test_what_comes_during_a_batch_is_the_next_one(client: Client, door: Door) -> None:
    client.send()
    assert door.batch() == [1]
    for rows in (1, 2, 3, 9, 1):
        client.send(rows)
    door.opened.set()
    # In the order of arrival, as many as fit; a request that is larger is a batch alone.
    assert [door.batch() for _ in range(4)] == [[1, 2], [3], [9], [1]]
    assert sorted(len(client.reply()) for _ in range(6)) == [1, 1, 1, 2, 3, 9]


def test_a_full_queue_refuses_at_once(client: Client, door: Door, shed: Counter[str]) -> None:
    client.send(4)
    door.batch()
    most = most_rows(4)
    for _ in range(most // 4 - 1):
        client.send(4)
    with pytest.raises(OverloadError, match=f"queue is full: {most} rows wait, {most} may"):
        client.send(1)
    assert shed == {"queue_full": 1}
    door.opened.set()
    for _ in range(most // 4):
        client.reply()
    client.send(1)  # there is room again
    assert len(client.reply()) == 1


def test_one_large_request_is_taken_by_an_empty_queue(client: Client, door: Door) -> None:
    door.opened.set()
    client.send(most_rows(4) + 1)
    assert len(client.reply()) == most_rows(4) + 1


def test_a_request_whose_time_has_passed_is_not_run(
    client: Client, door: Door, shed: Counter[str]
) -> None:
    client.send()
    door.batch()
    client.send(2, timeout_s=0.001)
    client.send(3, timeout_s=60)
    time.sleep(0.01)
    door.opened.set()
    assert door.batch() == [3]
    replies = [client.reply() for _ in range(3)]
    (late,) = [one for one in replies if isinstance(one, PidepError)]
    assert str(late) == "its time of 0.001 s passed in the queue; try again later"
    assert shed == {"deadline": 2}


def test_a_request_whose_client_has_gone_is_not_run(
    client: Client, door: Door, shed: Counter[str]
) -> None:
    client.send()
    door.batch()
    client.send(2, is_cancelled=lambda: True)
    client.send(3)
    time.sleep(0.1)
    door.opened.set()
    assert door.batch() == [3]
    assert shed == {"cancelled": 2}


def test_a_batch_that_fails_fails_alone(shed: Counter[str]) -> None:
    def answer(requests: Sequence[Waiting]) -> None:
        if len(requests[0].asked) == 2:
            raise RuntimeError("the graph is gone")
        reply_to(requests, lambda asked: [AnswerError(f"of {len(asked)}") for _ in asked])

    batcher = Batcher(answer, max_batch=4)
    client = Client(batcher)
    client.send(2)
    assert isinstance(client.reply(), AnswerError)
    client.send(1)
    (found,) = client.reply()  # type: ignore[misc, union-attr]
    assert str(found) == "of 1"
    batcher.stop()


def test_a_batch_that_fails_halfway_answers_nobody_twice() -> None:
    def answer(requests: Sequence[Waiting]) -> None:
        for one in requests:
            one.reply([AnswerError("first")])
        raise RuntimeError("too late")

    batcher = Batcher(answer, max_batch=4)
    client = Client(batcher)
    for _ in range(2):
        client.send()
        (found,) = client.reply()  # type: ignore[misc, union-attr]
        assert str(found) == "first"
    batcher.stop()
    assert client.replies.empty()


def test_a_reply_that_cannot_be_sent_stops_nothing(client: Client, door: Door) -> None:
    def gone(_: object) -> None:
        raise RuntimeError("the client has gone")

    door.opened.set()
    client.batcher.add(Waiting([Asked(Row("a"))] * 4, gone))
    for _ in range(2 * most_rows(4) // 4):
        client.send(4)
        client.reply()


def test_stop_answers_what_waits(door: Door) -> None:
    batcher = Batcher(door, max_batch=4)
    client = Client(batcher)
    client.send(1)
    door.batch()
    client.send(2)
    door.opened.set()
    batcher.stop()
    assert sorted(len(client.reply()) for _ in range(2)) == [1, 2]


def test_clients_that_ask_again_at_once_share_a_batch() -> None:
    sizes: list[int] = []

    def answer(requests: Sequence[Waiting]) -> None:
        sizes.append(len(requests))
        time.sleep(0.2)  # the others have 10 ms to come
        for one in requests:
            one.reply([AnswerError("none")])

    batcher = Batcher(answer, max_batch=8)
    stop = time.monotonic() + 3.0

    def work() -> None:
        client = Client(batcher)
        while time.monotonic() < stop:
            client.send()
            client.reply()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    batcher.stop()
    # Without the wait they would stay in two parts, such as 1 and 3.
    assert Counter(sizes).most_common(1)[0][0] == 4
