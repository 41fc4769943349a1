"""Encoder-decoders as frozen backbones: T5, BART, Florence-2, BLIP.

They learn target texts, score candidate texts, and generate. A row's score for a text is log p(text
| row) in nats: the sum over the text's tokens and the closing token. A softmax over candidates is
therefore the probability of each, given that one of them is the answer. `loss` is minus the score
of the target text.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pidep.adapters.places import device_of
from pidep.backbones.backbone import AnswerScorer, Candidates, GenerationMode
from pidep.backbones.decoder_rows import candidates_by_row, check_row, groups_of_one_length
from pidep.backbones.device import on_device
from pidep.backbones.halves import Halves
from pidep.backbones.likelihoods import Likelihoods
from pidep.backbones.seq2seq import Encoded, calls_of, padded
from pidep.errors import BackboneError, UsageError
from pidep.inputs.images import Preprocess
from pidep.inputs.row import Input, Row, as_row, size_key, texts_only
from pidep.inputs.tokenize import Tokenize
from pidep.inputs.trie import Trie

__all__ = ["DECODED_TOGETHER", "EncoderDecoder", "Normalise"]

Normalise = Literal["none", "tokens"]
"""A score is the sum over a candidate's tokens, or their mean, which favours long candidates."""

_KEPT_IMAGES = 4_000
# Sequences in one call of the decoder; its logits are as wide as the vocabulary.
DECODED_TOGETHER = 512
_IGNORED = -100  # the value that cross_entropy ignores
_BEAMS = 16


