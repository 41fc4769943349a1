"""Poolings: those of sentence-transformers, the same in an exported graph, none from padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pidep.backbones.pooling import POOLINGS, Pooling, pool

HIDDEN = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)) - 1.0
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def by_hand(row: Tensor, pooling: Pooling) -> Tensor:
    """The pooling of the attended tokens `[T, D]` of one row."""
    places = torch.arange(1.0, len(row) + 1).unsqueeze(1)
    found = {
        "mean": row.mean(0),
        "cls": row[0],
        "max": row.max(0).values,
        "lasttoken": row[-1],
        "weightedmean": (row * places).sum(0) / places.sum(),
    }[pooling]
    return nn.functional.normalize(found, dim=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_count(pooling: Pooling) -> None:
    wanted = torch.stack(
        [by_hand(row[mask.bool()], pooling) for row, mask in zip(HIDDEN, MASK, strict=True)]
    )
    torch.testing.assert_close(pool(HIDDEN, MASK, pooling), wanted)


class Pooled(nn.Module):
    """A module of one pooling, to export."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return pool(hidden, mask, self.pooling)


@pytest.mark.filterwarnings("ignore")  # the exporter's own, which `pidep.export` silences, too
@pytest.mark.parametrize("pooling", ["max", "lasttoken", "weightedmean"])
def test_a_graph_pools_in_the_same_way(pooling: Pooling, tmp_path: Path) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    program = torch.onnx.export(
        Pooled(pooling).eval(),
        (HIDDEN[:2], MASK[:2]),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        input_names=["hidden", "mask"],
        verbose=False,
    )
    assert program is not None
    program.save(str(tmp_path / "pool.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "pool.onnx"))
    # A row and a token fewer than the example: neither size is fixed in the graph.
    for hidden, mask in ((HIDDEN, MASK), (HIDDEN[1:, :4], MASK[1:, :4])):
        (found,) = session.run(None, {"hidden": hidden.numpy(), "mask": mask.numpy()})
        np.testing.assert_allclose(found, pool(hidden, mask, pooling).numpy(), atol=1e-6)
