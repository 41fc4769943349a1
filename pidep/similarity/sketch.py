"""A task embedding in 256 numbers, whose Euclidean distance predicts the similarity.

The normalised cosine of two tensors is close to exp(−Var(d)/2) with d = log l − log r (see
`pidep.similarity.measures`). Var(d) is the squared Euclidean distance of the tensors' centred
logarithms. So the centred logarithms, scaled to weigh every tensor alike, are points whose nearest
neighbours are the most similar tasks. They are clipped because the cosine, unlike Var(d),
saturates.

A count sketch (Charikar et al., 2002) sends each coordinate to one bucket, with a sign. It keeps
distances to within √(2/256) = 9 % in one pass over the vector.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from pidep.similarity.measures import TensorLayout, Vector

__all__ = ["Sketcher"]

WIDTH = 256
CLIP = 4.0
"""Most distance of a logarithm from its tensor's mean of logarithms."""
FLOOR = 1e-6
"""A zero counts as this share of its tensor's mean."""


class Sketcher:
    """Sketches embeddings of one layout, the same on every machine.

    Buckets and signs come from a fixed hash and not from a library's random numbers.
    """

    def __init__(self, layout: TensorLayout) -> None:
        self.layout = layout
        size = layout.spans[-1].stop
        mixed = _splitmix64(np.arange(size, dtype=np.uint64))
        self._buckets = (mixed % np.uint64(WIDTH)).astype(np.intp)
        self._signs = np.where(mixed >> np.uint64(63), 1.0, -1.0)

    @property
    def key(self) -> str:
        """Cache key of sketches; changes with everything that changes a sketch."""
        # The first number is the version of this code; raise it with every change of the numbers.
        parts = repr((1, WIDTH, CLIP, FLOOR, self.layout.shapes))
        return hashlib.sha256(parts.encode()).hexdigest()

    def __call__(self, vector: Vector) -> Vector:
        """`[P]` to `[256]` fp32."""
        logs = np.empty(len(vector))
        for span in self.layout.spans:
            part = vector[span].astype(np.float64)
            mean = part.mean()
            # A share of the mean, so that a sketch does not depend on the scale of the Fisher.
            own = np.log(part + FLOOR * mean) if mean > 0 else np.zeros(len(part))
            # Divided by the root of its length, so that every tensor counts alike, as in the
            # similarity.
            logs[span] = np.clip(own - own.mean(), -CLIP, CLIP) / np.sqrt(
                len(part) * len(self.layout.spans)
            )
        return np.bincount(self._buckets, weights=logs * self._signs, minlength=WIDTH).astype(
            np.float32
        )


def _splitmix64(counter: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """64 well-mixed bits for each number (Steele et al., 2014)."""
    mixed = (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
