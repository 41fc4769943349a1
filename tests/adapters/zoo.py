"""Tiny random models of every tested architecture, built from their configs without a hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.backbones.tiny_models import DAVIT

VOCAB, WIDTH, HEADS, LAYERS = 40, 16, 2, 2
BATCH, LENGTH, IMAGE = 3, 7, 8
END = 3
PLACE = 4  # the token whose place an image's features take


@dataclass(frozen=True)
class Architecture:
    """One architecture of the zoo."""

    name: str
    """Its name in the documentation."""
    family: str
    """Its heading in the documentation."""
    config: Callable[[], Any]
    inputs: Callable[[], dict[str, Tensor]]
    read: Callable[[Any], Tensor]
    """The part of the output that every kind of expert should change."""
    model_type: str = ""
    """Name of a transformers class; AutoModel when empty."""

    def build(self) -> nn.Module:
        """The model, with the same random weights every time."""
        import transformers

        torch.manual_seed(0)
        maker = (
            getattr(transformers, self.model_type)._from_config
            if self.model_type
            else transformers.AutoModel.from_config
        )
        model: nn.Module = maker(self.config())
        for (
            parameter
        ) in model.parameters():  # biases and tables that start at zero would hide mistakes
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return model.requires_grad_(False).eval()


def text() -> dict[str, Tensor]:
    """Three texts of 7, 5 and 3 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCAB, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate((7, 5, 3)):
        ids[row, length:], mask[row, length:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def source_and_target() -> dict[str, Tensor]:
    """The texts, and four tokens to decode for each."""
    return {
        **text(),
        "decoder_input_ids": torch.randint(
            5, VOCAB, (BATCH, 4), generator=torch.Generator().manual_seed(2)
        ),
    }


def image() -> dict[str, Tensor]:
    """Three images."""
    return {
        "pixel_values": torch.randn(
            BATCH, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(3)
        )
    }


def image_and_text() -> dict[str, Tensor]:
    """The images and the texts."""
    return {**text(), **image()}


def image_and_closed_text() -> dict[str, Tensor]:
    """The images, and texts that end with the end-of-text token.

    CLIP reads a text at its first end-of-text token, or at token 0 where it has none. Token 0 of a
    causal text attends to itself alone. Its softmax is the constant 1, so queries and keys would
    have no gradient but rounding errors.
    """
    found = image_and_text()
    ends = found["attention_mask"].sum(1) - 1
    found["input_ids"][torch.arange(BATCH), ends] = END
    return found


def places_and_target() -> dict[str, Tensor]:
    """The images, texts that begin with places for them, and four tokens to decode (Florence-2)."""
    found = source_and_target()
    places = torch.full((BATCH, 5), PLACE)  # 2 × 2 patches and their mean
    return {
        **found,
        **image(),
        "input_ids": torch.cat([places, found["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(places), found["attention_mask"]], 1),
    }


def hidden(output: Any) -> Tensor:
    """The last hidden states."""
    return output.last_hidden_state  # type: ignore[no-any-return]


def both_towers(output: Any) -> Tensor:
    """Text and image embeddings of two towers, side by side."""
    return torch.cat([output.text_embeds, output.image_embeds], 1)


def text_hidden(output: Any) -> Tensor:
    """The hidden states of the text, which comes first. ViLT returns its patches in a
    random order.
    """
    return hidden(output)[:, :LENGTH]


def fused(output: Any) -> Tensor:
    """FLAVA's last hidden states of text and image together, and of each alone."""
    return torch.cat(
        [output.multimodal_embeddings, output.image_embeddings, output.text_embeddings], 1
    )


def logits(output: Any) -> Tensor:
    """The logits over the output vocabulary."""
    return output.logits  # type: ignore[no-any-return]


_DAVIT = {**DAVIT, "projection_dim": WIDTH}


def _config(name: str, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, name)(**options)

    return build


_TEXT = {"vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": END}
_BERT = {
    **_TEXT,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_LLAMA = {
    **_TEXT,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
_VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
    "image_size": IMAGE,
    "patch_size": 4,
}


_TOWER = {key: value for key, value in _BERT.items() if "prob" not in key}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BART = {
    **_TEXT,
    "decoder_start_token_id": 2,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "scale_embedding": True,
}
_BLIP = _config(
    "BlipConfig",
    text_config={**_BERT, "encoder_hidden_size": WIDTH, "sep_token_id": 3},
    vision_config={
        **_VIT,
        "initializer_range": 0.02,
    },  # with the default of 1e-10, a tower would hold zeros
    projection_dim=12,
)

ZOO: Mapping[str, Architecture] = {
    found.name: found
    for found in (
        Architecture("BERT", "encoder", _config("BertConfig", **_BERT), text, hidden),
        Architecture("RoBERTa", "encoder", _config("RobertaConfig", **_BERT), text, hidden),
        Architecture(
            "DistilBERT",
            "encoder",
            _config(
                "DistilBertConfig",
                **_TEXT,
                dim=WIDTH,
                n_layers=LAYERS,
                n_heads=HEADS,
                hidden_dim=24,
                max_position_embeddings=32,
                dropout=0.0,
                attention_dropout=0.0,
            ),
            text,
            hidden,
        ),
        Architecture(
            "ELECTRA", "encoder", _config("ElectraConfig", **_BERT, embedding_size=8), text, hidden
        ),
        Architecture(
            "DeBERTa-v2",
            "encoder",
            _config(
                "DebertaV2Config",
                **_BERT,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                position_buckets=6,
                share_att_key=True,
                norm_rel_ebd="layer_norm",
                position_biased_input=False,
                type_vocab_size=0,
            ),
            text,
            hidden,
        ),
        Architecture(
            "ModernBERT",
            "encoder",
            _config(
                "ModernBertConfig",
                **{key: value for key, value in _BERT.items() if "prob" not in key},
                cls_token_id=2,
                sep_token_id=3,
                local_attention=4,
                global_attn_every_n_layers=2,
            ),
            text,
            hidden,
        ),
        Architecture("MPNet", "encoder", _config("MPNetConfig", **_BERT), text, hidden),
        Architecture(
            "GPT-2",
            "decoder",
            _config(
                "GPT2Config",
                **_TEXT,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=HEADS,
                n_positions=32,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            ),
            text,
            hidden,
        ),
        Architecture("Llama", "decoder", _config("LlamaConfig", **_LLAMA), text, hidden),
        Architecture("Qwen2", "decoder", _config("Qwen2Config", **_LLAMA), text, hidden),
        Architecture(
            "OPT",
            "decoder",
            _config(
                "OPTConfig",
                **_TEXT,
                hidden_size=WIDTH,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                ffn_dim=24,
                max_position_embeddings=32,
                word_embed_proj_dim=WIDTH,
                dropout=0.0,
            ),
            text,
            hidden,
        ),
        Architecture(
            "T5",
            "encoder-decoder",
            _config(
                "T5Config",
                vocab_size=VOCAB,
                pad_token_id=1,
                eos_token_id=3,
                decoder_start_token_id=1,
                d_model=WIDTH,
                d_kv=8,
                d_ff=24,
                num_layers=LAYERS,
                num_heads=HEADS,
                dropout_rate=0.0,
            ),
            source_and_target,
            hidden,
        ),
        Architecture(
            "BART",
            "encoder-decoder",
            _config("BartConfig", **_BART),
            source_and_target,
            hidden,
        ),
        Architecture(
            "Florence-2",
            "image and text to text",
            _config(
                "Florence2Config",
                text_config={"model_type": "bart", **_BART},
                vision_config=_DAVIT,
                image_token_id=PLACE,
            ),
            places_and_target,
            hidden,
        ),
        Architecture(
            "BLIP, captions",
            "image and text to text",
            _BLIP,
            image_and_text,
            logits,
            "BlipForConditionalGeneration",
        ),
        Architecture(
            "ViT", "vision", _config("ViTConfig", **_VIT, hidden_dropout_prob=0.0), image, hidden
        ),
        Architecture(
            "DINOv2",
            "vision",
            _config("Dinov2Config", **_VIT, hidden_dropout_prob=0.0),
            image,
            hidden,
        ),
        Architecture(
            "Swin",
            "vision",
            _config(
                "SwinConfig",
                image_size=16,
                patch_size=2,
                embed_dim=8,
                depths=[2, 1],
                num_heads=[1, 2],
                window_size=4,
            ),
            lambda: {
                "pixel_values": torch.randn(
                    BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(3)
                )
            },
            hidden,
        ),
        Architecture(
            "CLIP",
            "two towers",
            _config("CLIPConfig", text_config=_TOWER, vision_config=_VIT, projection_dim=12),
            image_and_closed_text,
            both_towers,
        ),
        Architecture(
            "SigLIP",
            "two towers",
            _config(
                "SiglipConfig", text_config={**_TOWER, "projection_size": WIDTH}, vision_config=_VIT
            ),
            image_and_text,
            both_towers,
        ),
        Architecture("BLIP", "two towers", _BLIP, image_and_text, both_towers),
        Architecture(
            "ViLT",
            "fusion",
            _config("ViltConfig", **_BERT, image_size=IMAGE, patch_size=4),
            image_and_text,
            text_hidden,
        ),
        Architecture(
            "FLAVA",
            "fusion",
            _config(
                "FlavaConfig",
                text_config=_BERT,
                image_config={**_VIT, **_NO_DROPOUT},
                multimodal_config={
                    **{
                        key: value
                        for key, value in _VIT.items()
                        if "size" not in key or key in ("hidden_size", "intermediate_size")
                    },
                    **_NO_DROPOUT,
                },
                projection_dim=12,
            ),
            image_and_text,
            fused,
        ),
    )
}
"""Architectures by name."""

_NO_BIAS = "Linear or LayerNorm with a bias"
_OWN_ATTENTION = "attention that goes through transformers' attention interface"

FITS: Mapping[str, Mapping[str, int | str]] = {
    "BERT": {"lora": 12, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 17},
    "RoBERTa": {"lora": 12, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 17},
    "DistilBERT": {"lora": 12, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 17},
    "ELECTRA": {"lora": 13, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 18},
    "DeBERTa-v2": {"lora": 12, "adapter": 4, "prefix": _OWN_ATTENTION, "prompt": 1, "bitfit": 18},
    "ModernBERT": {"lora": 8, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": _NO_BIAS},
    "MPNet": {"lora": 12, "adapter": 4, "prefix": _OWN_ATTENTION, "prompt": 1, "bitfit": 17},
    "GPT-2": {"lora": 8, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 13},
    "Llama": {"lora": 14, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": _NO_BIAS},
    "Qwen2": {"lora": 14, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 6},
    "OPT": {"lora": 12, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 17},
    "T5": {"lora": 32, "adapter": 10, "prefix": 6, "prompt": 1, "bitfit": _NO_BIAS},
    "BART": {"lora": 32, "adapter": 10, "prefix": 6, "prompt": 1, "bitfit": 44},
    "Florence-2": {"lora": 49, "adapter": 18, "prefix": 8, "prompt": 1, "bitfit": 71},
    "BLIP, captions": {
        "lora": 30,
        "adapter": 10,
        "prefix": _OWN_ATTENTION,
        "prompt": 2,
        "bitfit": 43,
    },
    "ViT": {"lora": 12, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 17},
    "DINOv2": {"lora": 12, "adapter": 4, "prefix": 2, "prompt": 1, "bitfit": 17},
    "Swin": {
        "lora": 19,
        "adapter": 6,
        "prefix": 3,
        "prompt": "input embeddings that can be replaced",
        "bitfit": 27,
    },
    "CLIP": {"lora": 26, "adapter": 8, "prefix": 4, "prompt": 1, "bitfit": 35},
    "SigLIP": {"lora": 27, "adapter": 8, "prefix": 4, "prompt": 1, "bitfit": 38},
    "BLIP": {"lora": 22, "adapter": 8, "prefix": _OWN_ATTENTION, "prompt": 2, "bitfit": 30},
    "ViLT": {"lora": 12, "adapter": 4, "prefix": _OWN_ATTENTION, "prompt": 1, "bitfit": 18},
    "FLAVA": {"lora": 38, "adapter": 12, "prefix": _OWN_ATTENTION, "prompt": 1, "bitfit": 54},
}
"""The number of sites that `*` finds in the tiny model, or what the message says is missing."""
