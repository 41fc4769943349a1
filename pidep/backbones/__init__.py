"""Frozen pre-trained models behind one `Backbone` protocol: encode, score, generate.

`encoder` reads texts, `mini` reads texts and images through one transformer (with `stem` and
`connector` before it), `two_towers` reads them through a transformer each, and `encoder_decoder`
scores and generates texts. `load` finds one by name.
May import `pidep.adapters`, `pidep.inputs`, `pidep.kernels`, `pidep.plugins` and `pidep.errors`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.backbones.backbone import AnswerScorer, Backbone
    from pidep.backbones.encoder import Encoder, load_encoder
    from pidep.backbones.encoder_decoder import EncoderDecoder
    from pidep.backbones.load import load_any_backbone, load_backbone
    from pidep.backbones.mini import Mini
    from pidep.backbones.two_towers import TwoTowers

__all__ = [
    "AnswerScorer",
    "Backbone",
    "Encoder",
    "EncoderDecoder",
    "Mini",
    "TwoTowers",
    "load_any_backbone",
    "load_backbone",
    "load_encoder",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AnswerScorer": "pidep.backbones.backbone",
        "Backbone": "pidep.backbones.backbone",
        "Encoder": "pidep.backbones.encoder",
        "EncoderDecoder": "pidep.backbones.encoder_decoder",
        "Mini": "pidep.backbones.mini",
        "TwoTowers": "pidep.backbones.two_towers",
        "load_any_backbone": "pidep.backbones.load",
        "load_backbone": "pidep.backbones.load",
        "load_encoder": "pidep.backbones.encoder",
    },
)
