"""A different LoRA for each row of the batch."""

from pidep.kernels.lora_bank.reference import lora_bank

__all__ = ["lora_bank"]
