"""`pidep predict` as a function: the rows of a file, answered offline and written as a whole."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pidep.backbones.backbone import Backbone
from pidep.errors import ExpertError, ImageError, TaskError, UsageError
from pidep.experts.folder import Expert
from pidep.experts.mixed import head_of
from pidep.files.atomic_write import write_bytes
from pidep.inputs.images import load_image
from pidep.inputs.places import Place, RowError
from pidep.inputs.row import Input, as_row
from pidep.inputs.template import Template
from pidep.tasks.data_source import Data
from pidep.tasks.row_inputs import input_of
from pidep.tasks.sources import sources_of
from pidep.tasks.task import Task, load_task
from pidep.tuning.predict import Prediction, backbone_of, load_served, predict
from pidep.tuning.run_folder import run_task
from pidep.tuning.settings import PredictSettings

__all__ = ["FORMATS", "PredictedFile", "WrongRows", "predict_file"]

_LOG = logging.getLogger(__name__)
FORMATS = (".csv", ".jsonl", ".parquet")
"""Endings of the files that can be written."""


class WrongRows(TaskError):
    """Rows of the file that cannot be answered; nothing was written."""

    def __init__(self, file: Path, faults: Sequence[str], rows: int) -> None:
        """Count the faults; `faults` has one line for each, with its place."""
        super().__init__(
            f"{file}: {len(faults)} of {rows} rows cannot be answered, the first: {faults[0]}; "
            "nothing was written"
        )
        self.faults = tuple(faults)


@dataclass(frozen=True)
class PredictedFile:
    """The answers to the rows of a file, in the order of the rows."""

    expert: Expert
    """The head, where a mixture answered."""
    digest: str
    places: tuple[Place, ...]
    answers: tuple[Prediction, ...]
    out: Path | None
    """None where nothing was written."""

    def records(self) -> list[dict[str, Any]]:
        """One object for each row: its number and line in the file, then the answer."""
        return [
            {"row": place.row, "line": place.line, **answer.to_json()}
            for place, answer in zip(self.places, self.answers, strict=True)
        ]


def predict_file(settings: PredictSettings, *, backbone: Backbone | None = None) -> PredictedFile:
    """Answer every row of a file with a run's expert; write `out` where it is given.

    The rows are read as those of the task were: the expert's template makes their texts. Progress
    is logged.

    Raises:
        WrongRows: rows that cannot be read; all of them are listed, and nothing was written.
        UsageError: `out` exists, or has an ending that is not known.
        TaskError: the file cannot be read, or the expert has no template.
        ExpertError, BackboneError: there is no expert, or it belongs to another backbone.
    """
    _check_out(settings)
    served = load_served(settings.run)
    expert, digest = head_of(served), served.digest
    # Read before the backbone is loaded, which takes seconds.
    places, rows = _rows(settings, expert)
    loaded = backbone_of(expert, backbone or settings.backbone, device=settings.device)
    answers: list[Prediction] = []
    for start in range(0, len(rows), settings.batch_size):
        answers += predict(served, rows[start : start + settings.batch_size], backbone=loaded)
        _LOG.info("rows answered", extra={"done": len(answers), "total": len(rows)})
    found = PredictedFile(expert, digest, tuple(places), tuple(answers), settings.out)
    if settings.out is not None:
        write_bytes(settings.out, _WRITERS[settings.out.suffix.lower()](found))
    return found


def _check_out(settings: PredictSettings) -> None:
    """Refuse an output that could not be written, before any work."""
    out = settings.out
    if out is None:
        return
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"`out` {out}: expected a name that ends in {', '.join(FORMATS)}, found "
            f"{out.suffix or 'no ending'!r}"
        )
    if out.is_dir() or (out.exists() and out.resolve() == settings.file.resolve()):
        what = "a folder" if out.is_dir() else "the file of the rows"
        raise UsageError(f"`out` {out}: is {what}; choose another name")
    if out.exists() and not settings.overwrite:
        raise UsageError(f"`out` {out}: exists; choose another name, or give `overwrite`")


def _rows(settings: PredictSettings, expert: Expert) -> tuple[list[Place], list[Input]]:
    """Every row of the file with its place.

    Raises:
        WrongRows: with every row that cannot be read.
    """
    template = _template(settings, expert)
    (source,) = sources_of(_reader(settings, expert, template))
    places: list[Place] = []
    rows: list[Input] = []
    faults: list[str] = []
    for place, row in source.rows:
        try:
            if isinstance(row, RowError):
                raise row
            rows.append(_checked(input_of(template, row, place)))
            places.append(place)
        except (TaskError, ImageError) as error:
            faults.append(str(error))
    if faults:
        raise WrongRows(settings.file, faults, len(faults) + len(rows))
    if not rows:
        raise TaskError(f"{settings.file}: no rows")
    return places, rows


def _checked(row: Input) -> Input:
    """The row, if its images can be decoded: a damaged one would stop the run halfway."""
    asked = as_row(row)
    for one in (asked, *map(as_row, asked.candidates)):
        if one.image is not None:
            load_image(one.image, where=one.where or asked.where)
    return row


def _template(settings: PredictSettings, expert: Expert) -> Template:
    """The expert's template, or that of its task where an older release made it."""
    if expert.template is not None:
        return expert.template
    task = load_task(settings.task) if settings.task is not None else run_task(settings.run)
    if task is None:
        raise ExpertError(
            f"{settings.run}: the expert has no template, because an older release made it; "
            "give its `task`"
        )
    if tuple(task.labels) != expert.labels:
        raise ExpertError(
            f"{settings.run}: the expert has the labels {', '.join(expert.labels) or 'none'}, task "
            f"{task.name!r} has {', '.join(task.labels) or 'none'}"
        )
    return task.template


