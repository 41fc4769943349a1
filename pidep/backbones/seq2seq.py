"""The differences between encoder-decoders: reading a row, calling the decoder, ending an
answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from pidep.adapters.places import device_of
from pidep.adapters.positions import room_of
from pidep.backbones.halves import DecoderHalf, EncoderHalf, Halves
from pidep.errors import BackboneError

__all__ = [
    "BlipAnswerer",
    "BlipCaptioner",
    "Encoded",
    "Florence",
    "ModelCalls",
    "Special",
    "TextToText",
    "calls_of",
    "padded",
]


@dataclass(frozen=True)
class Special:
    """Token numbers with a meaning."""

    start: int
    """The token that the decoder begins with."""
    end: int
    pad: int
    frame: frozenset[int]
    """Tokens around a text that are never part of one."""


@dataclass(frozen=True)
class Encoded:
    """The encoder's states, and the tokens that decoding begins with."""

    hidden: Tensor  # [B, S, D]
    mask: Tensor  # [B, S] int64
    prompts: tuple[tuple[int, ...], ...]
    """The `B` beginnings. One start token each; BLIP's captions begin with the row's text."""

    def take(self, rows: Sequence[int]) -> Encoded:
        """Some of the rows."""
        chosen = torch.tensor(list(rows))
        return Encoded(
            self.hidden[chosen], self.mask[chosen], tuple(self.prompts[row] for row in rows)
        )

    def repeated(self, times: int) -> Encoded:
        """Every row `times` times in succession, so that experts of single rows stay apart."""
        prompts = tuple(prompt for prompt in self.prompts for _ in range(times))
        return Encoded(
            self.hidden.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0), prompts
        )


def padded(rows: Sequence[Sequence[int]], *, value: int) -> tuple[Tensor, Tensor]:
    """Token numbers and mask `[B, T]` int64, padded on the right."""
    width = max((len(row) for row in rows), default=0)
    ids, mask = (
        torch.full((len(rows), width), value),
        torch.zeros(len(rows), width, dtype=torch.int64),
    )
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask


