"""OpenAI Triton's interpreter: kernels run on CPU tensors, which must be said before Triton is imported.

It multiplies bf16 as if it were integers (so products are upcast there) and cuts bf16 off instead of rounding it.
"""

from __future__ import annotations

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # of this process; whoever starts another one that compiles takes it out
pytest.importorskip("triton")
