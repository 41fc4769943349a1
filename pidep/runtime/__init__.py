"""What answers a batch: sessions over exported graphs, banks, merged models, the input reader.

It runs inside Triton Server and in the parity gate. May import `pidep.experts`, `pidep.artifacts`,
`pidep.inputs`, `pidep.files` and `pidep.errors`, never torch or transformers.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.runtime.answer import Answer, softmax
    from pidep.runtime.bank import Bank, Residents
    from pidep.runtime.input_reader import InputReader
    from pidep.runtime.merged import Merged
    from pidep.runtime.session import open_session

__all__ = ["Answer", "Bank", "InputReader", "Merged", "Residents", "open_session", "softmax"]

__getattr__ = lazy_names(
    __name__,
    {
        "Answer": "pidep.runtime.answer",
        "Bank": "pidep.runtime.bank",
        "InputReader": "pidep.runtime.input_reader",
        "Merged": "pidep.runtime.merged",
        "Residents": "pidep.runtime.bank",
        "open_session": "pidep.runtime.session",
        "softmax": "pidep.runtime.answer",
    },
)
