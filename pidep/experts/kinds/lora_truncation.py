"""A LoRA of a large rank as a LoRA of a small rank, by truncated SVD."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.kind import Array, Tensors, Truncated

__all__ = ["truncate"]


def truncate(
    sites: Mapping[str, Tensors], *, scaling: float, rank: int, max_error: float = 1.0
) -> Truncated:
    """The nearest LoRA of rank `rank` (Eckart and Young): the truncated SVD of s·BA.

    Raises:
        ExpertError: rank < 1, or the relative error of a site is above `max_error`; the message
            names the site and a sufficient rank.
    """
    if rank < 1:
        raise ExpertError(f"fold: rank {rank}, expected at least 1")
    small: dict[str, dict[str, Array]] = {}
    errors: dict[str, float] = {}
    enough = rank
    for site, lora in sites.items():
        # fp64: the error of the truncation is reported, and must not be that of the arithmetic.
        a, b = lora["lora_A"].astype(np.float64), lora["lora_B"].astype(np.float64) * scaling
        # Two thin QR and an SVD of [q, p] give the SVD of BA without forming [out, in].
        left, upper = np.linalg.qr(b)  # [out, q], [q, R]
        right, lower = np.linalg.qr(a.T)  # [in, p], [p, R]
        u, singular, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
        kept = min(rank, len(singular))
        # Both factors get the square root of the singular values, so neither dwarfs the other.
        root = np.sqrt(singular[:kept])
        factors = {
            "lora_A": root[:, None] * (right @ v[:kept].T).T,
            "lora_B": (left @ u[:, :kept]) * root,
        }
        small[site] = {
            "lora_A": _padded(factors["lora_A"], (rank, a.shape[1])),
            "lora_B": _padded(factors["lora_B"], (b.shape[0], rank)),
        }
        energy = np.cumsum(singular[::-1] ** 2)[::-1]  # left out from each position on
        total = float(energy[0]) if len(energy) else 0.0
        shares = (
            np.sqrt(np.append(energy, 0.0) / total) if total > 0 else np.zeros(len(singular) + 1)
        )
        errors[site] = float(shares[kept])
        enough = max(enough, int(np.argmax(shares <= max_error)))
    found = Truncated(small, errors)
    site, worst = found.worst
    if worst > max_error:
        raise ExpertError(
            f"fold: at rank {rank} the error of {site} is {worst:.3g}, allowed {max_error:.3g}; "
            f"use `rank={enough}` or a larger `max_error`"
        )
    return found


def _padded(array: npt.NDArray[np.float64], shape: tuple[int, int]) -> Array:
    """The array with zeros up to the shape, so that all sites have the same rank."""
    out = np.zeros(shape, dtype=np.float32)
    out[: array.shape[0], : array.shape[1]] = array
    return out
