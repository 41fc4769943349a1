"""Class priors: how often each label is right where an expert is used, and what that decides.

Shots are drawn evenly from the labels, and rows of the world are not. A softmax of scores says
p(label | row) for the shares of the training rows. For other shares it is wrong by the ratio of the
shares, which is a bias of each logit. So three numbers decide, in this order:

1. *Calibration*: a temperature and a bias of each label, fitted on held-out rows. Both are drawn to
   "none" by a prior, because few shots hold out few rows (bias-corrected temperature scaling,
   Alexandari et al., ICML 2020).
2. *Priors*: given by the user, or estimated from rows without labels by expectation maximisation
   (Saerens et al., Neural Computation 2002).
3. *Bias*: of calibration, and the logarithm of new shares over old ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import log_softmax  # type: ignore[import-untyped]

from pidep.interpolation.held_out import HeldOut

__all__ = ["Calibration", "calibrate", "estimate_priors", "label_shares", "prior_bias"]

Array = npt.NDArray[np.float64]

_TEMPERATURE_SPREAD = 0.35
"""Standard deviation of log T before any row is seen."""
_BIAS_SPREAD = 0.25
"""Standard deviation of a bias, in nats, before any row is seen (decision 028)."""
_PSEUDO_ROWS = 2.0
"""Rows of the training shares that an estimate begins with; no share becomes zero."""
_MOST_ROUNDS = 1000
_STILL = 1e-7


@dataclass(frozen=True)
class Calibration:
    """What makes logits log-probabilities: logits / temperature + bias."""

    temperature: float = 1.0
    bias: tuple[float, ...] = ()
    """[C] nats; empty for none."""
    rows: int = 0
    """Held-out rows behind it."""

    def applied(self, logits: npt.ArrayLike) -> Array:
        """`[N, C]` calibrated logits of `[N, C]` logits."""
        scaled = np.asarray(logits, np.float64) / self.temperature
        return scaled + np.asarray(self.bias) if self.bias else scaled


def calibrate(held_out: HeldOut) -> Calibration:
    """Temperature and bias of the highest posterior density on held-out rows."""
    logits = held_out.logits.double().numpy()
    labels = held_out.labels.numpy()
    rows, count = logits.shape
    spread: Array = np.full(1 + count, _BIAS_SPREAD)
    spread[0] = _TEMPERATURE_SPREAD

    def loss(point: Array) -> tuple[float, Array]:
        # In 1 / T and bias the cross-entropy is convex; log T keeps T positive.
        inverse = np.exp(-point[0])
        scores = log_softmax(logits * inverse + point[1:], axis=1)
        error = np.exp(scores)
        error[np.arange(rows), labels] -= 1
        gradient: Array = np.zeros(1 + count)
        gradient[0], gradient[1:] = -inverse * (error * logits).sum(), error.sum(0)
        value = -scores[np.arange(rows), labels].sum() + ((point / spread) ** 2).sum() / 2
        gradient += point / spread**2
        return float(value), gradient

    found = minimize(loss, np.zeros(1 + count), jac=True, method="L-BFGS-B").x
    return Calibration(float(np.exp(found[0])), tuple(map(float, found[1:])), rows)


def estimate_priors(logits: npt.ArrayLike, shares: Sequence[float]) -> tuple[float, ...]:
    """`[C]` shares of the labels among rows without labels (Saerens et al., 2002, equation 2.9).

    Args:
        logits: `[N, C]` calibrated logits of those rows.
        shares: `[C]` shares of the labels in the rows that the logits were learned from.
    """
    scores, old = np.asarray(logits, np.float64), np.asarray(shares, np.float64)
    found = old
    for _ in range(_MOST_ROUNDS):
        expected = np.exp(log_softmax(scores + np.log(found / old), axis=1)).sum(0)
        # Pseudo-rows: the likelihood alone would give a label without any row the share zero.
        moved = (expected + _PSEUDO_ROWS * old) / (len(scores) + _PSEUDO_ROWS)
        still = np.abs(moved - found).max() < _STILL
        found = moved
        if still:
            break
    return tuple(map(float, found))


def label_shares(labels: Sequence[int], count: int) -> tuple[float, ...]:
    """`[C]` shares of the labels in training rows; every label has one."""
    found = np.bincount(np.asarray(labels), minlength=count).astype(np.float64)
    return tuple(map(float, found / found.sum()))


def prior_bias(
    calibration: Calibration, priors: Sequence[float], shares: Sequence[float]
) -> tuple[float, ...]:
    """`[C]` the bias of an expert's labels, nats of mean 0, exact in fp32.

    It goes with logits that are divided by the temperature.

    Args:
        priors: shares of the labels where the expert is used.
        shares: shares of the labels in the training rows.
    """
    bias = np.log(priors) - np.log(shares) + np.asarray(calibration.bias or 0.0)
    # The softmax does not change with the mean, and digests should not depend on it.
    return tuple(float(one) for one in (bias - bias.mean()).astype(np.float32))
