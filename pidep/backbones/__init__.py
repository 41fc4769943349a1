"""Backbones: the frozen pre-trained models behind one interface (`encode`), and the tokenizer train and serve share.

`tokenize` needs numpy and tokenizers only and runs inside Triton Server; `encoder` needs torch and transformers.
May import `pidep.kernels`, `pidep.experts` and `pidep.errors`.
"""

__all__: list[str] = []
