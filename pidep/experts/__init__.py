"""Experts: the files, and attaching their tensors to a backbone.

`folder` (files, digests, checks) needs numpy and safetensors only and is what runs inside Triton Server;
`lora` needs torch. May import `pidep.kernels`, `pidep.atomic_write` and `pidep.errors`.
"""

__all__: list[str] = []
