"""The figures of the parity gate, and the bounds that a recipe sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.artifacts.parity import Parity
from pidep.errors import ParityError
from pidep.export.recipe import Tolerance
from pidep.tasks.metrics import score

__all__ = [
    "NO_EFFECT",
    "BeyondTolerance",
    "check_effect",
    "check_parity",
    "effect_of",
    "measure_parity",
    "refusal_of",
]

_SHOWN_LOGITS = 4
NO_EFFECT = 1e-5
"""Of a logit. Rounding alone moves a logit of fp32 by less."""


class BeyondTolerance(ParityError):
    """One expert that the precision of a graph is too low for."""

    def __init__(
        self, name: str, reason: str, *, parity: Parity | None = None, details: str = ""
    ) -> None:
        """The refusal of an expert.

        Args:
            name: the expert's.
            reason: which figure is beyond which bound.
            parity: all figures; None where a number is not finite.
            details: the worst row and slice, and where the graph goes wrong; each after a `; `.
        """
        self.reason = reason
        self.parity = parity
        self.details = details
        super().__init__(f"parity of {name!r}: {reason}{details}; nothing was published")


def refusal_of(
    refused: Mapping[str, BeyondTolerance], *, asked: int, hint: str = ""
) -> ParityError:
    """One error for all experts that were refused: one line, with every name.

    Args:
        refused: at least one.
        asked: experts that the gate was given.
        hint: what to do about it.
    """
    (first, error), *others = refused.items()
    if not others:
        return ParityError(f"{error}{hint}")
    reasons = "; ".join(f"{name!r}: {one.reason}" for name, one in refused.items())
    details = f"; {first!r} in detail: {error.details.removeprefix('; ')}" if error.details else ""
    return ParityError(
        f"parity of {len(refused)} of {asked} experts: {reasons}{details}; nothing was "
        f"published{hint}"
    )


def measure_parity(
    reference: npt.NDArray[Any], exported: npt.NDArray[Any], *, labels: list[int], metric: str
) -> Parity:
    """How far exported logits are from PyTorch's.

    Args:
        reference: PyTorch's logits `[N, C]`.
        exported: the exported entry's, `[N, C]`.
        labels: the right label of each row.
        metric: name of the task's metric.

    Raises:
        ParityError: the exported logits are not finite.
    """
    # Asked first: every comparison with NaN is false, so each bound below would pass.
    if not np.isfinite(exported).all():
        raise ParityError(
            "parity: the exported graph gives NaN or Inf on real rows; nothing was published"
        )
    # In fp64, so that the difference itself rounds nothing away.
    difference = np.abs(reference.astype(np.float64) - exported.astype(np.float64))
    return Parity(
        rows=len(labels),
        max_abs=float(difference.max()),
        # Logits near zero would make any difference look large; 1e-3 bounds the divisor.
        max_relative=float((difference / np.maximum(np.abs(reference), 1e-3)).max()),
        argmax_flips=int((reference.argmax(1) != exported.argmax(1)).sum()),
        metric=metric,
        metric_torch=score(metric, labels, reference.argmax(1).tolist()),
        metric_exported=score(metric, labels, exported.argmax(1).tolist()),
    )


def check_parity(
    name: str, parity: Parity, tolerance: Tolerance, *, explain: Callable[[], str] = str
) -> None:
    """Pass, or refuse.

    Args:
        explain: gives more of the message; asked only where a bound is broken.

    Raises:
        BeyondTolerance: the first bound that is broken, with both figures.
    """
    lost = parity.metric_torch - parity.metric_exported
    checks: list[tuple[str, float, float]] = [
        ("max abs error", parity.max_abs, tolerance.max_abs),
        ("argmax flips", parity.argmax_flips, tolerance.argmax_flips),
        (f"loss of {parity.metric}", lost, tolerance.metric_drop),
    ]
    if (texts := parity.generated) is not None:
        lost = texts.metric_torch - texts.metric_exported
        checks += [
            ("share of other generated texts", texts.other_share, tolerance.other_texts),
            (f"loss of {texts.metric} of generated texts", lost, tolerance.metric_drop),
        ]
    for what, found, allowed in checks:
        if found > allowed:
            raise BeyondTolerance(
                name,
                f"{what} is {found:.3g}, the recipe allows {allowed:.3g}",
                parity=parity,
                details=f"{_worst(parity)}{explain()}",
            )


def _worst(parity: Parity) -> str:
    """The worst row and slice, for a message."""
    row, part = parity.worst_row, parity.worst_slice
    found = ""
    if row is not None:
        place = f" ({row.where})" if row.where else ""
        found = (
            f"; the worst is row {row.row}{place}, with logits {_numbers(row.torch)} in PyTorch "
            f"and {_numbers(row.exported)} in the graph"
        )
    if part is not None:
        found += (
            f"; the worst slice is {part.by} {part.name!r}: {part.argmax_flips} of {part.rows} "
            f"rows flip, max abs error {part.max_abs:.3g}"
        )
    return found


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values[:_SHOWN_LOGITS])
    return f"[{shown}{', …' if len(values) > _SHOWN_LOGITS else ''}]"


def effect_of(
    reference: npt.NDArray[Any],  # [N, C]
    bare: npt.NDArray[Any],  # [M, C], M ≤ N
) -> float:
    """How far an expert moves a logit of the bare backbone, at most, on the first M rows."""
    return float(np.abs(reference[: len(bare)] - bare).max())


def check_effect(name: str, parity: Parity, *, explain: Callable[[], str] = str) -> None:
    """Refuse an expert whose answers could be the bare backbone's.

    An adapter that is loaded and changes nothing gives no error anywhere. A graph in which the
    expert's tensors reach nothing differs from PyTorch by what the expert does.

    Args:
        explain: as in `check_parity`, of an error of the graph.

    Raises:
        ParityError: the expert changes no logit.
        BeyondTolerance: the graph's error is over half of the expert's effect.
    """
    effect = parity.effect or 0.0
    if effect < NO_EFFECT:
        raise ParityError(
            f"expert {name!r}: changes no logit of {parity.rows} rows by more than "
            f"{NO_EFFECT:.0e}, so it would answer as the bare backbone; train it longer or at "
            "other sites; nothing was published"
        )
    # Half, not all: a graph without the expert is off by its effect, plus or minus its rounding.
    if parity.max_abs > effect / 2:
        raise BeyondTolerance(
            name,
            f"the graph's error of {parity.max_abs:.3g} is over half of what the expert does, "
            f"{effect:.3g}",
            parity=parity,
            details=f"{explain()}; use a recipe of more precision",
        )
