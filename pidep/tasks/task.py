"""A task file: inputs, answers, data, split and metric."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pidep.errors import TaskError, did_you_mean
from pidep.inputs.cells import is_blank
from pidep.inputs.template import Template, columns_of
from pidep.tasks.data_source import Data
from pidep.tasks.memory import MemoryRows, label_names, labels_in, plain_rows
from pidep.tasks.metrics import METRICS, Metric
from pidep.tasks.packaged import packaged_task, packaged_tasks
from pidep.tasks.task_yaml import read_task_yaml
from pidep.tasks.values import name_of

if TYPE_CHECKING:
    from pidep.tasks.check import Reader, TaskCheck

__all__ = ["Task", "load_task", "require_different_texts"]


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
    """Label name to the text that is scored for it, in order. A list of names scores the names."""
    label_map: dict[str, str | None] = Field(default_factory=dict)
    """Label in the data to a name in `labels`; null drops the rows of that label."""
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
            values["labels"] = known if isinstance(known, Mapping) else list(known)
            if not labels and "label_map" in fields:
                values["labels"] = _mapped(known, fields["label_map"])
        _unknown_key("Task.from_rows", values)
        try:
            return cls.model_validate({**values, "data": Data(rows=data)})
        except ValidationError as error:
            raise TaskError(f"Task.from_rows: {_reason(error)}") from error

    @field_validator("labels", mode="before")
    @classmethod
    def _names_as_texts(cls, labels: Any) -> Any:
        pairs = labels.items() if isinstance(labels, Mapping) else labels
        if isinstance(labels, list | tuple):
            pairs = [(name, name) for name in labels]
        elif not isinstance(labels, Mapping):
            return labels
        # Names and texts such as 0, 1.0 and True, as Python and JSON have them.
        return {_word(name): _word(text) for name, text in pairs}

    @field_validator("label_map", mode="before")
    @classmethod
    def _names_of_map(cls, label_map: Any) -> Any:
        if not isinstance(label_map, Mapping):
            return label_map
        return {_word(value): _word(name) for value, name in label_map.items()}

    @field_validator("input")
    @classmethod
    def _plain_columns(cls, template: str) -> str:
        columns_of(template)
        return template

    @field_validator("target")
    @classmethod
    def _plain_target(cls, template: str | None) -> str | None:
        # Attributes and formats would read values' insides, and make texts of any length.
        for _, name, spec, conversion in string.Formatter().parse(template or ""):
            if name is not None and (not name or "." in name or spec or conversion):
                raise ValueError("expected plain {column} or {column[key]} between braces")
        return template

    @field_validator("labels")
    @classmethod
    def _two_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if len(labels) == 1:
            raise ValueError("expected at least 2 labels")
        return require_different_texts(labels)

    @model_validator(mode="after")
    def _map_fits(self) -> Task:
        if self.label_map and not self.labels:
            raise ValueError("label_map goes with labels")
        for value, name in self.label_map.items():
            if name is not None and name not in self.labels:
                raise ValueError(
                    f"label_map: {value!r} becomes {name!r}, which is not in labels "
                    f"({', '.join(self.labels)}){did_you_mean(name, self.labels)}"
                )
        return self

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
        if self.label_text is not None and columns_of(self.label_text) != ("label",):
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

    def check(self, backbone: Reader | None = None, *, max_length: int | None = None) -> TaskCheck:
        """Every problem of the task's data, collected before any training.

        Args:
            backbone: counts tokens (`pidep.load_backbone`). Without it, cut texts are not found.
            max_length: the limit that the texts are compared with; the task's own when absent.

        >>> rows = [{"text": "great", "label": "good"}, {"text": "", "label": "bad"}]
        >>> print(Task.from_rows(rows, test=rows[:1]).check().problems[0])
        training rows, row 2: the text is empty; remove the row
        """
        from pidep.tasks.check import check_task  # it reads rows, which needs this module

        return check_task(self, backbone, max_length=max_length)

    @property
    def columns(self) -> list[str]:
        """Columns of the input template."""
        return list(self.template.columns)

    @property
    def template(self) -> Template:
        """How a row's columns become its text, image and candidates."""
        return Template(self.input, self.image, self.candidates, self.candidates_are)

    @property
    def target_columns(self) -> list[str]:
        """Columns of the target template."""
        return [re.split(r"[.\[]", field)[0] for field in _fields(self.target or "")]


def require_different_texts(labels: dict[str, str]) -> dict[str, str]:
    """The labels, if each has a text of its own; equal texts have equal scores for every row.

    Raises:
        ValueError: a text is empty, is no valid text, or belongs to two labels.
    """
    by_text: dict[str, str] = {}
    for name, text in labels.items():
        if is_blank(name):
            raise ValueError(f"label {name!r} has an empty name; write a word")
        if is_blank(text):
            raise ValueError(f"label {name!r} has an empty text; write the words that describe it")
        try:
            f"{name}{text}".encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"label {name!r} holds half of a character") from error
        other = by_text.setdefault(" ".join(text.split()), name)
        if other != name:
            raise ValueError(
                f"labels {other!r} and {name!r} have one text, {text!r}; give each its own"
            )
    return labels


def _mapped(names: Iterable[str], label_map: Any) -> list[str]:
    """The labels of the data after `label_map`, each once."""
    pairs = label_map.items() if isinstance(label_map, Mapping) else ()
    found = {_word(value): name for value, name in pairs}
    renamed = [found.get(name, name) for name in names]
    return list(dict.fromkeys(name for name in renamed if name is not None))


def _word(value: Any) -> Any:
    """A label or text as it is called; other types are left to the validation."""
    return name_of(value) if isinstance(value, bool | int | float) else value


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


def _unknown_key(where: str, values: dict[str, Any]) -> None:
    _require_known(where, values, Task)
    if isinstance(data := values.get("data"), dict):
        _require_known(f"{where}: data", data, Data)


def _require_known(where: str, values: dict[str, Any], model: type[BaseModel]) -> None:
    for key in values:
        if key not in model.model_fields:
            near = did_you_mean(str(key), model.model_fields)
            known = near or f", expected one of {', '.join(model.model_fields)}"
            raise TaskError(f"{where}: unknown key {str(key)[:80]!r}{known}")


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
    values = read_task_yaml(path)
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
        raise TaskError(f"{path}: {_reason(error)}") from error
    if not fields and task.image is None:
        raise TaskError(
            f"{path}: input {task.input!r} names no column; expected a template such as "
            f"'{{text}}', or an image column"
        )
    return task.model_copy(update={"data": _beside(task.data, path.parent)})


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong: key, expected, found."""
    first = error.errors()[0]
    key = "".join(f"{part}: " for part in first["loc"])
    message = f"{key}{first['msg'].removeprefix('Value error, ')}"
    # pidep's own checks say what they found.
    if not key or first["type"] == "value_error":
        return message
    found = "nothing" if first["type"] == "missing" else repr(first["input"])
    return f"{message}, found {found[:120]}"


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
