"""Attention in an exported graph is PyTorch's, without a question for NaN."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pidep.export.attention import attention_translation


class Attention(nn.Module):
    """Attention with one mask, whose shape is the caller's."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, **self.options
        )


def exported(
    path: Path, module: nn.Module, inputs: dict[str, Tensor | None]
) -> tuple[np.ndarray, list[str]]:
    """The graph's answer, and the types of its nodes."""
    given = {name: value for name, value in inputs.items() if value is not None}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=20,
            custom_translation_table=attention_translation(20),
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    return found, [node.op_type for node in onnx.load(path).graph.node]


def drawn(*, length: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, length, 4)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name in ("query", "key", "value")
    }


MASKS = {
    "none": None,
    "keys": torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None, :],
    "pairs": torch.ones(5, 5).tril().bool()[None, None],
    "to add": torch.linspace(-3, 0, 25).reshape(1, 1, 5, 5),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}], ids=["usual scale", "own scale"])
def test_it_is_that_of_pytorch(tmp_path: Path, mask: str, options: dict[str, Any]) -> None:
    module, inputs = Attention(**options), {**drawn(), "mask": MASKS[mask]}
    found, kinds = exported(tmp_path / "a.onnx", module, inputs)
    np.testing.assert_allclose(found, module(**inputs).numpy(), rtol=1e-5, atol=1e-6)
    assert "IsNaN" not in kinds


def test_causal_attention_is_left_to_the_exporter(tmp_path: Path) -> None:
    module, inputs = Attention(is_causal=True), {**drawn(), "mask": None}
    found, _ = exported(tmp_path / "a.onnx", module, inputs)
    np.testing.assert_allclose(found, module(**inputs).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_query_that_may_look_at_no_key_gets_finite_numbers(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    inputs = drawn(dtype=dtype)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 4, :] = False
    found, _ = exported(tmp_path / "a.onnx", Attention(), {**inputs, "mask": mask})
    assert np.isfinite(found).all()
    expected = Attention()(**inputs, mask=mask).numpy()
    np.testing.assert_allclose(found[:, :, :4], expected[:, :, :4], rtol=1e-2, atol=1e-2)
    # A CPU adds in fp32. In the graph's own precision, too, a score must not overflow.
    model = onnx.load(tmp_path / "a.onnx")
    constants = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer]
    constants += [
        onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    ]
    masked = min((one for one in constants if one.dtype == found.dtype), key=np.min)
    with np.errstate(over="ignore"):
        assert np.isfinite(masked + masked.dtype.type(-1000)).all()
