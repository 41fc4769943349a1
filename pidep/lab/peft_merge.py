"""Experts merged and run by PEFT's own code."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

from torch import nn

from pidep.experts.folder import Expert, write_expert

__all__ = ["layers_of", "peft_model"]


def peft_model(model: nn.Module, experts: Sequence[Expert]) -> Any:
    """A `PeftModel` with adapters `expert0`, `expert1`, …; its weights are those of `model`."""
    from peft import PeftModel

    # A deep copy whose memo holds the tensors copies the modules only: no second set of weights.
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied = copy.deepcopy(model, cast(dict[int, Any], shared))
    with (
        tempfile.TemporaryDirectory(prefix="pidep-peft-") as temporary,
        warnings.catch_warnings(),
    ):
        # PEFT asks transformers for an attribute under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        folders = [
            write_expert(expert, Path(temporary) / str(index))
            for index, expert in enumerate(experts)
        ]
        merged = PeftModel.from_pretrained(
            cast(Any, copied), str(folders[0]), adapter_name="expert0"
        )
        for index, folder in enumerate(folders[1:], 1):
            merged.load_adapter(str(folder), adapter_name=f"expert{index}")
    return merged.eval()


@contextmanager
def layers_of(peft: Any, sites: Iterable[str], model: nn.Module) -> Iterator[None]:
    """Inside, PEFT's layers act at the sites of `model`; afterwards its own modules are back.

    The layer cache of the backbone works on `model`, so PEFT's layers have to come to it.
    """
    own = {site: model.get_submodule(site) for site in sites}
    try:
        for site in own:
            model.set_submodule(site, peft.get_base_model().get_submodule(site))
        yield
    finally:
        for site, module in own.items():
            model.set_submodule(site, module)
