"""Recipes: YAML files that say how a graph is made and how near to PyTorch it must stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import pidep
from pidep.artifacts.names import SHIM
from pidep.errors import UsageError, did_you_mean
from pidep.settings import fault_of, read_yaml

__all__ = ["Quantisation", "Recipe", "Tolerance", "load_recipe", "recipes", "shipped"]


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


class Quantisation(BaseModel):
    """How weights become int8. Activations are quantised while the graph runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_channel: bool = True
    """One scale for each output feature instead of one for a whole matrix."""
    reduce_range: bool = True
    """Weights of 7 bits, which no CPU overflows. False is more precise, on CPUs with VNNI only."""
    min_features: int = Field(default=64, ge=1)
    """Matrices with a smaller side stay in fp32: labels and an adapter's bottleneck. They cost
    little."""


class Recipe(BaseModel):
    """One way to compile. A bank and a merged model are compiled by the same recipes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str = ""
    """One line for `pidep recipes`."""
    runtime: Literal["onnxruntime"]
    precision: Literal["fp32", "int8"]
    """int8: the backbone's matrix products. A bank's experts and all else stay in fp32."""
    opset: int = Field(ge=18, le=23)
    """ONNX operator set of the graph."""
    parity_rows: int = Field(ge=1)
    """Real rows of the task's test split that the gate compares."""
    max_batch_size: int = Field(64, ge=1)
    """Rows in a batch that Triton Server makes."""
    quantisation: Quantisation | None = None
    """For int8 only; the defaults when absent."""
    tolerance: Tolerance

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.quantisation is not None and self.precision != "int8":
            raise ValueError(f"quantisation is for precision int8, not {self.precision}")
        return self


def recipes() -> list[Recipe]:
    """Every recipe that is shipped, by name."""
    return [load_recipe(name) for name in sorted(_names())]


def load_recipe(reference: str) -> Recipe:
    """A recipe by name (`onnx-cpu`) or path.

    Raises:
        UsageError: no such recipe, unknown key, or a value out of range.

    >>> load_recipe("onnx-cpu").precision
    'fp32'
    """
    path = _path_of(reference)
    values = read_yaml(path)
    if not isinstance(values, dict):
        example = shipped("export") / "onnx-cpu.yaml"
        found = type(values).__name__
        raise UsageError(f"{path}: expected a mapping such as that of {example}, found {found}")
    # Before pydantic, whose message for an unknown key has no suggestion.
    _require_known(str(path), values, Recipe)
    for key, model in (("tolerance", Tolerance), ("quantisation", Quantisation)):
        if isinstance(values.get(key), dict):
            _require_known(f"{path}: {key}", values[key], model)
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
        known = sorted(_names())
        hint = did_you_mean(reference, known)
        raise UsageError(
            f"recipe {reference!r}: no such recipe; there are {', '.join(known)}{hint}"
        )
    return path


def _names() -> Iterator[str]:
    return (path.stem for path in shipped("export").glob("*.yaml"))


def _require_known(where: str, values: dict[Any, Any], model: type[BaseModel]) -> None:
    for key in values:
        if key not in model.model_fields:
            hint = did_you_mean(str(key), model.model_fields)
            raise UsageError(f"{where}: unknown key {str(key)[:80]!r}{hint}")
        if fault := fault_of(values[key]):
            raise UsageError(f"{where}: {key}: {fault}")
