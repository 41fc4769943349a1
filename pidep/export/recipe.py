"""Recipes: YAML files that say how a graph is made and how near to PyTorch it must stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import pidep
from pidep.artifacts.names import SHIM
from pidep.errors import UsageError, did_you_mean
from pidep.settings import fault_of, read_yaml

__all__ = ["Recipe", "Tolerance", "load_recipe", "shipped"]


class Tolerance(BaseModel):
    """Bounds of the parity gate."""

    # An infinite tolerance would let every graph pass the gate.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    """bank: experts are inputs that can be swapped. merged: one expert in the weights."""
    runtime: Literal["onnxruntime"]
    precision: Literal["fp32"]
    opset: int = Field(ge=18, le=23)
    """ONNX operator set of the graph."""
    parity_rows: int = Field(ge=1)
    """Real rows of the task's test split that the gate compares."""
    max_batch_size: int = Field(64, ge=1, le=4096)
    """Rows in a batch that Triton Server makes."""
    tolerance: Tolerance


def load_recipe(reference: str) -> Recipe:
    """A recipe by name (`bank-onnx-fp32`) or path.

    Raises:
        UsageError: no such recipe, unknown key, or a value out of range.

    >>> load_recipe("bank-onnx-fp32").form
    'bank'
    """
    path = _path_of(reference)
    values = read_yaml(path)
    if not isinstance(values, dict):
        example = shipped("export") / "bank-onnx-fp32.yaml"
        found = type(values).__name__
        raise UsageError(f"{path}: expected a mapping such as that of {example}, found {found}")
    # Before pydantic, whose message for an unknown key has no suggestion.
    _require_known(str(path), values, Recipe)
    if isinstance(values.get("tolerance"), dict):
        _require_known(f"{path}: tolerance", values["tolerance"], Tolerance)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = repr(first["input"])[:80]
        raise UsageError(f"{path}: {where}: {first['msg']}, found {found}") from error


def shipped(relative: str) -> Path:
    """A data file of the project: beside the package in a checkout, inside it in a wheel."""
    package = Path(pidep.__file__).parent
    in_checkout = f"model_repo/pidep_bank/1/{SHIM}" if relative == SHIM else relative
    checkout = package.parent / in_checkout
    return checkout if checkout.exists() else package / "_shipped" / relative


def _path_of(reference: str) -> Path:
    named = shipped("export") / f"{reference}.yaml"
    path = Path(reference) if reference.endswith((".yaml", ".yml")) else named
    if not path.is_file():
        known = sorted(found.stem for found in shipped("export").glob("*.yaml"))
        hint = did_you_mean(reference, known)
        raise UsageError(
            f"recipe {reference!r}: no such recipe; there are {', '.join(known)}{hint}"
        )
    return path


def _require_known(where: str, values: dict[Any, Any], model: type[BaseModel]) -> None:
    for key in values:
        if key not in model.model_fields:
            hint = did_you_mean(str(key), model.model_fields)
            raise UsageError(f"{where}: unknown key {str(key)[:80]!r}{hint}")
        if fault := fault_of(values[key]):
            raise UsageError(f"{where}: {key}: {fault}")
