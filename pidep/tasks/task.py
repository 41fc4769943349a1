"""A task file: inputs, answers, data, split and metric."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pidep.errors import TaskError, did_you_mean
from pidep.tasks.memory import MemoryRows, label_names, labels_in, plain_rows
from pidep.tasks.metrics import METRICS, Metric
from pidep.tasks.packaged import packaged_task, packaged_tasks

__all__ = ["Data", "Task", "load_task"]


class Data(BaseModel):
    """The source of the rows: exactly one of `packaged`, `path`, `files`, `dataset`, `rows`."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    packaged: str | None = None
    path: Path | None = None
    rows: MemoryRows | None = Field(default=None, exclude=True, repr=False)
    """Rows in memory (`Task.from_rows`); `pidep.tasks.memory.write_task` makes files of them."""
    files: dict[Literal["train", "test"], Path] | None = None
    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    test_dataset: str | None = None
    """The dataset of the test split, where it was published separately."""
    images: Path | None = None
    """Folder of a dataset's relative image paths; `$PIDEP_IMAGES` when absent."""
    each: str | None = None
    """Column with a list. A row becomes as many rows, each with one element in that column."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = ("packaged", "path", "files", "dataset", "rows")
        given = [key for key in sources if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of packaged, path, files, dataset; found {given or 'none'}"
            )
        if self.files is not None and set(self.files) != {"train", "test"}:
            raise ValueError("files needs both train and test")
        if self.test_dataset is not None and (self.dataset is None or self.test_split is None):
            raise ValueError("test_dataset goes with dataset and test_split")
        return self


class Task(BaseModel):
    """Rows (a text, an image, or both), each answered by a label, by a candidate, or by a text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    input: str = "{text}"
    """Template over the columns of a row. May be empty where there is an image."""
    image: str | None = None
    """Column of the image: a path (relative to the data file), encoded bytes, or Hugging Face's
    `{bytes, path}`.
    """
    label: str = "label"
    """Column of the label's name. With `candidates`: of the right one's number from 0, or of the
    right candidate itself.
    """
    labels: dict[str, str] = Field(default_factory=dict)
    """Label name to the text that is scored for it, in order."""
    candidates: str | None = None
    """Column with each row's list of candidates. Instead of `labels`."""
    candidates_are: Literal["text", "image"] = "text"
    label_text: str | None = None
    """Template of every label's text; `{label}` is the class name in words. Instead of `labels`."""
    label_names: dict[str, str] = Field(default_factory=dict)
    """For `label_text`: words for class names that are not words."""
    target: str | None = None
    """Template of the text that answers a row. A column with a list gives several right answers.
    Instead of `labels`.
    """
    target_is: Literal["text", "box"] = "text"
    """`box`: the target is one column with four numbers in pixels; the text is their location
    tokens.
    """
    box_format: Literal["xywh", "xyxy"] = "xywh"
    data: Data
    test_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = 0
    metric: Metric = "accuracy"
    max_length: int = Field(48, ge=4)
    licence: str = ""
    """Licence of the data, for people."""
    source: str = ""
    """Address of the data's description, for people."""

    @classmethod
    def from_rows(
        cls,
        rows: Any,
        *,
        text: str = "text",
        label: str = "label",
        labels: Mapping[str, str] | Sequence[str] | None = None,
        name: str = "task",
        test: Any = None,
        **fields: Any,
    ) -> Task:
        """A task over rows in memory.

        Args:
            rows: a list of dicts, a pandas.DataFrame or a datasets.Dataset.
            text: column of the text, or a template over columns such as "{title}: {body}".
            label: column of the label.
            labels: label to the text it is scored by, or label names. Without them, the class
                names of a datasets.Dataset, or every label of the rows.
            test: test rows in the same forms. Without them, `test_fraction` of the rows.
            fields: further fields of a task file, such as `image` or `metric`.

        Raises:
            TaskError: the rows or the fields make no task.

        >>> rows = [{"text": "a great film", "label": "good"}, {"text": "awful", "label": "bad"}]
        >>> Task.from_rows(rows, labels={"good": "praise", "bad": "complaint"}).labels["bad"]
        'complaint'
        """
        if "data" in fields:
            raise TaskError(
                "Task.from_rows: expected rows, found data; use Task or load_task for files"
            )
        data = MemoryRows(
            plain_rows(rows, label=label),
            None if test is None else plain_rows(test, label=label),
        )
        values: dict[str, Any] = {"name": name, "label": label, **fields}
        values.setdefault("input", text if "{" in text or not text else f"{{{text}}}")
        if not {"candidates", "target", "label_text"} & fields.keys():
            known = labels or label_names(rows, label) or labels_in(data.train, label)
            # Names without texts are scored by themselves.
            texts = known if isinstance(known, Mapping) else dict(zip(known, known, strict=True))
            values["labels"] = {str(key): str(value) for key, value in texts.items()}
        _unknown_key("Task.from_rows", values)
        try:
            return cls.model_validate({**values, "data": Data(rows=data)})
        except ValidationError as error:
            first = error.errors()[0]
            key = "".join(f"{part}: " for part in first["loc"])
            raise TaskError(
                f"Task.from_rows: {key}{first['msg'].removeprefix('Value error, ')}"
            ) from error

    @field_validator("labels")
    @classmethod
    def _two_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if len(labels) == 1:
            raise ValueError("expected at least 2 labels")
        return labels

    @model_validator(mode="after")
    def _one_kind_of_answer(self) -> Task:
        given = [
            key for key in ("labels", "label_text", "candidates", "target") if getattr(self, key)
        ]
        if len(given) != 1:
            raise ValueError(
                "expected one of labels, label_text, candidates and target; found "
                f"{' and '.join(given) or 'none'}"
            )
        if self.label_text is not None and _fields(self.label_text) != ["label"]:
            raise ValueError(
                f"label_text {self.label_text!r}: expected a template with {{label}} and nothing "
                "else in brackets"
            )
        return self

    @model_validator(mode="after")
    def _metric_fits(self) -> Task:
        if self.target_is == "box" and (
            self.target is None or self.image is None or len(self.target_columns) != 1
        ):
            raise ValueError(
                "target_is box: expected a target of one column, such as '{bbox}', and an image"
            )
        answers = (
            "labels" if self.target is None else "boxes" if self.target_is == "box" else "texts"
        )
        if self.metric not in METRICS[answers]:
            raise ValueError(
                f"metric {self.metric!r}: answers that are {answers} have "
                f"{', '.join(METRICS[answers])}"
            )
        return self

    @property
    def columns(self) -> list[str]:
        """Columns of the input template."""
        return _fields(self.input)

    @property
    def target_columns(self) -> list[str]:
        """Columns of the target template."""
        return [re.split(r"[.\[]", field)[0] for field in _fields(self.target or "")]


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


