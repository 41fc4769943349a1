"""Rows, texts, images and tokenizers: the same code in training and in serving. No torch.

May import `pidep.errors`.
"""

__all__: list[str] = []
