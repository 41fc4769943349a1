"""How far an exported graph is from PyTorch: the figures that every record keeps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from pidep.artifacts.record import Record

__all__ = ["GeneratedParity", "Parity", "ParitySlice", "SliceKind", "WorstRow"]


SliceKind = Literal["label", "length", "modality"]


class WorstRow(Record):
    """The row of the gate whose logits differ most."""

    row: int
    """Its number among the compared rows, from 1 on."""
    where: str = ""
    """Its place in the task's data, where that is known."""
    max_abs: float
    """Largest absolute difference of a logit."""
    torch: tuple[float, ...]
    """PyTorch's logits."""
    exported: tuple[float, ...]
    """The exported graph's logits."""


class ParitySlice(Record):
    """Figures of some of the rows."""

    by: SliceKind
    name: str
    """Such as `negative`, `9 to 32 words` or `image`."""
    rows: int
    max_abs: float
    """Largest absolute difference of a logit."""
    argmax_flips: int
    """Rows whose best label differs."""


class GeneratedParity(Record):
    """Texts that an encoder-decoder generates for rows of a task of free answers."""

    rows: int
    same: int
    """Rows whose text is PyTorch's."""
    metric: str
    """The task's, such as `rouge`."""
    metric_torch: float
    metric_exported: float

    @property
    def other_share(self) -> float:
        """The share of texts that are not PyTorch's."""
        return 1 - self.same / self.rows


class Parity(Record):
    """Figures of the parity gate for one expert."""

    rows: int
    """Real rows of the task that were compared."""
    max_abs: float
    """Largest absolute difference of a logit."""
    max_relative: float
    """Largest difference relative to PyTorch's logit; logits below 1e-3 count as 1e-3."""
    argmax_flips: int
    """Rows whose best label differs."""
    metric: str
    """The task's metric, such as `accuracy`."""
    metric_torch: float
    metric_exported: float
    effect: float | None = None
    """How far the expert moves a logit of the bare backbone, at most; None in older files."""
    engine_ran: bool | None = None
    """Whether a TensorRT engine gave the figures, or the graph it was compiled from because the
    machine could not run it; None without an engine."""
    worst_row: WorstRow | None = None
    """None in older files."""
    slices: tuple[ParitySlice, ...] = ()
    """By label, length and modality, where the rows have several."""
    generated: GeneratedParity | None = None
    """Of a task of free answers; `metric` counts how often the right text is the likelier one."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what most experts have none of: files of older releases stay what they are."""
        values: dict[str, Any] = handler(self)
        if not self.slices:
            del values["slices"]
        if self.generated is None:
            values.pop("generated", None)
        return values

    @property
    def worst_slice(self) -> ParitySlice | None:
        """The slice with the largest share of flipped rows, then with the largest error."""
        return max(
            self.slices, key=lambda one: (one.argmax_flips / one.rows, one.max_abs), default=None
        )

    def to_json(self) -> dict[str, Any]:
        """For files and `--json`."""
        return self.model_dump()