def _reader(settings: PredictSettings, expert: Expert, template: Template) -> Task:
    """A task over the file, for its rows only."""
    answer: dict[str, Any] = {"labels": {name: name for name in expert.labels}}
    if template.candidates is not None:
        answer = {"candidates": template.candidates, "candidates_are": template.candidates_are}
    elif not expert.labels:
        answer = {"target": "{label}"}  # a task needs one; the column is never read
    try:
        return Task(
            name=expert.name,
            input=template.text,
            image=template.image,
            data=Data(
                path=settings.file,
                encoding=settings.encoding,
                delimiter=settings.delimiter,
                quoting=settings.quoting,
            ),
            **answer,
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{settings.file}: {reason}") from error


def _jsonl(found: PredictedFile) -> bytes:
    lines = (json.dumps(record, ensure_ascii=False) for record in found.records())
    return "".join(f"{line}\n" for line in lines).encode()


def _table(found: PredictedFile) -> dict[str, list[Any]]:
    """Columns: row, line, label, one score for each label, digest.

    Rows that bring their own candidates have one column `scores`, a JSON object.
    """
    columns: dict[str, list[Any]] = {
        "row": [place.row for place in found.places],
        "line": [place.line for place in found.places],
        "label": [answer.label for answer in found.answers],
    }
    if found.expert.labels:
        for label in found.expert.labels:
            columns[f"score_{label}"] = [answer.scores[label] for answer in found.answers]
    elif any(answer.scores for answer in found.answers):
        columns["scores"] = [
            json.dumps(answer.scores, ensure_ascii=False) for answer in found.answers
        ]
    columns["digest"] = [answer.digest for answer in found.answers]
    return columns


def _csv(found: PredictedFile) -> bytes:
    table = _table(found)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return stream.getvalue().encode()


def _parquet(found: PredictedFile) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"`out`: Parquet needs a working pyarrow ({error}); pip install 'pidep[tune]'"
        ) from error
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(_table(found)), stream)
    return stream.getvalue()


_WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