@dataclass(eq=False)
class EncoderDecoder:
    """A frozen encoder-decoder. Experts are attached to `model`."""

    name: str
    model: Any
    tokenizer_json: str
    digest: str
    preprocess: Preprocess | None = None
    """How images are prepared, where the model reads them."""
    towers: ClassVar[tuple[()]] = ()
    embeds: ClassVar[bool] = False
    generates: ClassVar[bool] = True
    logit_scale: ClassVar[float] = 1.0
    """Scores are log-probabilities already."""

    def __post_init__(self) -> None:
        from transformers import GenerationConfig

        self.tokenize = Tokenize(self.tokenizer_json)
        self.calls = calls_of(self.model)
        if self.calls.images != "never" and self.preprocess is None:
            raise BackboneError(
                f"backbone {self.name!r}: sees images and has no preprocessor_config.json; save "
                "its processor beside it"
            )
        self._kept: OrderedDict[bytes, Tensor] | None = None
        # Generation settings that come with weights (BART's no_repeat_ngram_size, Florence-2's
        # beams) would change answers without being asked for.
        special = self.calls.special
        neutral = {
            "decoder_start_token_id": special.start,
            "eos_token_id": special.end,
            "pad_token_id": special.pad,
        }
        for part in (self.model, getattr(self.model, "text_decoder", None)):
            if part is not None:
                settings = GenerationConfig(**neutral)  # type: ignore[no-untyped-call]
                part.generation_config = settings

    @property
    def compatible_digests(self) -> tuple[str, ...]:
        """Its own digest only."""
        return (self.digest,)

    @property
    def max_positions(self) -> int:
        """Longest text, in tokens."""
        return self.calls.positions or 512

    @property
    def hidden_size(self) -> int:
        """0: it scores texts instead of embedding them."""
        return 0

    @property
    def image_graph(self) -> nn.Module | None:
        """Pixels to visual tokens; None where it reads no images."""
        return None if self.preprocess is None else self.calls.image_graph()

    @property
    def halves(self) -> Halves:
        """Encoder and decoder as modules of tensors.

        Raises:
            BackboneError: of BLIP, whose decoder begins with a row's own words.
        """
        return self.calls.halves(self._ids("a", self.max_positions))

    @property
    def forward(self) -> NoReturn:
        """Raises `BackboneError`: the backbone has no embedding to export."""
        raise self._embeds_nothing()

    def _embeds_nothing(self) -> BackboneError:
        return BackboneError(
            f"backbone {self.name!r}: scores and generates texts and does not embed; use a text "
            "encoder or pidep-mini"
        )

    def prepare(self, rows: Sequence[Input], *, max_length: int) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` `[B, T]` int64; `pixel_values` of the rows with an
        image.
        """
        whole = [as_row(row) for row in rows]
        texts = [self._ids(self.calls.source(row.text), max_length) for row in whole]
        ids, mask = padded(texts, value=self.calls.special.pad)
        inputs = {"input_ids": ids, "attention_mask": mask}
        seen = [(place, row.image) for place, row in enumerate(whole, 1) if row.image is not None]
        if seen and self.preprocess is not None:
            images = [self.preprocess.one(image, where=f"row {place}") for place, image in seen]
            inputs["pixel_values"] = torch.from_numpy(np.stack(images))
        return on_device(inputs, self.model)

    def embed(self, rows: Sequence[Input], *, max_length: int) -> NoReturn:
        """Raises `BackboneError`: the backbone does not embed."""
        raise self._embeds_nothing()

    def encode(self, rows: Sequence[Input], *, max_length: int, batch_size: int = 64) -> NoReturn:
        """Raises `BackboneError`: the backbone does not embed."""
        raise self._embeds_nothing()

    def label_embeddings(self, label_texts: Sequence[str]) -> Tensor:
        """`[C, 0]`: the backbone scores the label texts themselves."""
        return torch.zeros(len(label_texts), 0)

    def answer_scorer(
        self,
        label_texts: Sequence[str],
        label_embeddings: Tensor,
        *,
        logit_scale: float,
        max_answer_length: int | None = None,
    ) -> AnswerScorer:
        """Log-likelihoods of the label texts, of each row's candidates, or of free texts; never
        scaled.
        """
        free = max_answer_length is not None
        return Likelihoods(self, label_texts, free=free, max_target_length=max_answer_length or 1)

    def loss(
        self,
        rows: Sequence[Input],
        targets: Sequence[str],
        *,
        max_length: int,
        max_target_length: int,
    ) -> Tensor:
        """-log p(target | row) in nats `[B]`, summed over tokens.

        Gradients go to the attached experts.

        Raises:
            BackboneError, ImageError: the backbone cannot read a row; the message names it.
        """
        if len(rows) != len(targets):
            raise UsageError(
                f"{len(rows)} rows and {len(targets)} target texts; give one target a row"
            )
        labels = [self._answer(text, limit=max_target_length) for text in targets]
        return -self._log_likelihood(self._encode(rows, max_length=max_length), labels).sum(1)

    def score(
        self,
        rows: Sequence[Input],
        candidates: Candidates,
        *,
        max_length: int,
        normalise: Normalise = "none",
        max_target_length: int | None = None,
    ) -> Tensor:
        """log p(candidate | row) in nats, `[B, C]`, with gradients to the attached experts.

        The encoder runs once a row. Rows with fewer candidates of their own have -inf in the places
        left over. Candidates are cut at `max_target_length` tokens, if given.

        Raises:
            BackboneError, ImageError: a row or a candidate cannot be read; the message names it.
        """
        answers = self._answers(candidates, len(rows), limit=max_target_length)
        count = max(len(own) for own in answers)
        encoded = self._encode(rows, max_length=max_length)
        # Candidates are decoded in groups; all at once, their logits could fill the memory.
        together = max(1, DECODED_TOGETHER // max(1, len(rows)))
        parts = []
        for start in range(0, count, together):
            number = min(together, count - start)
            # Every row needs the same number of sequences, so that rows stay apart. A place left
            # over gets the row's first candidate and is masked below.
            labels = [
                (own[place] if place < len(own) else own[0])
                for own in answers
                for place in range(start, start + number)
            ]
            parts.append(
                self._log_likelihood(encoded.repeated(number), labels)
                .sum(1)
                .reshape(len(rows), number)
            )
        scores = torch.cat(parts, 1)
        lengths = torch.tensor(
            [
                [len(own[place]) if place < len(own) else 0 for place in range(count)]
                for own in answers
            ],
            device=scores.device,
        )
        if normalise == "tokens":
            scores = scores / lengths.clamp(min=1)
        return scores.masked_fill(lengths == 0, -torch.inf)

    def generate(
        self,
        rows: Sequence[Input],
        *,
        max_length: int,
        max_new_tokens: int = 32,
        mode: GenerationMode = "greedy",
        num_beams: int | None = None,
        candidates: Candidates | None = None,
        length_penalty: float = 1.0,
        batch_size: int = 16,
    ) -> list[str]:
        """One answer per row, with the attached experts.

        `beam` divides a sum of log-probabilities by length ** length_penalty, as transformers does;
        4 beams by default. `constrained` gives the candidate with the largest sum. It is exact with
        at least as many beams as candidates, the default up to 16. There `max_new_tokens` is the
        longest candidate's length.

        Raises:
            UsageError: the mode needs candidates or takes none, or a number is out of range.
            BackboneError, ImageError: the backbone cannot read a row; the message names it.
        """
        self._check_mode(mode, num_beams, candidates, max_new_tokens)
        answers = None if candidates is None else self._answers(candidates, len(rows))
        texts = None if candidates is None else candidates_by_row(candidates, len(rows))
        found = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: size_key(rows[row]))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                encoded = self._encode(
                    [rows[row] for row in chosen],
                    max_length=max_length,
                    numbers=[row + 1 for row in chosen],
                )
                for group in groups_of_one_length(encoded.prompts):
                    numbers = [chosen[place] for place in group]
                    own = None if answers is None else [answers[row] for row in numbers]
                    settings = self._settings(mode, num_beams, own, max_new_tokens, length_penalty)
                    for row, ids in zip(
                        numbers, self._decode(encoded.take(group), own, settings), strict=True
                    ):
                        found[row] = self._text(
                            ids,
                            None
                            if answers is None or texts is None
                            else (answers[row], texts[row]),
                        )
        return found

    def around(self, model: Any) -> EncoderDecoder:
        """The same backbone with another model, and no cache."""
        return replace(self, model=model)

    @contextmanager
    def cached_below(self, sites: Sequence[str]) -> Iterator[None]:
        """Inside, every image passes the vision tower once, unless an expert acts there."""
        before = self._kept
        self._kept = (
            None if any(site.startswith(self.calls.sight) for site in sites) else OrderedDict()
        )
        try:
            yield
        finally:
            self._kept = before

    def _settings(
        self,
        mode: GenerationMode,
        num_beams: int | None,
        own: list[list[list[int]]] | None,
        limit: int,
        penalty: float,
    ) -> Any:
        from transformers import GenerationConfig

        beams = 1
        if mode == "beam":
            beams = num_beams or 4
        if own is not None:
            # As many beams as candidates: none can be lost, so the choice is exact.
            beams = num_beams or min(max(len(each) for each in own), _BEAMS)
            # No length penalty: beams must compare sums, as `score` does.
            limit, penalty = max(len(ids) for each in own for ids in each), 0.0
        shape = (
            {"num_beams": beams, "length_penalty": penalty, "early_stopping": "never"}
            if beams > 1
            else {}
        )
        fixed = {"max_new_tokens": limit, "do_sample": False, "use_cache": True}
        return GenerationConfig(**fixed, **shape)  # type: ignore[no-untyped-call]

    def _decode(
        self, encoded: Encoded, own: list[list[list[int]]] | None, settings: Any
    ) -> list[list[int]]:
        """The tokens after each row's beginning, up to the closing token."""
        begun = len(encoded.prompts[0])
        options = {}
        if own is not None:
            tries = [Trie(each, end=self.calls.special.end) for each in own]
            options["prefix_allowed_tokens_fn"] = lambda row, ids: tries[row].after(
                ids[begun:].tolist()
            )
        begin = torch.tensor(encoded.prompts, device=encoded.hidden.device)
        found = self.calls.generate(encoded, begin, settings, **options)[:, begun:].tolist()
        end = self.calls.special.end
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in found]

    def _text(self, ids: list[int], choices: tuple[list[list[int]], list[str]] | None) -> str:
        if choices is not None:
            answers, texts = choices
            return texts[answers.index(ids)]
        return self.tokenize.text(
            [token for token in ids if token not in self.calls.special.frame]
        ).strip()

    def _check_mode(
        self, mode: str, num_beams: int | None, candidates: Candidates | None, max_new_tokens: int
    ) -> None:
        if mode not in ("greedy", "beam", "constrained"):
            raise UsageError(f"mode {mode!r}: expected greedy, beam or constrained")
        if (mode == "constrained") != (candidates is not None):
            raise UsageError(
                f"mode {mode!r}: "
                + (
                    "needs candidates"
                    if candidates is None
                    else "takes no candidates; use mode 'constrained'"
                )
            )
        if mode == "greedy" and num_beams not in (None, 1):
            raise UsageError(
                f"mode 'greedy' has one beam, found num_beams {num_beams}; use mode 'beam'"
            )
        if max_new_tokens < 1 or (num_beams is not None and num_beams < 1):
            raise UsageError(
                f"max_new_tokens {max_new_tokens} and num_beams {num_beams}: expected at least 1"
            )

    def _answer(self, text: str, *, limit: int | None = None) -> list[int]:
        """Tokens of a text to decode; the closing token is the last."""
        special, longest = self.calls.special, limit if limit is not None else 2**31
        ids = self._ids(text, longest + self.calls.cuts_opening)[int(self.calls.cuts_opening) :]
        return ids if ids and ids[-1] == special.end else [*ids[: longest - 1], special.end]

    def _answers(
        self, candidates: Candidates, num_rows: int, *, limit: int | None = None
    ) -> list[list[list[int]]]:
        """Tokens of every row's candidates."""
        # Rows often share their candidates, so each text is tokenized once.
        kept: dict[str, list[int]] = {}
        for text in (text for own in candidates_by_row(candidates, num_rows) for text in own):
            if text not in kept:
                kept[text] = self._answer(text, limit=limit)
                room = self.calls.positions
                if room is not None and len(kept[text]) >= room:
                    raise BackboneError(
                        f"candidate {text[:40]!r}: has {len(kept[text])} tokens, the decoder has "
                        f"{room} positions; shorten it"
                    )
        return [[kept[text] for text in own] for own in candidates_by_row(candidates, num_rows)]

    def _ids(self, text: str, limit: int) -> list[int]:
        ids, mask = self.tokenize([text], max_length=limit)
        return [int(token) for token in ids[0][: int(mask[0].sum())]]

    def _encode(
        self, rows: Sequence[Input], *, max_length: int, numbers: Sequence[int] | None = None
    ) -> Encoded:
        """Rows to the states that the decoder attends to.

        Errors name rows by `numbers`, from 1 on.
        """
        calls, called = self.calls, list(numbers or range(1, len(rows) + 1))
        whole = [as_row(row) for row in rows]
        if calls.images == "never":
            texts_only(rows, backbone=self.name)
        for number, row in zip(called, whole, strict=True):
            check_row(row, number, backbone=self.name, images=calls.images)
        texts = [self._ids(calls.source(row.text), max_length) for row in whole]
        seen = [place for place, row in enumerate(whole) if row.image is not None]
        visual = (
            self._see([whole[place] for place in seen], [called[place] for place in seen])
            if seen
            else None
        )
        self._check_room(
            texts, 0 if visual is None or calls.cuts_opening else visual.shape[1], called
        )
        return calls.encode(texts, visual, seen)

    def _check_room(
        self, texts: Sequence[Sequence[int]], beside: int, called: Sequence[int]
    ) -> None:
        room = self.calls.positions
        for number, ids in zip(called, texts, strict=True):
            if room is not None and len(ids) + beside > room:
                what = f"{len(ids)} tokens" + (f" and {beside} of an image" if beside else "")
                raise BackboneError(
                    f"row {number}: {what}, the backbone has {room} positions; cut texts at "
                    f"{room - beside} (max_length)"
                )

    def _see(self, rows: Sequence[Row], numbers: Sequence[int]) -> Tensor:
        """Visual tokens `[N, V, D]`. Inside `cached_below`, known images are not computed again."""
        assert self.preprocess is not None
        pixels = torch.from_numpy(
            np.stack(
                [
                    self.preprocess.one(row.image, where=row.where or f"row {n}")
                    for n, row in zip(numbers, rows, strict=True)
                    if row.image is not None
                ]
            )
        )
        device = device_of(self.model)
        if self._kept is None:
            return self.calls.see(pixels.to(device))
        # By the pixels, not by the file: two files may hold one picture, and one file may change.
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in pixels]
        missing = {key: place for place, key in enumerate(keys) if key not in self._kept}
        # The tower is below every expert, so no gradient is needed. Plain no_grad: cached states
        # must serve training after `generate`, and inference-mode tensors cannot.
        if missing:
            with torch.inference_mode(mode=False), torch.no_grad():
                fresh = self.calls.see(pixels[list(missing.values())].to(device, copy=True))
            self._kept.update(zip(missing, fresh, strict=True))
        found = torch.stack([self._kept[key] for key in keys])
        while len(self._kept) > _KEPT_IMAGES:
            self._kept.popitem(last=False)
        return found

    def _log_likelihood(self, encoded: Encoded, labels: Sequence[Sequence[int]]) -> Tensor:
        """log p of each token to decode, `[B, T]`; 0 for padding."""
        # Shifted by one: the decoder reads each token and predicts the next.
        given = [[*prompt, *ids[:-1]] for prompt, ids in zip(encoded.prompts, labels, strict=True)]
        wanted = [
            [_IGNORED] * (len(prompt) - 1) + list(ids)
            for prompt, ids in zip(encoded.prompts, labels, strict=True)
        ]
        self._check_decoder_room(given)
        device = encoded.hidden.device
        ids = padded(given, value=self.calls.special.pad)[0].to(device)
        logits = self.calls.logits(encoded, ids)
        targets = padded(wanted, value=_IGNORED)[0].to(device)
        return -cross_entropy(
            # fp32: the logarithm of a softmax over a large vocabulary loses digits in 16 bits.
            logits.transpose(1, 2).float(),
            targets,
            ignore_index=_IGNORED,
            reduction="none",
        )

    def _check_decoder_room(self, given: Sequence[Sequence[int]]) -> None:
        room, longest = self.calls.positions, max(len(ids) for ids in given)
        if room is not None and longest > room:
            raise BackboneError(
                f"target texts: {longest} tokens, the decoder has {room} positions; cut them "
                "(max_target_length)"
            )
