"""A model's own image preprocessing, read from its processor's file; torchvision is not needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pidep.errors import BackboneError
from pidep.files.bounded_read import parse_json
from pidep.inputs.images import Preprocess

__all__ = ["preprocess_of", "read_preprocess"]

_BICUBIC = 3


def read_preprocess(source: str | Path) -> Preprocess | None:
    """The preprocessing of a folder or hub id; None where it has no file for it.

    Read from `preprocessor_config.json`, or from the image part of `processor_config.json`.

    Raises:
        BackboneError: the file is damaged, or asks for something that `Preprocess` cannot do.
    """
    from transformers.utils.hub import cached_file

    for name, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        try:
            path = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
            values = None if path is None else parse_json(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackboneError(
                f"backbone {str(source)!r}: {name} cannot be read ({reason})"
            ) from error
        if key is not None and isinstance(values, dict):
            values = values.get(key)
        if isinstance(values, dict):
            return preprocess_of(values, where=f"backbone {str(source)!r}: {name}")
    return None


def preprocess_of(
    values: Mapping[str, Any], *, where: str = "preprocessor_config.json"
) -> Preprocess:
    """The values of a transformers image processor as pidep's preprocessing.

    Raises:
        BackboneError: the values ask for something that is not supported; begins with `where`.

    >>> values = {"size": {"height": 384, "width": 384}, "image_mean": [0.5] * 3}
    >>> preprocess_of({**values, "image_std": [0.5] * 3}).fit
    'stretch'
    """
    wanted = {"do_resize": True, "do_rescale": True, "resample": _BICUBIC, "do_pad": False}
    for key, expected in wanted.items():
        found = values.get(key)
        # Refused, not approximated: another filter gives other pixels than the model was trained
        # on.
        if found is not None and found != expected:
            raise BackboneError(
                f"{where}: {key} is {found!r}, expected {expected!r}: images are resized "
                "bicubically and scaled to [0, 1]"
            )
    factor = values.get("rescale_factor")
    if factor is not None and not math.isclose(float(factor), 1 / 255, rel_tol=1e-6):
        raise BackboneError(f"{where}: rescale_factor is {factor}, expected 1/255")
    size, fit, share = _size(values, where)
    # A file that does not say normalises, as transformers' processors do.
    normal = values.get("do_normalize") is not False
    mean, std = (
        values.get(key) if normal else [default] * 3
        for key, default in (("image_mean", 0.0), ("image_std", 1.0))
    )
    try:
        return Preprocess(size=size, fit=fit, share=share, mean=_three(mean), std=_three(std))
    except (TypeError, ValueError) as error:
        raise BackboneError(
            f"{where}: image_mean {mean} and image_std {std}: expected three numbers each"
        ) from error


def _size(values: Mapping[str, Any], where: str) -> tuple[int, Any, float]:
    """Side, fit and share."""
    size, crop = values.get("size"), values.get("crop_size")
    crops = bool(values.get("do_center_crop"))
    if isinstance(size, int):  # Old files give a size as one number.
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    sides = _square(crop) if crops else None
    whole = _square(size)
    if whole is not None and sides in (None, whole):
        return whole, "stretch", 1.0
    if (
        isinstance(size, dict)
        and isinstance(size.get("shortest_edge"), int)
        and sides is not None
        and sides <= size["shortest_edge"]
    ):
        return sides, "crop", sides / size["shortest_edge"]
    raise BackboneError(
        f"{where}: size {size} and crop_size {crop if crops else None}: expected a square height "
        "and width, "
        "or a shortest_edge and a square in its middle"
    )


def _square(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    if (
        isinstance(size, dict)
        and isinstance(size.get("height"), int)
        and size["height"] == size.get("width")
    ):
        return int(size["height"])
    return None


def _three(values: Any) -> tuple[float, float, float]:
    one, two, three = (float(value) for value in values)
    return one, two, three
