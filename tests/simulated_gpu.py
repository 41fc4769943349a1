"""A GPU without a GPU: tensors that say they are on `cuda`, and refuse to meet tensors of the host.

Numbers are computed on the CPU, so results equal those of the CPU bit for bit. What a real GPU
refuses is refused: an operation on tensors of two devices, and a numpy array of a GPU's tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["simulated_gpu"]

_GPU, _HOST = torch.device("cuda"), torch.device("cpu")
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
_SETS = {Tensor.data.__set__, Tensor.grad.__set__}  # type: ignore[attr-defined]
_CROSS = {Tensor.copy_, torch._has_compatible_shallow_copy_type, *_SETS}
"""They may see tensors of two devices."""
_TO_HOST = {Tensor.numpy, Tensor.__array__}


def _place(tensor: Tensor) -> torch.device:
    return _GPU if getattr(tensor, "_on_simulated_gpu", False) else _HOST


def _marked(tensor: Any, place: torch.device) -> None:
    if isinstance(tensor, Tensor):
        tensor._on_simulated_gpu = place == _GPU  # type: ignore[attr-defined]


class _Simulated(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        """Operations that a GPU would have run."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return _place(args[0])
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, options)
        if func in _TO_HOST and _place(args[0]) == _GPU:
            raise TypeError("can't convert cuda device type tensor to numpy; use Tensor.cpu()")
        asked = options.get("device")
        if asked is not None and torch.device(asked).type == "cuda":
            options["device"] = _HOST
        place = self._place_of(func, args, options)
        if func is Tensor.copy_:
            place = _place(args[0])
        found = func(*args, **options)
        for tensor in tree_leaves(found):
            _marked(tensor, place if asked is None else torch.device(asked))
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            _marked(args[0], _place(args[1]))
        return found

    def _place_of(self, func: Any, args: Any, options: Any) -> torch.device:
        tensors = [one for one in tree_leaves((args, options)) if isinstance(one, Tensor)]
        places = {_place(one) for one in tensors}
        if _GPU not in places:
            return _HOST
        self.operations += 1
        # Numbers of the host go along everywhere, and so does an index of the host.
        wrong = [one for one in tensors if _place(one) == _HOST and one.dim()]
        if wrong and func in _INDEXING and _place(args[0]) == _GPU:
            wrong = [one for one in args[2:] if isinstance(one, Tensor) and _place(one) == _HOST]
            wrong = [one for one in wrong if one.dim()]
        if wrong and func not in _CROSS:
            raise RuntimeError(
                f"{getattr(func, '__name__', func)}: expected all tensors to be on the same "
                f"device, found cuda and cpu {tuple(wrong[0].shape)}"
            )
        return _GPU

    def _moved(self, func: Any, args: Any, options: dict[str, Any]) -> Tensor:
        tensor, *rest = args
        asked: Any = {Tensor.cpu: _HOST, Tensor.cuda: _GPU}.get(func)
        if func is Tensor.to:
            rest = [options.pop("device", None), *rest]
            for at, one in enumerate(rest):
                if isinstance(one, Tensor):
                    asked, rest[at] = _place(one), one.dtype
                elif isinstance(one, str | torch.device):
                    asked, rest[at] = torch.device(one), None
            rest = [one for one in rest if one is not None]
            if "other" in options:
                other = options.pop("other")
                asked, rest = _place(other), [other.dtype]
        else:
            rest, options = [], {}
        place = _place(tensor) if asked is None else torch.device(asked.type)
        rest = [one for one in rest if not isinstance(one, bool)]
        found: Tensor = Tensor.to(tensor, *rest, **options) if rest or options else tensor
        if place != _place(tensor) and found is tensor:
            found = tensor.clone()
        _marked(found, place)
        return found


@contextmanager
def simulated_gpu(monkeypatch: Any) -> Iterator[_Simulated]:
    """Inside, torch has one GPU named `simulated`."""
    with monkeypatch.context() as patch, _Simulated() as mode:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda _=0: "simulated")
        yield mode
