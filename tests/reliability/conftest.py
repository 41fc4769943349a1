"""What the rows share: their form, short or long, the figures, and a server for a module."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pidep.serving.server import TritonServer, free_ports
from tests.serving.small_bank import write_served_bank

T = TypeVar("T")
LONG = os.environ.get("PIDEP_RELIABILITY") == "long"
"""`make test-reliability` sets it; `make test` runs the short form."""
FIGURES = os.environ.get("PIDEP_RELIABILITY_FIGURES")
"""File that gets the figure of each row, as lines of JSON."""


class Row:
    """One row of the list: what it claims, and what was measured."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_long = LONG

    def size(self, short: T, long: T) -> T:
        """The size of this form."""
        return long if LONG else short

    def shows(
        self,
        claim: str,
        *,
        target: str | float,
        measured: str | float,
        met: bool,
        known: str = "",
        **raw: Any,
    ) -> None:
        """Keep the figure, then fail where the claim is not met.

        Args:
            known: why the claim cannot be met here: an advisory or an issue, and what pidep does
                instead. The test fails once the claim is met.
            raw: figures behind the claim.
        """
        if FIGURES:
            figure = {
                "row": self.number,
                "claim": f"row {self.number}: {claim}",
                "target": target,
                "measured": f"{measured}; {known}" if known else measured,
                "met": met,
                "raw": raw,
            }
            with open(FIGURES, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(figure, ensure_ascii=False) + "\n")
        if known:
            assert not met, f"row {self.number} holds now ({measured}): take `known` away"
        else:
            assert met, f"row {self.number}: expected {target}, measured {measured}; {raw}"


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """The row of a test named `test_row_12_…`."""
    found = re.match(r"test_row_(\d+)_", request.node.name)
    assert found, request.node.name
    return Row(int(found[1]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of the small bank with the experts `film` and `book`, for a whole module."""
    repo = write_served_bank(tmp_path_factory.mktemp("reliability"))
    with TritonServer(repo, free_ports()) as started:
        yield started


def store_of(server: TritonServer) -> Path:
    """Folder of the store that a server follows."""
    return server.repo.parent / "expert_store"
