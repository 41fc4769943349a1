"""How experts of each kind act on a torch module, one file each.

May import the other modules of `pidep.adapters` that are not `mixture` or `places`,
`pidep.experts.kinds`, `pidep.kernels` and `pidep.errors`.
"""

from importlib import import_module

from pidep.adapters.site import AdapterKind
from pidep.experts.kind_names import kind_names
from pidep.experts.kinds import expert_kind

__all__ = ["KINDS", "adapter_kind"]


def _load(name: str) -> AdapterKind:
    module, _, attribute = expert_kind(name).adapter.partition(":")
    found: AdapterKind = getattr(import_module(module), attribute)
    return found


KINDS: dict[str, AdapterKind] = {name: _load(name) for name in kind_names()}
"""Every kind by name, also those that other packages add."""


def adapter_kind(name: str) -> AdapterKind:
    """The kind of that name.

    Raises:
        ExpertError: there is none.
    """
    return KINDS[expert_kind(name).name]
