"""Files that export writes and serving reads: typed schemas, with one writer and one reader each.

`names` has the names that both sides agree on. May import `pidep.inputs`, `pidep.files` and
`pidep.errors`, never torch.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.artifacts.bank import BankRecord, GroupRecord
    from pidep.artifacts.expert_record import ExpertRecord
    from pidep.artifacts.manifest import Manifest
    from pidep.artifacts.merged import MergedRecord
    from pidep.artifacts.mixture_record import MixtureRecord
    from pidep.artifacts.parity import Parity
    from pidep.artifacts.towers import TowersRecord
    from pidep.artifacts.vision import VisionRecord

__all__ = [
    "BankRecord",
    "ExpertRecord",
    "GroupRecord",
    "Manifest",
    "MergedRecord",
    "MixtureRecord",
    "Parity",
    "TowersRecord",
    "VisionRecord",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BankRecord": "pidep.artifacts.bank",
        "ExpertRecord": "pidep.artifacts.expert_record",
        "GroupRecord": "pidep.artifacts.bank",
        "Manifest": "pidep.artifacts.manifest",
        "MergedRecord": "pidep.artifacts.merged",
        "MixtureRecord": "pidep.artifacts.mixture_record",
        "Parity": "pidep.artifacts.parity",
        "TowersRecord": "pidep.artifacts.towers",
        "VisionRecord": "pidep.artifacts.vision",
    },
)
