"""OpenAI Triton's interpreter: kernels run on CPU tensors.

It multiplies bf16 as if it were integers (so products are upcast there) and cuts bf16 off instead
of rounding it.

`triton.jit` decides where it decorates whether it compiles or interprets, and transformers imports
Triton before a test can say which. So what is decorated, in Triton's own library and in ours, is
exchanged while one of these tests runs, and put back: no other test sees it.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from pidep.kernels import low_rank
    from pidep.kernels.interpolate import fused as interpolate
    from pidep.kernels.lora_fold import fused as fold

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module in (tl, tl.standard, low_rank, interpolate, fold):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, InterpretedFunction(value.fn))
