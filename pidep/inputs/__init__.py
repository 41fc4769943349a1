"""Rows, texts, images and tokenizers: the same code in training and in serving. No torch.

May import `pidep.errors`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.inputs.images import Preprocess, load_image
    from pidep.inputs.row import Input, Row, as_row
    from pidep.inputs.tokenize import Tokenize

__all__ = [
    "Input",
    "Preprocess",
    "Row",
    "Tokenize",
    "as_row",
    "load_image",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Input": "pidep.inputs.row",
        "Preprocess": "pidep.inputs.images",
        "Row": "pidep.inputs.row",
        "Tokenize": "pidep.inputs.tokenize",
        "as_row": "pidep.inputs.row",
        "load_image": "pidep.inputs.images",
    },
)
