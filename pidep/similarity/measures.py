"""Similarity of two task embeddings, as a whole and by site. numpy only.

The normalised cosine of l and r is the cosine of l/(l+r) with r/(l+r) (Task2Vec; π-Tuning section
3.2). Because l/(l+r) = sigmoid(d), it depends on d = log l − log r alone. It is exactly 1 where d
is constant (l proportional to r) and falls as d spreads; for a small spread it is exp(−Var(d)/2).
`pidep.similarity.sketch` builds on that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError

__all__ = [
    "Embedding",
    "Neighbour",
    "SiteAgreement",
    "TensorLayout",
    "explain",
    "most_similar",
    "normalised_cosine",
    "scale_free",
    "similarity",
    "similarity_by_site",
    "similarity_by_tensor",
]

Embedding = Mapping[str, npt.NDArray[np.float32]]
"""`<site>.<tensor>` to the diagonal Fisher of that tensor."""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Neighbour:
    """A task with its similarity to the target."""

    name: str
    similarity: float


@dataclass(frozen=True)
class SiteAgreement:
    """The similarity of two tasks at one site."""

    site: str
    similarity: float


@dataclass(frozen=True)
class TensorLayout:
    """Names and shapes of an embedding's tensors: the order in which they form a vector."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """By name, sorted."""

    @classmethod
    def of(cls, embedding: Embedding) -> TensorLayout:
        """The layout of an embedding.

        Raises:
            ExpertError: the embedding holds no tensors.
        """
        if not embedding:
            raise ExpertError("a task embedding holds no tensors; train the expert again")
        # Sorted, because two files may list the same tensors in another order.
        return cls(tuple((name, embedding[name].shape) for name in sorted(embedding)))

    @cached_property
    def spans(self) -> list[slice]:
        """The place of each tensor in the vector."""
        ends = list(accumulate(math.prod(shape) for _, shape in self.shapes))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def vector(self, embedding: Embedding) -> Vector:
        """All tensors end to end, fp32.

        Raises:
            ExpertError: the embedding has another layout, or values that are no means of squares.
        """
        if embedding.keys() != {name for name, _ in self.shapes}:
            raise ExpertError(
                "task embeddings come from experts on different sites; train them with the same "
                "sites and rank"
            )
        for name, shape in self.shapes:
            if embedding[name].shape != shape:
                raise ExpertError(
                    f"task embeddings differ in shape at {name!r}: {shape} and "
                    f"{embedding[name].shape}; use one rank"
                )
        flat: Vector = np.concatenate([embedding[name].ravel() for name, _ in self.shapes]).astype(
            np.float32, copy=False
        )
        if not (np.isfinite(flat).all() and (flat >= 0).all()):
            raise ExpertError(
                "a task embedding holds negative numbers, NaN or Inf; compute it again"
            )
        return flat

    def similarity(self, left: Vector, right: Vector) -> float:
        """Mean of `cosines`."""
        # fsum is exact, so the order of the tensors does not change the last digit.
        return math.fsum(self.cosines(left, right)) / len(self.shapes)

    def cosines(self, left: Vector, right: Vector) -> list[float]:
        """The normalised cosine of each tensor of two vectors of this layout.

        One tensor at a time, because its fp64 temporaries then fit into the processor's cache.
        """
        return [normalised_cosine(left[span], right[span]) for span in self.spans]


def normalised_cosine(left: Vector, right: Vector) -> float:
    """The cosine of l/(l+r) with r/(l+r) of one tensor, in [0, 1]."""
    # fp64: a Fisher of 1e-8 of the other has a squared share that vanishes beside 1 in fp32.
    share, rest = left.astype(np.float64), right.astype(np.float64)
    total = share + rest
    nothing = total == 0
    if nothing.any():  # two zeros agree
        share[nothing] = rest[nothing] = 0.5
        total[nothing] = 1.0
    share /= total
    rest /= total
    lengths = np.sqrt((share @ share) * (rest @ rest))
    # Rounding can lift the cosine of proportional vectors above 1.
    return min(1.0, float(share @ rest / lengths)) if lengths > 0 else 0.0


def similarity_by_tensor(left: Embedding, right: Embedding) -> dict[str, float]:
    """The normalised cosine of each expert tensor, in [0, 1].

    Raises:
        ExpertError: the embeddings differ in their tensors, or hold negatives, NaN or Inf.
    """
    layout = TensorLayout.of(left)
    cosines = layout.cosines(layout.vector(left), layout.vector(right))
    return {name: cosine for (name, _), cosine in zip(layout.shapes, cosines, strict=True)}


def similarity_by_site(left: Embedding, right: Embedding) -> dict[str, float]:
    """Mean of `similarity_by_tensor` over the tensors of each site."""
    found: dict[str, list[float]] = {}
    for name, value in similarity_by_tensor(left, right).items():
        found.setdefault(name.rpartition(".")[0], []).append(value)
    return {site: float(np.mean(values)) for site, values in found.items()}


def similarity(left: Embedding, right: Embedding) -> float:
    """Mean of `similarity_by_tensor`: symmetric, in [0, 1]; 1 for proportional tensors."""
    layout = TensorLayout.of(left)
    return layout.similarity(layout.vector(left), layout.vector(right))


def scale_free(embedding: Embedding) -> dict[str, npt.NDArray[np.float32]]:
    """Each tensor divided by its mean.

    An expert that knows its few shots by heart has gradients, and so a Fisher, many orders of
    magnitude below those of other experts (1e-15 against 3e-4 at 8 shots a class). The normalised
    cosine of vectors so far apart depends on their few largest elements only.
    """
    means = {name: np.float64(array.mean(dtype=np.float64)) for name, array in embedding.items()}
    return {
        name: (array / means[name]).astype(np.float32) if means[name] > 0 else array
        for name, array in embedding.items()
    }


def explain(left: Embedding, right: Embedding) -> list[SiteAgreement]:
    """The sites by their agreement, best first; ties by name."""
    agreements = [
        SiteAgreement(site, value) for site, value in similarity_by_site(left, right).items()
    ]
    return sorted(agreements, key=lambda agreement: (-agreement.similarity, agreement.site))


def most_similar(
    target: Embedding, others: Mapping[str, Embedding], *, top_k: int
) -> list[Neighbour]:
    """The `top_k` most similar tasks, best first; ties by name.

    Reads every embedding; for pools of thousands see `pidep.similarity.index`.
    """
    layout = TensorLayout.of(target)
    vector = layout.vector(target)
    ranked = [
        Neighbour(name, layout.similarity(vector, layout.vector(other)))
        for name, other in others.items()
    ]
    return sorted(ranked, key=lambda neighbour: (-neighbour.similarity, neighbour.name))[:top_k]
