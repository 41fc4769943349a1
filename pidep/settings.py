"""One definition of each setting, for the command line, YAML, Python and the documentation.

A command's settings are a `Settings` model. Each field has a type, a default, an attribute
docstring (its help text) and a `Shown` (where the command line shows it):

    class FitSettings(Settings):
        steps: Annotated[int, Shown("Training")] = Field(150, ge=1)
        \"\"\"Training steps, at most.\"\"\"

`settings_of(FitSettings)` lists the fields: `pidep.cli.options` makes options of them, and the
documentation makes tables. `read_settings` and `checked` validate values from YAML and Python.
Imports no torch and no numpy.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError

from pidep.errors import UsageError, did_you_mean, fault_of_path

__all__ = [
    "Setting",
    "Settings",
    "Shown",
    "checked",
    "ends_in",
    "fault_of",
    "parameters_of",
    "read_settings",
    "read_yaml",
    "settings_of",
]


class Settings(BaseModel):
    """Base of every settings model: immutable, and an unknown key is an error."""

    # Attribute docstrings become descriptions, so that a help text stands beside its setting.
    # No setting means anything when it is infinite, and `1e400` is infinity to Python.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


Model = TypeVar("Model", bound=Settings)

_SHOWN = 100
"""Characters of a value in a message."""
_DEEPEST = 20
"""Levels of lists and mappings in a setting's value."""


@dataclass(frozen=True)
class Shown:
    """Where the command line shows a setting."""

    panel: str
    """Heading in `--help`."""
    argument: bool = False
    """Whether it is a positional argument."""
    flag: bool = True
    """False for a setting that only YAML and Python can give."""
    commas: bool = True
    """Whether commas separate the values of a list. False for texts, which hold commas."""
    aliases: tuple[str, ...] = ()
    """Older spellings that still work; `--help` does not show them."""
    choices: Callable[[], Sequence[str]] | None = None
    """Names it may be, where another package can add some. A `Literal` needs none."""


@dataclass(frozen=True)
class Setting:
    """One setting, ready to be drawn."""

    name: str
    panel: str
    help: str
    kind: type
    """`int`, `float`, `bool`, `str` or `Path`: of the value, or of each value of a list."""
    many: bool
    """Whether it is a list."""
    required: bool
    default: Any
    """None where it is required or where the help text says what happens without it."""
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    shown: Shown

    @property
    def flag(self) -> str:
        """Its option on the command line, or the name of an argument; empty where it has none."""
        if self.shown.argument:
            return self.name.upper()
        return f"--{self.name.replace('_', '-')}" if self.shown.flag else ""

    @property
    def type_text(self) -> str:
        """Its type for people."""
        words = {int: "whole number", float: "number", bool: "yes or no", str: "text", Path: "path"}
        one = " or ".join(f"`{name}`" for name in self.choices) or words.get(self.kind, "mapping")
        return f"list of {one}" if self.many and not self.choices else one

    @property
    def bounds_text(self) -> str:
        """Its bounds for people; empty where there are none."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum} to {self.maximum}"
        if self.minimum is not None:
            return f"at least {self.minimum}"
        return f"at most {self.maximum}" if self.maximum is not None else ""

    @property
    def default_text(self) -> str:
        """Its default for people; empty where there is none."""
        if self.default is None or self.default == ():
            return ""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        values = self.default if self.many else (self.default,)
        return ", ".join(
            f"{value:g}" if isinstance(value, float) else str(value) for value in values
        )


def settings_of(model: type[Settings]) -> list[Setting]:
    """Every setting of a model, in order: the rows of `--help` and of the docs' tables."""
    return [_setting(name, field) for name, field in model.model_fields.items()]


def _setting(name: str, field: Any) -> Setting:
    shown = next(part for part in field.metadata if isinstance(part, Shown))
    annotation, many = _element(field.annotation)
    choices: Sequence[str] = shown.choices() if shown.choices else ()
    if get_origin(annotation) is Literal:
        choices, annotation = get_args(annotation), str
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return Setting(
        name=name,
        panel=shown.panel,
        help=" ".join((field.description or "").split()),
        kind=annotation,
        many=many,
        required=field.is_required(),
        default=default,
        choices=tuple(choices),
        minimum=_bound(field.metadata, Ge, "ge"),
        maximum=_bound(field.metadata, Le, "le"),
        shown=shown,
    )


