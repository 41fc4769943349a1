"""Backbones: the frozen pre-trained models behind one interface (`encode`), and the tokenizer train and serve share.

`tokenize` (numpy and tokenizers) and `images` (numpy and pillow) run inside Triton Server; the others need torch: `encoder` for texts,
`mini` for texts and images through one transformer, with `stem` and `connector` before it.
May import `pidep.kernels`, `pidep.experts` and `pidep.errors`.
"""

__all__: list[str] = []
