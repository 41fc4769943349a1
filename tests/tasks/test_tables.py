"""Data files: files of other programs are read back, and ambiguous files are refused."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.errors import TaskError
from pidep.inputs.places import RowError
from pidep.tasks.delimited import AmbiguousQuoting
from pidep.tasks.tables import TextFormat, data_files, read_rows

ROWS = [{"text": "a good, fine film", "label": "pos"}, {"text": "it's bad; café", "label": "neg"}]
# Half characters are no text in any of these formats.
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
marks = st.text(st.sampled_from("ab\"'\t,;|\n\r\\ é"), max_size=8)
tables = st.lists(
    st.fixed_dictionaries({"text": texts | marks, "label": st.sampled_from(["pos", "neg"])}),
    min_size=1,
    max_size=6,
)


def read(path: Path, wanted: tuple[str, ...] = ("text", "label"), **form: Any) -> list[Any]:
    rows = [row for _, row in read_rows(path, TextFormat(**form), wanted)]
    for row in rows:
        if isinstance(row, RowError):
            raise row
    return rows


def csv_text(rows: list[dict[str, str]], delimiter: str = ",", quoting: int = 0) -> str:
    """As `csv` writes it, with line ends that make it enclose every line break."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@settings(max_examples=50, deadline=None)
@given(
    rows=tables,
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_csv_writes_is_read_back(
    folder: Path, rows: list[dict[str, str]], delimiter: str, quoting: int
) -> None:
    path = folder / ("a.tsv" if delimiter == "\t" else "a.csv")
    path.write_text(csv_text(rows, delimiter, quoting), encoding="utf-8", newline="")
    assert read(path, quoting="csv") == rows
    # Some tables have the same bytes as another one, and no reader can tell which was meant.
    with contextlib.suppress(AmbiguousQuoting):
        assert read(path) == rows


@settings(max_examples=30, deadline=None)
@given(rows=tables)
def test_what_json_and_pandas_write_is_read_back(folder: Path, rows: list[dict[str, str]]) -> None:
    import pandas

    lines, listed = folder / "a.jsonl", folder / "a.json"
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    listed.write_text(json.dumps(rows, indent=1), "utf-8")
    table = pandas.DataFrame(rows)
    table.to_parquet(folder / "a.parquet")
    table.to_csv(folder / "a.csv", index=False, quoting=csv.QUOTE_ALL)
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert read(folder / name) == rows
    assert read(folder / "a.csv", quoting="csv") == rows


@settings(max_examples=30, deadline=None)
@given(rows=tables)
def test_a_plain_tsv_is_read_back(folder: Path, rows: list[dict[str, str]]) -> None:
    plain = [
        {**row, "text": row["text"].translate(dict.fromkeys(map(ord, "\t\r\n"), " "))}
        for row in rows
    ]
    path = folder / "plain.tsv"
    lines = ["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in plain)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    assert read(path, quoting="none") == plain


PLAIN = ['"a good film', "a bad one", 'a fine film"', "another"]


def plain_tsv(path: Path, rows: list[str], delimiter: str = "\t") -> Path:
    body = "".join(f"{text}{delimiter}{'pn'[i % 2]}\n" for i, text in enumerate(rows))
    path.write_text(f"text{delimiter}label\n{body}", encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", ",")])
def test_marks_that_may_swallow_rows_are_refused_by_row(
    tmp_path: Path, name: str, delimiter: str
) -> None:
    path = plain_tsv(tmp_path / name, PLAIN, delimiter)
    with pytest.raises(
        TaskError, match=r"row 1 \(line 2\): its quotation marks enclose lines 2 to"
    ):
        read(path)
    assert [row["text"] for row in read(path, quoting="none")] == PLAIN
    assert len(read(path, quoting="csv")) == 2


@pytest.mark.parametrize(
    "extra",
    [
        ['he said "no" twice'],  # a mark inside a field that is not enclosed
        ['"an opening mark, never closed'],
        ['"enclosed" but not wholly'],
    ],
)
def test_a_tsv_with_marks_that_no_writer_puts_is_plain(tmp_path: Path, extra: list[str]) -> None:
    path = plain_tsv(tmp_path / "a.tsv", [*PLAIN, *extra])
    assert [row["text"] for row in read(path)] == [*PLAIN, *extra]


def test_enclosed_fields_with_line_breaks_are_one_row(tmp_path: Path) -> None:
    rows = [{"text": 'Dear all,\n"hello", you\n', "label": "pos"}, {"text": "b", "label": "neg"}]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        (tmp_path / name).write_text(csv_text(rows, delimiter), "utf-8", newline="")
        assert read(tmp_path / name) == rows


def test_a_file_of_one_column_may_have_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"Dear all,\nhello"\nbye\n')
    assert read(tmp_path / "a.csv", wanted=("text",)) == [
        {"text": "Dear all,\nhello"},
        {"text": "bye"},
    ]


def test_malformed_records_are_named_and_the_next_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'text,label\n"a, b",pos\n"c" d,neg\n"e, f",pos\ng\nh,neg,,\ni,neg,x\n"j, k",p\n'
    )
    placed = list(read_rows(path, wanted=("text",)))
    wrong = [str(row).partition(": ")[2] for _, row in placed if isinstance(row, RowError)]
    assert [place.line for place, row in placed if isinstance(row, RowError)] == [3, 5, 7]
    assert wrong[0].startswith("its quotation marks do not match")
    assert wrong[1:] == [
        f"expected 2 columns ('text', 'label'), found {found}; mend the row" for found in (1, 3)
    ]
    assert [row["text"] for _, row in placed if isinstance(row, dict)] == [
        "a, b",
        "e, f",
        "h",
        "j, k",
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_byte_order_marks(tmp_path: Path, name: str, encoding: str) -> None:
    text = csv_text(ROWS, "\t" if name == "a.tsv" else ";")
    text = json.dumps(ROWS) if "json" in name else text
    text = "\n".join(map(json.dumps, ROWS)) if name == "a.jsonl" else text
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / name) == ROWS


def test_windows_1252(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(csv_text(ROWS, ";").encode("cp1252"))
    with pytest.raises(TaskError, match=r"line 3: not readable as UTF-8 \(byte 0xe9\).*cp1252"):
        read(path)
    assert read(path, encoding="cp1252") == ROWS


@pytest.mark.parametrize("opened", [gzip.open, bz2.open, lzma.open])
def test_compressed_files(tmp_path: Path, opened: Callable[..., Any]) -> None:
    suffix = {gzip.open: "gz", bz2.open: "bz2", lzma.open: "xz"}[opened]
    for name, text in (("a.csv", csv_text(ROWS)), ("a.jsonl", "\n".join(map(json.dumps, ROWS)))):
        path = tmp_path / f"{name}.{suffix}"
        with opened(path, "wb") as stream:
            stream.write(text.encode())
        assert read(path) == ROWS
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(TaskError, match=f"{name}.{suffix}: not readable"):
            read(path)


def test_json_lines_in_a_json_file_and_invalid_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n{\n")
    (first, row), (second, wrong) = read_rows(path)
    assert row == ROWS[0]
    assert (str(first), str(second)) == (f"{path}, row 1 (line 2)", f"{path}, row 2 (line 3)")
    assert isinstance(wrong, RowError)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "text": "b"}', "key 'text' is there twice"),
        ("[" * 200_000, "nested too deeply"),
        (f'{{"n": {"1" * 5001}}}', "limit"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TaskError, match=f"row 1: not a JSON object.*{message}"):
        read(path)


def two_columns_csv(path: Path) -> None:
    path.write_text("text,text,label\na,b,pos\n")


def two_columns_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    names = ["text", "text", "label"]
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=names)
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize("write", [two_columns_csv, two_columns_parquet])
def test_two_columns_of_one_name(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / f"a.{write.__name__.rpartition('_')[2]}"
    write(path)
    with pytest.raises(TaskError, match="column 'text' is there twice"):
        read(path)


def test_columns_without_a_name_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text,label,,\n0,a,pos,,\n1,b,neg,,\n")
    assert read(tmp_path / "a.csv") == [
        {"text": "a", "label": "pos"},
        {"text": "b", "label": "neg"},
    ]


def test_a_field_of_any_length(tmp_path: Path) -> None:
    rows = [{"text": "good film " * 20_000, "label": "pos"}]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        (tmp_path / "a.csv").write_text(csv_text(rows, quoting=quoting), newline="")
        assert read(tmp_path / "a.csv") == rows


def test_globs_and_folders(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    (parts / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "deep/c.jsonl", "a.jsonl.gz", "_SUCCESS", ".hidden.jsonl", "README.md"):
        (parts / name).write_text("")
    assert [path.name for path in data_files(parts)] == ["a.jsonl.gz", "b.jsonl", "c.jsonl"]
    assert [path.name for path in data_files(parts / "*.jsonl")] == [".hidden.jsonl", "b.jsonl"][1:]
    assert len(data_files(parts / "**" / "*.jsonl")) == 2
    with pytest.raises(TaskError, match=r"\*\.csv: no file matches"):
        data_files(parts / "*.csv")
    (parts / "d.csv").write_text("")
    with pytest.raises(TaskError, match="expected data files of one format, found csv and jsonl"):
        data_files(parts)
    (tmp_path / "none").mkdir()
    with pytest.raises(TaskError, match="no data files in it"):
        data_files(tmp_path / "none")
    (tmp_path / "a[1].csv").write_text("")
    assert data_files(tmp_path / "a[1].csv") == [tmp_path / "a[1].csv"], "a name, not a pattern"


@pytest.mark.parametrize("quoting", ["csv", "none"])
def test_the_quoting_that_is_asked_for(tmp_path: Path, quoting: Literal["csv", "none"]) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a"\tpos\n')
    assert read(tmp_path / "a.tsv", quoting=quoting) == [
        {"text": "a" if quoting == "csv" else '"a"', "label": "pos"}
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|"])
def test_the_line_by_which_excel_tells_the_delimiter(
    tmp_path: Path, delimiter: str, end: str
) -> None:
    path = tmp_path / "a.csv"
    table = csv_text([*ROWS, {"text": "", "label": "x"}], delimiter)
    path.write_text(f"sep={delimiter}{end}{table}", "utf-8", newline="")
    placed = list(read_rows(path, wanted=("text", "label")))
    assert [row for _, row in placed][:-1] == ROWS
    without = tmp_path / "b.csv"
    without.write_text(table, "utf-8", newline="")
    lines = [place.line or 0 for place, _ in read_rows(without, wanted=("text", "label"))]
    assert [place.line for place, _ in placed] == [line + 1 for line in lines]


def test_a_column_may_be_called_sep(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=,label\na,pos\n")
    assert read(tmp_path / "a.csv") == [{"sep=": "a", "label": "pos"}]


@pytest.mark.parametrize("end", [",\n", ",\r\n,\r\n,\r\n", "\n\n,\n\n", ",,,,\n,"])
def test_cleared_cells_at_the_end_of_a_spreadsheet_are_no_rows(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\na,pos\n,\nb,neg\n{end}", newline="")
    rows = [{"text": "a", "label": "pos"}, {"text": "", "label": ""}, {"text": "b", "label": "neg"}]
    assert read(path) == rows, "an empty row between others keeps its place"
    (tmp_path / "one.csv").write_text('text\na\n""\n')
    assert read(tmp_path / "one.csv", wanted=("text",)) == [{"text": "a"}, {"text": ""}]
