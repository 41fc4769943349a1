"""What an expert is: tensors, files, digests, PEFT's format, and its rows in a bank. No torch.

`folder` reads and writes experts, `kind` says what a kind of expert is, `kinds` has a file for
each, `mixed` is a mixture of experts by reference, `mixture_folder` reads and writes mixtures,
`peft_format` has PEFT's folders, and `bank` stacks experts into graph inputs. The half that acts on
a model is `pidep.adapters`. May import `pidep.artifacts`, `pidep.files`, `pidep.plugins` and
`pidep.errors`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.experts.folder import Expert, check_name, read_expert, write_expert
    from pidep.experts.kind import BankGroup, ExpertKind, PeftAdapter
    from pidep.experts.kind_names import kind_names
    from pidep.experts.kinds import expert_kind
    from pidep.experts.mixed import MixedExpert
    from pidep.experts.mixture_folder import read_mixture, read_served, write_mixture
    from pidep.experts.peft_format import read_peft

__all__ = [
    "BankGroup",
    "Expert",
    "ExpertKind",
    "MixedExpert",
    "PeftAdapter",
    "check_name",
    "expert_kind",
    "kind_names",
    "read_expert",
    "read_mixture",
    "read_peft",
    "read_served",
    "write_expert",
    "write_mixture",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BankGroup": "pidep.experts.kind",
        "Expert": "pidep.experts.folder",
        "ExpertKind": "pidep.experts.kind",
        "MixedExpert": "pidep.experts.mixed",
        "PeftAdapter": "pidep.experts.kind",
        "check_name": "pidep.experts.folder",
        "expert_kind": "pidep.experts.kinds",
        "kind_names": "pidep.experts.kind_names",
        "read_expert": "pidep.experts.folder",
        "read_mixture": "pidep.experts.mixture_folder",
        "read_peft": "pidep.experts.peft_format",
        "read_served": "pidep.experts.mixture_folder",
        "write_expert": "pidep.experts.folder",
        "write_mixture": "pidep.experts.mixture_folder",
    },
)
