"""The parts of `benchmarks.gpu_check`. They need torch, OpenAI Triton and transformers only."""

__all__ = ["DEVICE"]

DEVICE = "cuda"
"""Tests set this to "cpu", to see that everything runs."""
