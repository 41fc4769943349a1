"""The kinds of expert, one file each; `KINDS` is where a new one is added.

May import `pidep.experts.site`, `pidep.kernels` and `pidep.errors`.
"""

from pidep.errors import ExpertError, did_you_mean
from pidep.experts.kinds import adapter, bitfit, lora, prefix, prompt
from pidep.experts.site import Kind

__all__ = ["KINDS", "kind_named"]

KINDS: dict[str, Kind] = {module.KIND.name: module.KIND for module in (lora, adapter, prefix, prompt, bitfit)}


def kind_named(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ExpertError: there is none.
    """
    if name not in KINDS:
        raise ExpertError(f"expert kind {name!r}: expected one of {', '.join(KINDS)}{did_you_mean(name, KINDS)}")
    return KINDS[name]
