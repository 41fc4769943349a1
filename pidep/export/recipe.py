"""Recipes: YAML files under `export/` that say how a graph is made and how near to PyTorch it must stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import pidep
from pidep.errors import UsageError, did_you_mean

__all__ = ["Recipe", "Tolerance", "load_recipe", "shipped"]


class Tolerance(BaseModel):
    """The parity gate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_abs: float = Field(gt=0)
    """Largest absolute difference of a logit."""
    argmax_flips: int = Field(ge=0)
    """Rows whose best label may differ."""
    metric_drop: float = Field(ge=0)
    """How much of the task's metric may be lost."""


class Recipe(BaseModel):
    """One way to compile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    form: Literal["merged", "bank"]
    runtime: Literal["onnxruntime"]
    precision: Literal["fp32"]
    opset: int = Field(ge=18, le=23)
    parity_rows: int = Field(ge=1)
    """Real rows of the task's test split the gate compares."""
    max_batch_size: int = Field(64, ge=1)
    tolerance: Tolerance


def shipped(relative: str) -> Path:
    """A data file of the project: beside the package in a checkout, inside it in a wheel."""
    package = Path(pidep.__file__).parent
    checkout = package.parent / ("model_repo/pidep_bank/1/model.py" if relative == "model.py" else relative)
    return checkout if checkout.exists() else package / "_shipped" / relative


def _known(where: str, values: dict[Any, Any], model: type[BaseModel]) -> None:
    for key in values:
        if key not in model.model_fields:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(str(key), model.model_fields)}")


def load_recipe(reference: str) -> Recipe:
    """A recipe by name (`bank-onnx-fp32`) or path.

    Raises:
        UsageError: no such recipe, unknown key, or a value out of range.
    """
    folder = shipped("export")
    path = Path(reference) if reference.endswith((".yaml", ".yml")) else folder / f"{reference}.yaml"
    if not path.is_file():
        known = sorted(found.stem for found in folder.glob("*.yaml"))
        raise UsageError(f"recipe {reference!r}: no such recipe; there are {', '.join(known)}{did_you_mean(reference, known)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise UsageError(f"{path}: expected a mapping such as that of {folder / 'bank-onnx-fp32.yaml'}, found {type(values).__name__}")
        _known(str(path), values, Recipe)
        if isinstance(values.get("tolerance"), dict):
            _known(f"{path}: tolerance", values["tolerance"], Tolerance)
        return Recipe.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {first['input']!r}") from error
