"""A faulty row fails alone, whatever it raises."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pidep.errors import AnswerError, ExpertError, PidepError
from pidep.runtime import Answer
from pidep.runtime.isolate import isolated

NONE = np.zeros(0, np.float32)


class Panic(BaseException):
    """As a panic of a Rust package reaches Python."""


def run_of(faults: dict[int, BaseException], runs: list[range]):  # type: ignore[no-untyped-def]
    def run(rows: range) -> list[Answer | PidepError]:
        runs.append(rows)
        for row in rows:
            if row in faults:
                raise faults[row]
        return [Answer((), NONE, NONE, f"sha256:{row}") for row in rows]

    return run


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    "fault", [ValueError("x"), RecursionError(), MemoryError(), KeyError("k"), Panic("index")]
)
def test_only_the_faulty_row_fails(size: int, fault: BaseException) -> None:
    for at in {0, size // 2, size - 1}:
        runs: list[range] = []
        found = isolated(run_of({at: fault}, runs), range(size))
        for row, answer in enumerate(found):
            if row == at:
                assert isinstance(answer, AnswerError)
                assert type(fault).__name__ in str(answer)
                assert "\n" not in str(answer)
            else:
                assert isinstance(answer, Answer)
                assert answer.digest == f"sha256:{row}"
        assert len(runs) <= 1 + 2 * int(np.ceil(np.log2(size)))


def test_a_batch_without_a_fault_runs_once() -> None:
    runs: list[range] = []
    assert len(isolated(run_of({}, runs), range(8))) == 8
    assert len(runs) == 1


def test_an_error_of_pidep_keeps_its_words_and_class() -> None:
    (_, found) = isolated(run_of({1: ExpertError("no such expert")}, []), range(2))
    assert type(found) is ExpertError
    assert str(found) == "no such expert"


def test_an_unexpected_error_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        isolated(run_of({0: ValueError("two\nlines")}, []), range(1))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_is_no_rows_error(ending: type[BaseException]) -> None:
    with pytest.raises(ending):
        isolated(run_of({0: ending()}, []), range(2))
