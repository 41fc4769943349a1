"""Whether an expert can answer at all: types, shapes and numbers, checked once and for everyone.

An expert comes from training, from a file of another program, or from a caller's own code. Export,
publishing, loading and swapping ask here, so that a server never meets what none of them expected.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pidep.errors import ExpertError
from pidep.experts.finite import LARGEST, as_finite_fp32, is_finite_number, magnitude
from pidep.experts.kinds import expert_kind

if TYPE_CHECKING:
    from pidep.experts.folder import Expert

__all__ = ["MOST_BIAS", "require_valid", "require_within"]

MOST_BIAS = 100.0
"""Nats. Beyond it, a label is always or never the answer."""


def require_valid(expert: Expert, *, where: str = "") -> None:
    """Refuse an expert that cannot answer.

    Args:
        where: begins the message; the expert's name when absent.

    Raises:
        ExpertError: a value of another type, a wrong shape, or a number that fp32 does not hold.
    """
    where = where or f"expert {str(expert.name)[:60]!r}"
    _require_numbers(expert, where)
    _require_sites(expert, where)
    _require_labels(expert, where)


def require_within(expert: Expert, *, width: int, max_positions: int) -> None:
    """Refuse an expert of another width, or that reads longer texts, than its backbone has.

    Args:
        width: D of the backbone's embedding; 0 where it is not known.
        max_positions: the most tokens that the backbone reads.

    Raises:
        ExpertError: the message names the value.
    """
    found = expert.label_embeddings.shape[1]
    if width and found != width:
        raise ExpertError(
            f"expert {expert.name!r}: label embeddings have width {found}, the backbone's have "
            f"{width}; tune it on this backbone"
        )
    if expert.max_length > max_positions:
        raise ExpertError(
            f"expert {expert.name!r}: max_length is {expert.max_length}, the backbone reads at "
            f"most {max_positions} tokens; tune it with a smaller `max_length`"
        )


def _require_numbers(expert: Expert, where: str) -> None:
    for name, value in (("logit_scale", expert.logit_scale), ("scaling", expert.scaling)):
        if not is_finite_number(value):
            raise ExpertError(
                f"{where}: {name} is {_shown(value)}, expected a finite number; train it again"
            )
    lengths: dict[str, Any] = {"max_length": expert.max_length}
    if expert.max_answer_length is not None:
        lengths["max_answer_length"] = expert.max_answer_length
    for name, length in lengths.items():
        whole = isinstance(length, numbers.Integral) and not isinstance(length, bool)
        if not whole or length < 1:
            raise ExpertError(
                f"{where}: {name} is {_shown(length)}, expected a whole number of at least 1; "
                "train it again"
            )


def _require_sites(expert: Expert, where: str) -> None:
    kind = expert_kind(expert.kind)
    if not isinstance(expert.sites, Mapping) or not expert.sites:
        raise ExpertError(f"{where}: has no sites, so it would change nothing; train it again")
    for site, tensors in expert.sites.items():
        for name, array in tensors.items():
            cast = as_finite_fp32(array)
            if cast is None or not cast.ndim:
                raise ExpertError(
                    f"{where}: {site}.{name} is {_described(array)}, expected finite floats; "
                    "train the expert again with a smaller learning rate"
                )
            # The scaling is folded into the tensors, and the product must be finite, too.
            if magnitude(cast) * abs(expert.scaling) > LARGEST:
                raise ExpertError(
                    f"{where}: {site}.{name} times the scaling {expert.scaling:g} is not finite; "
                    "train the expert again with a smaller learning rate"
                )
        kind.check_tensors(tensors, where=f"{where}: site {str(site)[:80]!r}")
    sizes = {kind.size_of(tensors) for tensors in expert.sites.values()}
    if len(sizes) > 1:
        raise ExpertError(
            f"{where}: sites have sizes {', '.join(map(str, sorted(sizes)))}, expected one size; "
            "train it again"
        )


def _require_labels(expert: Expert, where: str) -> None:
    _require_texts(expert.labels, f"{where}: label")
    _require_texts(expert.label_texts, f"{where}: label text")
    # Clients get scores by label, and an empty name ends a row of fewer labels.
    if "" in expert.labels or len(set(expert.labels)) != len(expert.labels):
        raise ExpertError(f"{where}: labels are empty or repeated; give each its own name")
    embeddings = as_finite_fp32(expert.label_embeddings)
    if embeddings is None or embeddings.ndim != 2 or len(embeddings) != len(expert.labels):
        raise ExpertError(
            f"{where}: {len(expert.labels)} labels but label_embeddings is "
            f"{_described(expert.label_embeddings)}, expected finite floats "
            f"({len(expert.labels)}, D); train it again"
        )
    if expert.label_bias and len(expert.label_bias) != len(expert.labels):
        raise ExpertError(
            f"{where}: label_bias has {len(expert.label_bias)} numbers for {len(expert.labels)} "
            "labels, expected one each; train it again"
        )
    for value in expert.label_bias:
        if not is_finite_number(value) or abs(value) > MOST_BIAS:
            raise ExpertError(
                f"{where}: label_bias holds {_shown(value)}, expected numbers from -{MOST_BIAS:g} "
                f"to {MOST_BIAS:g}; train it again"
            )
    longest = np.linalg.norm(embeddings.astype(np.float64), axis=1).max(initial=0.0)
    # An embedding has length 1, so no logit is above this product.
    if float(longest) * abs(expert.logit_scale) > LARGEST:
        raise ExpertError(
            f"{where}: logit_scale {expert.logit_scale:g} times the label embeddings is not "
            "finite; train it again"
        )


def _require_texts(texts: Sequence[Any], what: str) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise ExpertError(f"{what} {_shown(text)} is a {type(text).__name__}, expected a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ExpertError(f"{what} {ascii(text)[:60]} is not UTF-8; rename it") from error


def _described(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return f"a {type(array).__name__}"
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    return f"{array.dtype} {array.shape}{'' if finite else ', and holds NaN or Inf'}"


def _shown(value: Any) -> str:
    """The value, short. An integer of thousands of digits has no decimal text at all."""
    try:
        return repr(value)[:60]
    except ValueError:
        return f"a {type(value).__name__} of thousands of digits"
