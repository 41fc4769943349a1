"""The parts of `benchmarks.gpu_check`. They import torch, OpenAI Triton and transformers, pidep's kernels and experts, and nothing else."""

__all__ = ["DEVICE"]

DEVICE = "cuda"
"""Tests put "cpu" here, to see that everything runs at all."""