def _element(annotation: Any) -> tuple[Any, bool]:
    """The type of a value without `None`, and whether the setting is a tuple of such values."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not types.NoneType)
    if get_origin(annotation) is tuple:
        return _element(get_args(annotation)[0])[0], True
    for part in getattr(annotation, "__metadata__", ()):
        if not isinstance(part, (Ge, Gt, Le, Lt)):
            return _element(get_args(annotation)[0])
    return (dict if get_origin(annotation) is dict else annotation), False


def _bound(metadata: Sequence[Any], kind: type, attribute: str) -> float | None:
    return next((getattr(part, attribute) for part in metadata if isinstance(part, kind)), None)


def parameters_of(model: type[Settings], *, without: Sequence[str] = ()) -> list[Parameter]:
    """The settings as keyword-only parameters of a Python function."""
    return [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty
            if field.is_required()
            else field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for name, field in model.model_fields.items()
        if name not in without
    ]


def ends_in(path: Path | None, *suffixes: str) -> Path | None:
    """The path of a file to write, if its name says what it will hold.

    A wrong name could be that of a data file, which the new file would replace.

    Raises:
        ValueError: it ends in none of the suffixes.
    """
    if path is not None and path.suffix.lower() not in suffixes:
        raise ValueError(f"expected a file that ends in {' or '.join(suffixes)}")
    return path


def checked(model: type[Model], values: Mapping[str, Any], *, where: str) -> Model:
    """The values as settings.

    Raises:
        UsageError: an unknown key (with a did-you-mean) or a value out of range. The message names
            the setting in backticks, which the command line replaces by its flag.
    """
    return _checked(model, values, dict.fromkeys(values, where), where)


def read_settings(
    model: type[Model], path: Path | None, given: Mapping[str, Any], *, where: str
) -> Model:
    """A YAML file's settings, replaced by those given directly.

    Raises:
        UsageError: the file cannot be read, or as `checked`.
    """
    values = {} if path is None else read_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    sources = {**{name: str(path) for name in values}, **dict.fromkeys(given, where)}
    return _checked(model, {**values, **given}, sources, where)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UsageError: it cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        # ValueError: not UTF-8, a date such as 2026-13-01, or a number of more than 4,300 digits.
        reason = " ".join(str(error).split())
    except RecursionError:
        reason = "nested too deeply"
    raise UsageError(f"{path}: not readable as YAML ({reason})")


def _checked(
    model: type[Model], values: Mapping[Any, Any], sources: Mapping[Any, str], where: str
) -> Model:
    for key in values:
        if fault := fault_of(key):
            raise UsageError(f"{sources[key]}: a key {fault}")
        if key not in model.model_fields:
            near = did_you_mean(_found(key).strip("'"), model.model_fields)
            raise UsageError(f"{sources[key]}: unknown key {_found(key)}{near}")
        if fault := fault_of(values[key]):
            raise UsageError(f"{sources[key]}: {_named(key, sources[key], where)}: {fault}")
    many = {name for name, field in model.model_fields.items() if _element(field.annotation)[1]}
    # One value alone means a list of it: `sites="*query"`, `shots=8`.
    lists = {
        name: (value,) if name in many and type(value) in (int, str) else value
        for name, value in values.items()
    }
    try:
        return model(**lists)
    except ValidationError as error:
        raise UsageError(_message(model, error.errors()[0], sources, where)) from error


def _message(model: type[Settings], error: Any, sources: Mapping[Any, str], where: str) -> str:
    """Where, expected, found."""
    if not error["loc"]:
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    name = str(error["loc"][0])
    source = sources.get(name, where)
    shown = _named(name, source, where)
    if error["type"] == "missing":
        return f"{source}: {shown}: expected a value, found none"
    if error["type"] == "too_short":
        least, found = error["ctx"]["min_length"], error["ctx"]["actual_length"]
        return f"{source}: {shown}: expected at least {least} values, found {found}"
    choices = {setting.name: setting.choices for setting in settings_of(model)}[name]
    near = did_you_mean(_found(error["input"]).strip("'"), choices) if choices else ""
    return f"{source}: {shown}: {_expected(error['msg'])}, found {_found(error['input'])}{near}"


def _named(name: str, source: str, where: str) -> str:
    # A key of a file keeps its name; the command line turns a name in backticks into its flag.
    return f"`{name}`" if source == where else name


def _found(value: Any) -> str:
    """A value as a message shows it: on one line, and not longer than a line."""
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def fault_of(value: Any, depth: int = 0) -> str:
    """What makes a value useless to every setting; empty where nothing does.

    Files, JSON and the server carry texts as UTF-8, and tensors carry numbers of 64 bits.
    """
    if depth > _DEEPEST:
        return "is nested too deeply"
    if isinstance(value, (str, Path)):
        return fault_of_path(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "has more than 64 bits; give a smaller number"
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, (list, tuple)):
        return next((fault for one in value if (fault := fault_of(one, depth + 1))), "")
    return ""


_WORDS = (
    ("Value error, ", ""),
    ("Input should be ", "expected "),
    ("a valid tuple", "a list"),
    ("Unable to parse input string as an integer, exceeded maximum size", "expected 64 bits"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("greater than", "more than"),
)
"""pydantic's words and pidep's."""


def _expected(message: str) -> str:
    for theirs, ours in _WORDS:
        message = message.replace(theirs, ours)
    return message