class ModelCalls(ABC):
    """Calls of an encoder-decoder with transformers' usual interface for texts.

    T5, BART and others have it.
    """

    images: ClassVar[Literal["never", "maybe", "always"]] = "never"
    sight: ClassVar[tuple[str, ...]] = ()
    """Modules that only images pass."""
    cuts_opening = False
    """Whether the token that opens a text is dropped before decoding."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.text_config = getattr(model.config, "text_config", model.config)
        self.special = self._special()

    def _special(self) -> Special:
        config = self.text_config
        start = getattr(config, "decoder_start_token_id", None)
        ends, pad = config.eos_token_id, config.pad_token_id
        end = ends[0] if isinstance(ends, list) else ends
        if start is None or end is None:
            raise BackboneError(
                f"{type(self.model).__name__}: its config has decoder_start_token_id {start} and "
                f"eos_token_id {end}; "
                "expected numbers, add them to config.json"
            )
        # A model without a padding token: padding is masked, so any token will do.
        pad = end if pad is None else pad
        frame = {start, end, pad, getattr(config, "bos_token_id", None)} - {None}
        return Special(start, end, pad, frozenset(frame))

    @property
    def positions(self) -> int | None:
        """Number of positions of encoder and decoder; None where positions are relative."""
        declared = getattr(self.text_config, "max_position_embeddings", None)
        # The config of two joined encoders has no number; their tables do. A vision tower's table
        # counts patches, which do not limit texts.
        table = room_of(self.model) if self.images == "never" else None
        return min((int(one) for one in (declared, table) if one is not None), default=None)

    def source(self, text: str) -> str:
        """The text as the encoder gets it."""
        return text

    @abstractmethod
    def see(self, pixels: Tensor) -> Tensor:  # [N, 3, S, S] to [N, V, D]
        """Images to visual tokens."""

    def encode(
        self, texts: Sequence[Sequence[int]], visual: Tensor | None, image_rows: Sequence[int]
    ) -> Encoded:
        """Token numbers of B texts and visual tokens `[N, V, D]` to the encoder's states.

        `image_rows` names the N rows that have an image.
        """
        ids, mask = self._padded(texts)
        hidden = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return Encoded(hidden, mask, ((self.special.start,),) * len(texts))

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token numbers and mask `[B, T]`, where the model is."""
        device = device_of(self.model)
        ids, mask = padded(texts, value=self.special.pad)
        return ids.to(device), mask.to(device)

    def states(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's states `[B, S, D]` and their mask `[B, S]`, of tensors alone."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return self.model.get_encoder()(input_ids=ids, attention_mask=mask)[0], mask

    def step(self, hidden: Tensor, mask: Tensor, ids: Tensor, past: Any) -> Any:
        """The model's output for ids `[B, T]` that follow a cache of keys and values."""
        return self.model(
            encoder_outputs=_outputs(hidden),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=past,
            use_cache=True,
        )

    def halves(self, text: Sequence[int]) -> Halves:
        """Encoder and decoder as modules of tensors, with an example of three rows of `text`.

        Raises:
            BackboneError: the model has no such halves.
        """
        # Different lengths, so that the example has padding and the mask matters.
        known = (list(text) * 7)[:7]
        ids, mask = padded([known, known[:2], known[:5]], value=self.special.pad)
        axes = {
            0: torch.export.Dim("batch"),
            1: torch.export.Dim("length", max=self.positions or 512),
        }
        return Halves(
            EncoderHalf(self),
            DecoderHalf(self),
            {"input_ids": ids, "attention_mask": mask},
            {"input_ids": axes, "attention_mask": axes},
            self.special,
            self.positions,
        )

    def image_graph(self) -> nn.Module | None:
        """Pixels `[N, 3, S, S]` to visual tokens as a module; None where no image is read."""
        return _Seeing(self) if self.images != "never" else None

    @property
    def width(self) -> int:
        """D, width of the encoder's states."""
        return int(self.text_config.hidden_size)

    def logits(self, encoded: Encoded, ids: Tensor) -> Tensor:  # [B, T] to [B, T, vocabulary]
        """Teacher forcing: logits of the token after each position.

        Padding on the right needs no mask, because the decoder does not look ahead.
        """
        found: Tensor = self.model(
            encoder_outputs=_outputs(encoded.hidden),
            attention_mask=encoded.mask,
            decoder_input_ids=ids,
            use_cache=False,
        ).logits
        return found

    def generate(self, encoded: Encoded, ids: Tensor, settings: Any, **options: Any) -> Tensor:
        """Token numbers `[B, P + T]` that continue ids `[B, P]`."""
        found: Tensor = self.model.generate(
            encoder_outputs=_outputs(encoded.hidden),
            attention_mask=encoded.mask,
            decoder_input_ids=ids,
            generation_config=settings,
            **options,
        )
        return found


class _Seeing(nn.Module):
    """Pixels to visual tokens."""

    def __init__(self, calls: ModelCalls) -> None:
        super().__init__()
        self.model = calls.model
        self._see = calls.see

    def forward(self, pixels: Tensor) -> Tensor:
        return self._see(pixels)


def _outputs(hidden: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=hidden)


class TextToText(ModelCalls):
    """T5, BART and others."""

    def see(self, pixels: Tensor) -> NoReturn:
        """Raises `BackboneError`: there is nothing to see with."""
        raise BackboneError(f"{type(self.model).__name__} reads no images")


class Florence(ModelCalls):
    """Florence-2: visual tokens before the words, through BART's encoder. Images are optional."""

    images = "maybe"
    sight = ("model.vision_tower.", "model.multi_modal_projector.")

    def source(self, text: str) -> str:
        """Florence-2's task words become the sentences they stand for, as in its processor."""
        word, end, rest = text.partition(">")
        sentence = _FLORENCE_TASKS.get(word + end)
        return text if sentence is None else sentence.format(input=rest.strip())

    def see(self, pixels: Tensor) -> Tensor:
        """DaViT and the projection."""
        found: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
        return found

    def encode(
        self, texts: Sequence[Sequence[int]], visual: Tensor | None, image_rows: Sequence[int]
    ) -> Encoded:
        """Visual tokens take the places of as many image tokens."""
        if visual is None:
            return super().encode(texts, visual, image_rows)
        token, seen = self.model.config.image_token_id, set(image_rows)
        rows = [
            [token] * visual.shape[1] + list(text) if row in seen else list(text)
            for row, text in enumerate(texts)
        ]
        ids, mask = self._padded(rows)
        words = self.model.get_input_embeddings()(ids)
        places = torch.zeros_like(ids, dtype=torch.bool)
        places[list(image_rows), : visual.shape[1]] = True
        embedded = words.masked_scatter(places.unsqueeze(-1), visual.to(words.dtype))
        hidden = self.model.get_encoder()(
            inputs_embeds=embedded, attention_mask=mask
        ).last_hidden_state
        return Encoded(hidden, mask, ((self.special.start,),) * len(texts))

    def halves(self, text: Sequence[int]) -> Halves:
        """As `ModelCalls.halves`; the second row of the example has an image of two tokens."""
        found = super().halves(text)
        visual = torch.zeros(3, 2, int(self.text_config.hidden_size))
        seen = torch.tensor([[0, 0], [1, 1], [0, 0]])
        places = {0: found.dynamic["input_ids"][0], 1: torch.export.Dim("places", max=1024)}
        return replace(
            found,
            example={**found.example, "visual": visual, "visual_mask": seen},
            dynamic={**found.dynamic, "visual": places, "visual_mask": places},
            image_token=int(self.model.config.image_token_id),
            task_words=_FLORENCE_TASKS,
            sight=self.sight,
        )

    def states(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `ModelCalls.states`; rows with an image begin with as many image tokens."""
        mask, visual = inputs["attention_mask"], inputs["visual"]
        words = self.model.get_input_embeddings()(inputs["input_ids"])
        count = visual.shape[1]
        seen = inputs["visual_mask"].bool().unsqueeze(-1)
        first = torch.where(seen, visual.to(words.dtype), words[:, :count])
        embedded = torch.cat([first, words[:, count:]], 1)
        return self.model.get_encoder()(inputs_embeds=embedded, attention_mask=mask)[0], mask


class _Blip(ModelCalls):
    """Common to BLIP's two models: an image in every row, and a language model as decoder."""

    images = "always"
    sight = ("vision_model.",)
    cuts_opening = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for name, module in model.named_modules():
            if name.endswith(".crossattention.self"):
                module.register_forward_pre_hook(_with_mask, with_kwargs=True)

    def _special(self) -> Special:
        config = self.text_config
        start, end, pad = config.bos_token_id, config.sep_token_id, config.pad_token_id
        return Special(start, end, pad, frozenset({start, end, pad}))

    def halves(self, text: Sequence[int]) -> NoReturn:
        """Raises `BackboneError`: its decoder begins with a row's own words or sees the image."""
        raise BackboneError(
            f"{type(self.model).__name__}: has no graphs with a cache; use pidep generate, or "
            "export an expert of T5, BART or Florence-2"
        )

    def see(self, pixels: Tensor) -> Tensor:
        """The vision transformer."""
        found: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return found

    def logits(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """As `ModelCalls.logits`."""
        found: Tensor = self.model.text_decoder(
            input_ids=ids,
            encoder_hidden_states=encoded.hidden,
            encoder_attention_mask=encoded.mask,
            use_cache=False,
        ).logits
        return found

    def generate(self, encoded: Encoded, ids: Tensor, settings: Any, **options: Any) -> Tensor:
        """As `ModelCalls.generate`."""
        found: Tensor = self.model.text_decoder.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=encoded.hidden,
            encoder_attention_mask=encoded.mask,
            generation_config=settings,
            **options,
        )
        return found


def _with_mask(
    _: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """transformers passes cross-attention's mask under a name that it does not read.

    Without this, padding would be attended to.
    """
    return arguments, {**options, "encoder_attention_mask": options.get("attention_mask")}


class BlipCaptioner(_Blip):
    """BLIP's captions: the decoder sees the image and continues the row's text.

    The text may be empty.
    """

    def encode(
        self, texts: Sequence[Sequence[int]], visual: Tensor | None, image_rows: Sequence[int]
    ) -> Encoded:
        """The image. The words, without the tokens around them, become the decoder's beginning."""
        assert visual is not None
        prompts = tuple((self.special.start, *text[1:-1]) for text in texts)
        return Encoded(visual, visual.new_ones(visual.shape[:2], dtype=torch.int64), prompts)


class BlipAnswerer(_Blip):
    """BLIP's answers: the question attends to the image, the decoder to the question."""

    def encode(
        self, texts: Sequence[Sequence[int]], visual: Tensor | None, image_rows: Sequence[int]
    ) -> Encoded:
        """The question, encoded with the image."""
        assert visual is not None
        ids, mask = self._padded(texts)
        seen = visual.new_ones(visual.shape[:2], dtype=torch.int64)
        hidden = self.model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=visual,
            encoder_attention_mask=seen,
        ).last_hidden_state
        return Encoded(hidden, mask, ((self.special.start,),) * len(texts))


def calls_of(model: Any) -> ModelCalls:
    """The calls of this model.

    Raises:
        BackboneError: the model is not supported.
    """
    kinds: dict[str, type[ModelCalls]] = {
        "Florence2ForConditionalGeneration": Florence,
        "BlipForConditionalGeneration": BlipCaptioner,
        "BlipForQuestionAnswering": BlipAnswerer,
    }
    found = kinds.get(type(model).__name__)
    if (
        found is None
        and getattr(model.config, "is_encoder_decoder", False)
        and model.main_input_name == "input_ids"
    ):
        found = TextToText
    if found is None:
        raise BackboneError(
            f"{type(model).__name__}: expected an encoder-decoder of texts (T5, BART …), "
            "Florence-2, or BLIP for captions or answers"
        )
    return found(model)


_FLORENCE_TASKS = {
    "<OCR>": "What is the text in the image?",
    "<OCR_WITH_REGION>": "What is the text in the image, with regions?",
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OD>": "Locate the objects with category name in the image.",
    "<DENSE_REGION_CAPTION>": "Locate the objects in the image, with their descriptions.",
    "<REGION_PROPOSAL>": "Locate the region proposals in the image.",
    "<CAPTION_TO_PHRASE_GROUNDING>": "Locate the phrases in the caption: {input}",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {input} in the image with mask",
    "<REGION_TO_SEGMENTATION>": "What is the polygon mask of region {input}",
    "<OPEN_VOCABULARY_DETECTION>": "Locate {input} in the image.",
    "<REGION_TO_CATEGORY>": "What is the region {input}?",
    "<REGION_TO_DESCRIPTION>": "What does the region {input} describe?",
    "<REGION_TO_OCR>": "What text is in the region {input}?",
}
"""Florence-2's task words as its processor writes them out."""
