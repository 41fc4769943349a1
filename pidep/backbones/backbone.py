"""The one interface of frozen models: encode, score and generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from pidep.backbones.halves import Halves
from pidep.backbones.tower import Tower
from pidep.inputs.images import Preprocess
from pidep.inputs.row import Input

__all__ = ["AnswerScorer", "Backbone", "Candidates", "GenerationMode"]

Candidates = Sequence[str] | Sequence[Sequence[Input]]
"""The same texts for every row, or each row's own candidates."""
GenerationMode = Literal["greedy", "beam", "constrained"]
"""How an answer is decoded; `constrained` answers with one of the candidates."""


class AnswerScorer(Protocol):
    """Scores rows against the answers of one task: its labels, each row's candidates, or free
    texts.
    """

    def learn(self, rows: Sequence[Input]) -> None:
        """Prepare for rows with candidates of their own. Call it before an expert is attached."""

    def logits(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """`[B, C]` with gradients to the attached experts.

        Rows with fewer candidates than others have -inf in the places left over.
        """

    def all_logits(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """`[N, C]` without gradients, for any number of rows."""


class Backbone(Protocol):
    """A frozen model. Experts are attached to `model`, for texts and images alike."""

    name: str
    digest: str
    """SHA-256 over everything that decides its answers."""

    @property
    def embeds(self) -> bool:
        """Whether `encode` works: rows and label texts become unit vectors."""

    @property
    def generates(self) -> bool:
        """Whether `generate` works: rows are answered by free texts."""

    @property
    def compatible_digests(self) -> tuple[str, ...]:
        """Digests of the backbones whose experts run here unchanged; its own digest first."""

    @property
    def model(self) -> Any:
        """The module that experts are attached to."""

    @property
    def hidden_size(self) -> int:
        """D, the width of an embedding; 0 where the backbone does not embed."""

    @property
    def max_positions(self) -> int:
        """Longest text, in tokens."""

    @property
    def logit_scale(self) -> float:
        """The factor that turns scores into logits for a new task."""

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as the served model gets it."""

    @property
    def preprocess(self) -> Preprocess | None:
        """How images are prepared; None where the backbone reads no images."""

    @property
    def image_graph(self) -> nn.Module | None:
        """The frozen part that turns pixels `[N, 3, S, S]` into visual tokens `[N, V, D]`.

        It is exported as a graph of its own. None where the backbone reads no images or has no
        such part below its experts.
        """

    @property
    def halves(self) -> Halves | None:
        """What is exported of an encoder-decoder; None where the backbone embeds.

        Raises:
            BackboneError: its graphs cannot be made.
        """

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The text tower and the image tower, which are exported in place of `forward`; empty for
        other backbones.
        """

    @property
    def forward(self) -> Callable[..., Tensor]:
        """Named tensors, as `prepare` gives them, to unit vectors `[B, D]` fp32; this is exported.

        Raises:
            BackboneError: the backbone does not embed, or has two towers.
        """

    def prepare(self, rows: Sequence[Input], *, max_length: int) -> dict[str, Tensor]:
        """Rows to the model's inputs by name; axis 0 of each is the batch, axis 1 a length.

        Raises:
            BackboneError, ImageError: the backbone cannot read a row; the message names the row.
        """

    def embed(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """Rows to unit vectors `[B, D]` fp32, with gradients to the attached experts.

        Raises:
            BackboneError: the backbone does not embed, or as `prepare`.
        """

    def encode(self, rows: Sequence[Input], *, max_length: int, batch_size: int = 64) -> Tensor:
        """Rows to unit vectors `[N, D]` fp32 without gradients, batched by length; raises as
        `embed`.
        """

    def score(self, rows: Sequence[Input], candidates: Candidates, *, max_length: int) -> Tensor:
        """Rows against candidates, `[B, C]`, with gradients to the attached experts.

        Cosines where the backbone embeds, log p(candidate | row) in nats where it generates. Rows
        with fewer candidates of their own have -inf in the places left over.

        Raises:
            BackboneError, ImageError, UsageError: a row or a candidate cannot be read.
        """

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

        Raises:
            BackboneError: the backbone does not generate, or as `prepare`.
            UsageError: the mode needs candidates or takes none, or a number is out of range.
        """

    def label_embeddings(self, label_texts: Sequence[str]) -> Tensor:
        """`[C, D]`: the bare backbone's embeddings of a task's label texts; D is 0 where it scores
        texts.
        """

    def answer_scorer(
        self,
        label_texts: Sequence[str],
        label_embeddings: Tensor,  # [C, D] fp32
        *,
        logit_scale: float,
        max_answer_length: int | None = None,
    ) -> AnswerScorer:
        """Scores rows against a task's answers.

        Args:
            max_answer_length: tokens of a free answer; None for a task with labels or candidates.
        """

    def around(self, model: Any) -> Backbone:
        """The same backbone with another module in place of `model`, and no cache."""

    def cached_below(self, sites: Sequence[str]) -> AbstractContextManager[None]:
        """Inside, layers below the first site run once a row; nothing may be attached below it."""
