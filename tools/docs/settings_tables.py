"""Tables of settings, made from the models that check them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import PurePath
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pidep.export.recipe import Recipe, Tolerance
from pidep.tuning.settings import TuneConfig
from tools.docs.cli_reference import commands

__all__ = ["TABLES", "table"]

TABLES: dict[str, tuple[type[BaseModel], str | None]] = {
    "tune": (TuneConfig, "tune"),
    "recipe": (Recipe, None),
    "tolerance": (Tolerance, None),
}
"""Name of a table to its model and the command whose flags set its fields."""


def table(name: str) -> str:
    """The table `name` of `TABLES` as Markdown."""
    model, command = TABLES[name]
    flags = _flags(command) if command else {}
    described = _attribute_docstrings(model)
    head = ["key", *(["flag"] if command else []), "default", "meaning"]
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for key, field in model.model_fields.items():
        meaning = " ".join((field.description or described.get(key, "")).split()).replace(
            "|", "\\|"
        )
        cells = [
            f"`{key}`",
            *([flags.get(key, "")] if command else []),
            _default(field),
            meaning or _choices(field),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _flags(command: str) -> dict[str, str]:
    """Setting to its flags; an option sets the setting of its parameter, `--helper` the setting `helpers`."""
    found: dict[str, str] = {}
    for parameter in commands()[command].params:
        text = "argument"
        if parameter.param_type_name == "option":
            text = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
        for key in (
            parameter.name,
            f"{parameter.name}s",
            {"rslora": "rank_stabilized"}.get(parameter.name, ""),
        ):
            found.setdefault(key, text)
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"`{part}`" for part in value)
    return (
        f"`{value}`"
        if isinstance(value, (str, PurePath))
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _choices(field: FieldInfo) -> str:
    """The values that a field may have, for a field without a description."""
    if choices := get_args(field.annotation):
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = {name: bound for found in field.metadata for name, bound in _bounds(found).items()}
    if "ge" in bounds and "le" in bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    return f"at least {bounds['ge']}" if "ge" in bounds else ""


def _bounds(constraint: Any) -> dict[str, Any]:
    """The bounds of a constraint such as `Ge(ge=1)`."""
    return {name: getattr(constraint, name) for name in ("ge", "le") if hasattr(constraint, name)}


def _attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below an attribute, by attribute."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        text = following.value if isinstance(following, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            found[statement.target.id] = text.value
    return found