def _unknown_key(where: str, values: dict[str, Any]) -> None:
    for key in values:
        if key not in Task.model_fields:
            raise TaskError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), Task.model_fields)}"
            )
    data = values.get("data")
    if isinstance(data, dict):
        for key in data:
            if key not in Data.model_fields:
                raise TaskError(
                    f"{where}: data: unknown key {key!r}{did_you_mean(str(key), Data.model_fields)}"
                )


def load_task(reference: str | Path) -> Task:
    """A task from a YAML file, or a packaged one by name.

    Examples are `sentiment/movie`, and `paper/food101` for data on a hub.

    Raises:
        TaskError: no such task, or the file is wrong.
    """
    name = str(reference)
    path = _paper().get(name, Path(reference))
    # A task file needs no package, so none is imported for it. YAML is no packaged task's name.
    brought = None if path.suffix in (".yaml", ".yml") and path.is_file() else packaged_task(name)
    if brought is not None:
        return Task.model_validate({**brought.fields, "data": {"packaged": name}})
    if not path.is_file():
        packaged = packaged_tasks()
        known = ", ".join(packaged)
        similar = did_you_mean(name, {**packaged, **_paper()})
        raise TaskError(
            f"task {name!r}: no such file, and not a packaged task ({known}; paper/NAME for data "
            f"on a hub){similar}"
        )
    try:
        # `safe_load`: YAML's full loader builds arbitrary Python objects.
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaskError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise TaskError(
            f"{path}: expected a mapping with name, input, label, labels and data, found "
            f"{type(values).__name__}"
        )
    _unknown_key(str(path), values)
    try:
        task = Task.model_validate(values)
        fields = task.columns
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = "nothing" if first["type"] == "missing" else repr(first["input"])
        message = (
            f"{path}: {key}: {first['msg']}"
            if key
            else f"{path}: {first['msg'].removeprefix('Value error, ')}"
        )
        raise TaskError(message if not key else f"{message}, found {found[:120]}") from error
    except ValueError as error:
        raise TaskError(
            f"{path}: input: {error}; expected a template such as '{{text}}'"
        ) from error
    if not fields and task.image is None:
        raise TaskError(
            f"{path}: input {task.input!r} names no column; expected a template such as "
            f"'{{text}}', or an image column"
        )
    return task.model_copy(update={"data": _beside(task.data, path.parent)})


def _paper() -> dict[str, Path]:
    """The task files of the paper's datasets, by name."""
    return {
        f"paper/{path.stem}": path
        for path in sorted((Path(__file__).parent / "paper").glob("*.yaml"))
    }


def _beside(data: Data, folder: Path) -> Data:
    """Absolute paths instead of paths relative to the task file, so that export works anywhere."""
    folder = folder.absolute()
    update: dict[str, Any] = {}
    for key in ("path", "images"):
        if getattr(data, key) is not None:
            update[key] = folder / getattr(data, key)
    if data.files is not None:
        update["files"] = {split: folder / path for split, path in data.files.items()}
    return data.model_copy(update=update)
