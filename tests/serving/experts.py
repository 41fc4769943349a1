"""Experts without a backbone, for tests that only move their files."""

from __future__ import annotations

import numpy as np

from pidep.experts.folder import Expert


def small_expert(*, name: str = "film", seed: int = 0) -> Expert:
    """A LoRA of rank 2 at one site of width 4."""
    rng = np.random.default_rng(seed)
    factors = {
        "lora_A": rng.normal(size=(2, 4)).astype(np.float32),
        "lora_B": rng.normal(size=(4, 2)).astype(np.float32),
    }
    return Expert(
        name=name,
        backbone="tiny",
        backbone_digest="sha256:tiny",
        sites={"layer.0": factors},
        scaling=2.0,
        labels=("negative", "positive"),
        label_texts=("negative", "positive"),
        label_embeddings=np.eye(2, 4, dtype=np.float32),
        logit_scale=20.0,
        max_length=12,
    )
