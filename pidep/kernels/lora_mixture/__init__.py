"""Σₖ αₖ sₖ (x Aₖᵀ) Bₖᵀ: a mixture of LoRA products in two matrix products, whatever K is."""

from pidep.kernels.lora_mixture.reference import lora_mixture

__all__ = ["lora_mixture"]
