"""Runs kernels in OpenAI Triton's interpreter, on CPU tensors.

The interpreter multiplies bf16 as if it were integers, so products are upcast there. It also
truncates bf16 instead of rounding.

`triton.jit` decides at the decoration whether it compiles or interprets, and transformers imports
Triton before a test can choose. So the decorated functions, in Triton's library and in pidep, are
replaced while one of these tests runs, and restored afterwards. No other test sees them.
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
