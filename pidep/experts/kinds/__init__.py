"""The kinds of expert, one file each: tensors, files and bank packing. No torch.

A kind's other half, how it acts on a backbone, is in `pidep.adapters.kinds`.
May import `pidep.experts.{finite,kind,peft_format}`, `pidep.files`, `pidep.plugins` and
`pidep.errors`.
"""

from pidep import plugins
from pidep.errors import ExpertError, did_you_mean
from pidep.experts.kind import ExpertKind
from pidep.experts.kind_names import kind_names

__all__ = ["expert_kind"]


def expert_kind(name: str) -> ExpertKind:
    """The kind of that name.

    Raises:
        ExpertError: there is none.
    """
    known = kind_names()
    if name not in known:
        raise ExpertError(
            f"expert kind {name!r}: expected one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    found: ExpertKind = plugins.load("pidep.kinds", name)
    return found
