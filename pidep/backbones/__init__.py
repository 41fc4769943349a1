"""Frozen pre-trained models behind one `Backbone` protocol: encode, score, generate.

`encoder` reads texts, `mini` reads texts and images through one transformer (with `stem` and
`connector` before it), and `encoder_decoder` scores and generates texts. `load` finds one by name.
May import `pidep.adapters`, `pidep.inputs`, `pidep.kernels`, `pidep.plugins` and `pidep.errors`.
"""

__all__: list[str] = []
