"""Tables of settings, made from the models that check them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import groupby
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pidep.backbones.settings import SitesSettings
from pidep.deployment.settings import (
    BundleSettings,
    ConvertSettings,
    DoctorSettings,
    ExportSettings,
    InferSettings,
    RollSettings,
    ServeSettings,
    SwapSettings,
    VerifySettings,
)
from pidep.export.recipe import Profile, Quantisation, Recipe, Tolerance
from pidep.lab.settings import CompareSettings, GridSettings, ReportSettings
from pidep.settings import Setting, Settings, settings_of
from pidep.similarity.settings import GraphSettings
from pidep.tuning.settings import (
    CheckSettings,
    FoldSettings,
    GenerateSettings,
    ImportSettings,
    PredictSettings,
    RunSettings,
    TuneSettings,
)

__all__ = ["RECORDS", "SETTINGS", "table"]

SETTINGS: dict[str, type[Settings]] = {
    "check": CheckSettings,
    "tune": TuneSettings,
    "run": RunSettings,
    "compare": CompareSettings,
    "grid": GridSettings,
    "generate": GenerateSettings,
    "predict": PredictSettings,
    "graph": GraphSettings,
    "report": ReportSettings,
    "sites": SitesSettings,
    "import": ImportSettings,
    "fold": FoldSettings,
    "export": ExportSettings,
    "bundle": BundleSettings,
    "convert": ConvertSettings,
    "serve": ServeSettings,
    "infer": InferSettings,
    "swap": SwapSettings,
    "roll": RollSettings,
    "verify": VerifySettings,
    "doctor": DoctorSettings,
}
"""Settings that are given by flags and Python, some also in YAML: a table for each panel."""
RECORDS: dict[str, type[BaseModel]] = {
    "recipe": Recipe,
    "quantisation": Quantisation,
    "profile": Profile,
    "tolerance": Tolerance,
}
"""Files that are written by hand: one table."""


def table(name: str) -> str:
    """The tables of a model in `SETTINGS` or `RECORDS` as Markdown."""
    return _settings(SETTINGS[name]) if name in SETTINGS else _record(RECORDS[name])


def _settings(model: type[Settings]) -> str:
    panels = []
    for panel, settings in groupby(settings_of(model), key=lambda setting: setting.panel):
        rows = ["| key | flag | default | meaning |", "| --- | --- | --- | --- |"]
        rows += [f"| {' | '.join(_cells(setting))} |" for setting in settings]
        panels.append("\n".join([f"**{panel}**", "", *rows]))
    return "\n\n".join(panels)


def _cells(setting: Setting) -> list[str]:
    flag = "argument" if setting.shown.argument else f"`{setting.flag}`" if setting.flag else ""
    default = "required" if setting.required else f"`{setting.default_text}`"
    facts = ", ".join(fact for fact in (_choices(setting), setting.bounds_text) if fact)
    meaning = f"{setting.help} ({facts})" if facts else setting.help
    return [f"`{setting.name}`", flag, default.replace("``", ""), meaning.replace("|", "\\|")]


def _choices(setting: Setting) -> str:
    return " or ".join(f"`{choice}`" for choice in setting.choices)


def _record(model: type[BaseModel]) -> str:
    described = _attribute_docstrings(model)
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        meaning = " ".join((field.description or described.get(key, "")).split())
        rows.append(f"| `{key}` | {default} | {meaning or _values(field)} |")
    return "\n".join(rows)


def _values(field: FieldInfo) -> str:
    """The values that a field may have, for a field without a description."""
    if choices := get_args(field.annotation):
        return " or ".join(f"`{choice}`" for choice in choices)
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
