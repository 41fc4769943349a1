"""Sizes of the open axes of a graph, as an optimisation profile of TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pidep.errors import UsageError
from pidep.export.recipe import Profile

__all__ = ["optimisation_profile"]


def optimisation_profile(builder: Any, network: Any, profile: Profile) -> Any:
    """TensorRT's profile, with three sizes for every open axis of the network's inputs.

    Raises:
        UsageError: an axis has no sizes in the recipe.
    """
    found = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        shape = list(tensor.shape)
        # -1 is an open axis; the exporter has named it.
        named = {
            axis: tensor.get_dimension_name(axis) for axis, size in enumerate(shape) if size < 0
        }
        if named:
            sizes = _sizes(shape, named, profile, tensor.name)
            found.set_shape(tensor.name, *sizes)
    return found


def _sizes(
    shape: Sequence[int], named: dict[int, str], profile: Profile, tensor: str
) -> list[tuple[int, ...]]:
    """The tensor's smallest, usual and largest shape."""
    known = profile.sizes()
    for axis, name in named.items():
        if name not in known:
            raise UsageError(
                f"input {tensor!r}: its axis {axis} ({name or 'without a name'}) has no sizes; "
                f"a profile has {', '.join(known)}"
            )
    return [
        tuple(
            known[named[axis]][which] if axis in named else size for axis, size in enumerate(shape)
        )
        for which in range(3)
    ]
