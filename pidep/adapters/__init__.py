"""How experts act on a torch module: sites, mixtures, attaching and folding.

`site` is the one interface and `kinds` has a file for each kind. `places` finds sites,
`forward_facts` looks at a model by running it, `arena` holds the tensors of K experts, and
`mixture` attaches them. `bank` attaches sites whose experts are inputs, row by row; `bank_rows`
gathers them, and `row_ops` are the operations between the two. May import `pidep.experts`,
`pidep.kernels` and `pidep.errors`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.adapters.fold import folded_or_attached
    from pidep.adapters.forward_facts import ForwardFacts
    from pidep.adapters.kinds import KINDS, adapter_kind
    from pidep.adapters.mixture import Mixture, attached
    from pidep.adapters.places import find_sites, fresh, survey
    from pidep.adapters.site import AdapterKind, BankSite, ExpertSite, LayerSite, WrappedSite

__all__ = [
    "KINDS",
    "AdapterKind",
    "BankSite",
    "ExpertSite",
    "ForwardFacts",
    "LayerSite",
    "Mixture",
    "WrappedSite",
    "adapter_kind",
    "attached",
    "find_sites",
    "folded_or_attached",
    "fresh",
    "survey",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AdapterKind": "pidep.adapters.site",
        "BankSite": "pidep.adapters.site",
        "ExpertSite": "pidep.adapters.site",
        "ForwardFacts": "pidep.adapters.forward_facts",
        "KINDS": "pidep.adapters.kinds",
        "LayerSite": "pidep.adapters.site",
        "Mixture": "pidep.adapters.mixture",
        "WrappedSite": "pidep.adapters.site",
        "adapter_kind": "pidep.adapters.kinds",
        "attached": "pidep.adapters.mixture",
        "find_sites": "pidep.adapters.places",
        "folded_or_attached": "pidep.adapters.fold",
        "fresh": "pidep.adapters.places",
        "survey": "pidep.adapters.places",
    },
)
