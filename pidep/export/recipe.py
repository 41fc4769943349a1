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

__all__ = [
    "Precision",
    "Profile",
    "Quantisation",
    "Recipe",
    "Tolerance",
    "load_recipe",
    "recipes",
    "shipped",
]


Precision = Literal["fp32", "fp16", "int8"]


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
    other_texts: float = Field(default=0.0, ge=0, le=1)
    """Share of an encoder-decoder's generated texts that may differ."""


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
    max_product_error: float | None = Field(default=None, gt=0)
    """A product whose int8 alone changes the graph's output by more stays in fp32. Relative, root
    mean square over training rows; without it, nothing is measured and all are in int8."""


Sizes = tuple[int, int, int]
"""Smallest, usual and largest size of an axis."""


class Profile(BaseModel):
    """Sizes of a graph's open axes, for which TensorRT compiles. Others are refused at run time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: Sizes = (1, 8, 64)
    """Rows."""
    length: Sizes = (1, 32, 128)
    """Tokens of the longest text in a batch."""
    experts: Sizes = (1, 9, 65)
    """Rows of a bank's inputs: its experts and the bare backbone."""
    mixed: Sizes = (1, 1, 8)
    """Experts that a row of a bank names: 1, or the parts of its mixture."""
    places: Sizes = (0, 17, 17)
    """Visual tokens; 0 where no row of a batch has an image."""
    images: Sizes = (1, 8, 64)
    """Images of a batch, for the vision graph."""

    def sizes(self) -> dict[str, Sizes]:
        """Axis name to its sizes."""
        sizes = {name: getattr(self, name) for name in type(self).model_fields}
        # One row of slots stands for a batch whose rows all name the same expert.
        return sizes | {"slot_rows": (1, *self.batch[1:])}

    @model_validator(mode="after")
    def _ascending(self) -> Profile:
        for name, (smallest, usual, largest) in self.sizes().items():
            if not 0 <= smallest <= usual <= largest:
                raise ValueError(
                    f"{name}: expected smallest, usual and largest size, found "
                    f"{[smallest, usual, largest]}"
                )
        return self


class Recipe(BaseModel):
    """One way to compile. A bank and a merged model are compiled by the same recipes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str = ""
    """One line for `pidep recipes`."""
    runtime: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    precision: Precision
    """fp16: backbone and experts; pooling and logits stay in fp32. int8: the backbone's matrix
    products; a bank's experts and all else stay in fp32."""
    opset: int = Field(ge=18, le=23)
    """ONNX operator set of the graph."""
    operators: Literal["any", "standard"] = "any"
    """standard: refuse a graph with operators that are not ONNX's own."""
    weights: Literal["auto", "beside"] = "auto"
    """beside: in `model.onnx.data`. auto: there when they have 2 GiB, else in `model.onnx`."""
    parity_rows: int = Field(ge=1)
    """Real rows of the task's test split that the gate compares."""
    max_batch_size: int = Field(64, ge=1)
    """Rows in a batch that Triton Server makes."""
    quantisation: Quantisation | None = None
    """For int8 only; the defaults when absent."""
    profile: Profile | None = None
    """For TensorRT only; needed there."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that TensorRT for RTX compiles for, such as "8.9". Without it, the machine's own GPU."""
    tolerance: Tolerance

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.quantisation is not None and self.precision != "int8":
            raise ValueError(f"quantisation is for precision int8, not {self.precision}")
        if self.runtime == "onnxruntime":
            if self.profile is not None or self.compute_capabilities:
                raise ValueError("profile and compute_capabilities are for TensorRT")
        elif self.profile is None or self.precision == "int8":
            raise ValueError(f"{self.runtime} needs a profile, and precision fp32 or fp16")
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
    for key, model in (
        ("tolerance", Tolerance),
        ("quantisation", Quantisation),
        ("profile", Profile),
    ):
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
