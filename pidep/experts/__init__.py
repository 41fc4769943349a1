"""Experts: their files, where they can act on a backbone, and how they act, mix and fold there.

`folder`, `peft_format`, `tensor_file` and `bank` need numpy and safetensors only: they run inside Triton Server. `site` is the one
interface, `kinds` has a file for each kind, `places` finds sites, `mixture` holds K experts and attaches them; these need torch.
May import `pidep.kernels`, `pidep.files.atomic_write` and `pidep.errors`.
"""

__all__: list[str] = []
