"""The gate's report beside an entry."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts.gate_report import GateReport
from pidep.artifacts.merged import MergedRecord
from pidep.errors import ServingError
from pidep.export import Source, export_merged, load_recipe
from pidep.tasks.data import Split
from tests.conftest import make_expert
from tests.export.examples import TASK

pytestmark = pytest.mark.slow  # graphs are compiled
TEXTS = ["the film was good <b>", "awful <b>", "great great great film", "a the <b>"]


class Texts(HTMLParser):
    """The texts of a page, and the tags that would run or load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.active: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe") or any(name == "src" for name, _ in attrs):
            self.active.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def entries(shallow: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One expert, exported with its rows, again with them, and without."""
    source = Source(make_expert(shallow, sites=["*query"]), TASK, Split(TEXTS, [1, 0, 1, 0]))
    return {
        name: export_merged(
            source, tmp_path_factory.mktemp(name), load_recipe("onnx-cpu"), keep_rows=keep
        ).folder
        for name, keep in (("rows", True), ("again", True), ("none", False))
    }


def test_figures_answers_and_versions_are_in_both_files(entries: dict[str, Path]) -> None:
    report = GateReport.read(entries["rows"])
    record = MergedRecord.read(entries["rows"] / "1")
    (expert,) = report.experts.values()
    assert (report.entry, expert.digest) == (record.entry_digest, record.digest)
    assert expert.parity == record.parity
    row = expert.parity.worst_row
    assert row is not None
    assert expert.worst_text == TEXTS[row.row - 1]
    best = ("negative", "positive")[int(row.torch[1] > row.torch[0])]
    assert expert.worst_answers == (best, best)
    assert expert.worst_slice == expert.parity.worst_slice is not None
    assert report.versions.keys() >= {"python", "torch", "onnxruntime", "pidep"}
    assert report.max_abs == load_recipe("onnx-cpu").tolerance.max_abs
    page = Texts((entries["rows"] / "gate_report.html").read_text())
    assert not page.active
    shown = [
        expert.digest,
        expert.worst_text,
        f"{best} in PyTorch, {best} in the graph",
        f"{expert.parity.max_abs:.2e}",
        f"{expert.parity.max_relative:.2e}",
        f"{expert.parity.effect:.3g}",
        f"{row.torch[0]:.6f}",
        f"{row.exported[1]:.6f}",
        f"{expert.worst_slice.by}: {expert.worst_slice.name}",
        report.versions["torch"],
        "0.001",
    ]
    assert not [text for text in shown if text not in page.texts]


def test_rows_are_shown_only_where_they_are_kept(entries: dict[str, Path]) -> None:
    (expert,) = GateReport.read(entries["none"]).experts.values()
    assert expert.worst_text is None
    for path in entries["none"].glob("gate*"):
        assert not [text for text in TEXTS if text[:10] in path.read_text()]


def test_a_second_export_writes_the_same_bytes(entries: dict[str, Path]) -> None:
    for name in ("gate_report.json", "gate_report.html"):
        assert (entries["rows"] / name).read_bytes() == (entries["again"] / name).read_bytes()
    # What is served is the same with and without the report's texts.
    digests = {MergedRecord.read(entry / "1").entry_digest for entry in entries.values()}
    assert len(digests) == 1


def test_an_entry_without_report_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"gate_report\.json: no such file; make the entry"):
        GateReport.read(tmp_path)
