"""An encoder-decoder's two graphs: texts scored and generated with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.artifacts.names import DECODER_GRAPH, ENCODER_GRAPH, GRAPH_LOGITS
from pidep.artifacts.sequence import SequenceRecord
from pidep.errors import BackboneError
from pidep.inputs.decoding import Decoding
from pidep.inputs.row import Row, as_row
from pidep.inputs.trie import Trie
from pidep.runtime.answer import Answer, Array, finite, softmax
from pidep.runtime.input_reader import InputReader
from pidep.runtime.search import Step, beam_search, greedy_search, log_softmax
from pidep.runtime.session import open_session

__all__ = ["Acting", "Answering", "Sequences"]

Acting: TypeAlias = Callable[[Sequence[int]], Mapping[str, Any]]
"""Numbers of rows to the graph inputs that hold their experts, as OrtValues; none when merged."""
_MOST_LOGITS = 2**25
"""Logits in one call of the decoder; they are as wide as the vocabulary."""
_MOST_SEQUENCES = 512
_MAX_ANSWER_LENGTH = 32
_BEAMS, _MOST_BEAMS = 4, 16
_DEFAULT = Decoding()


@dataclass(frozen=True)
class Answering:
    """What a row is answered with."""

    digest: str
    max_length: int
    labels: tuple[str, ...] = ()
    label_texts: tuple[str, ...] = ()
    max_answer_length: int | None = None
    label_bias: tuple[float, ...] = ()
    """Added to the score of each label; a row's own candidates have none."""


@dataclass(frozen=True)
class _Choices:
    """The answers that a row may have."""

    names: tuple[str, ...]
    ids: list[list[int]] = field(default_factory=list)
    """Their tokens; the closing one is the last."""
    bias: tuple[float, ...] = ()
    """Of each; empty for none."""


class Sequences:
    """Answers rows by an encoder and a decoder graph."""

    def __init__(
        self,
        version_folder: Path,
        record: SequenceRecord,
        reader: InputReader,
        *,
        threads: int | None = None,
    ) -> None:
        """Open the graphs.

        Raises:
            ServingError: a file is missing or not the recorded one.
        """
        self.record = record
        self._reader = reader
        self._tokenize = reader.tokenize
        self._encoder = _Graph(version_folder / ENCODER_GRAPH, record.encoder_digest, threads)
        self._decoder = _Graph(version_folder / DECODER_GRAPH, record.decoder_digest, threads)

    @contextmanager
    def recorded(self) -> Iterator[dict[str, list[dict[str, Array]]]]:
        """Inside, the inputs of every run are kept: graph's name to one mapping a run."""
        graphs = {ENCODER_GRAPH: self._encoder, DECODER_GRAPH: self._decoder}
        found: dict[str, list[dict[str, Array]]] = {name: [] for name in graphs}
        try:
            for name, graph in graphs.items():
                graph.kept = found[name]
            yield found
        finally:
            for graph in graphs.values():
                graph.kept = None

    @property
    def session(self) -> Any:
        """The decoder's session, which runs once a token."""
        return self._decoder.session

    @property
    def inputs(self) -> dict[str, str]:
        """Name to type of every input of either graph."""
        return {**self._encoder.types, **self._decoder.types}

    def answers(
        self,
        rows: Sequence[Row],
        visuals: Sequence[Array | None],
        with_: Sequence[Answering],
        acting: Acting,
    ) -> list[Answer]:
        """Answer each row.

        Args:
            visuals: visual tokens `[V, D]` of each row, as the reader gives them.
            with_: of each row.

        Raises:
            BackboneError: a row, or a candidate, has more tokens than there are positions.
        """
        vision = self._reader.vision
        visual = {} if vision is None else vision.beside(visuals)
        encoded = self._encoded(rows, visual, with_, acting)
        choices = [self._choices(row, own) for row, own in zip(rows, with_, strict=True)]
        modes = [_mode(row, own) for row, own in zip(rows, choices, strict=True)]
        found: dict[int, Answer] = {}
        scored = [at for at, mode in enumerate(modes) if mode == "score"]
        with np.errstate(over="ignore", invalid="ignore"):  # `finite` reports them
            found.update(self._scored(encoded, scored, choices, with_))
            for at, ids in self._generated(encoded, rows, modes, choices, with_).items():
                found[at] = self._answer(ids, choices[at], modes[at], with_[at])
        return [found[at] for at in range(len(rows))]

    def _encoded(
        self,
        rows: Sequence[Row],
        visual: Mapping[str, Array],
        with_: Sequence[Answering],
        acting: Acting,
    ) -> _Encoded:
        texts = [self._source(row.text) for row in rows]
        ids, mask = self._tokenize(texts, max_length=[own.max_length for own in with_])
        if visual:
            ids, mask = self._behind_images(ids, mask, visual["visual_mask"])
        room = self.record.positions
        for row, own in zip(rows, mask, strict=True):
            if room is not None and own.sum() > room:
                raise BackboneError(
                    f"{row.where}: {own.sum()} tokens, the backbone has {room} positions; cut the "
                    "text (max_length)"
                )
        feeds = {"input_ids": ids, "attention_mask": mask, **visual}
        return _Encoded(
            self._decoder, self._encoder.run(feeds, acting(range(len(rows)))), mask, acting
        )

    def _source(self, text: str) -> str:
        """A task word of Florence-2 becomes the sentence that it stands for."""
        word, closed, rest = text.partition(">")
        sentence = (self.record.task_words or {}).get(word + closed)
        return text if sentence is None else sentence.format(input=rest.strip())

    def _behind_images(
        self, ids: Array, mask: Array, seen: Array
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """As many image tokens before the text as a row's image has visual tokens."""
        images, lengths = seen.sum(1), mask.sum(1)
        width = int((images + lengths).max())
        wide, known = np.zeros((2, len(ids), width), np.int64)
        for at, (count, length) in enumerate(zip(images, lengths, strict=True)):
            wide[at, :count] = self.record.image_token
            wide[at, count : count + length] = ids[at, :length]
            known[at, : count + length] = 1
        return wide, known

    def _choices(self, row: Row, own: Answering) -> _Choices:
        given = tuple(as_row(each).text for each in row.candidates)
        names, texts = (given, given) if given else (own.labels, own.label_texts)
        ids = [self._answer_ids(text, row.where) for text in texts]
        return _Choices(names, ids, () if given else own.label_bias)

    def _answer_ids(self, text: str, where: str) -> list[int]:
        """Tokens of a text to decode; the closing token is the last."""
        end, room = self.record.end, self.record.positions
        ids, _ = self._tokenize([text], max_length=2**31)
        found = [int(token) for token in ids[0]]
        found = found if found[-1] == end else [*found, end]
        if room is not None and len(found) >= room:
            raise BackboneError(
                f"{where}: candidate {text[:40]!r} has {len(found)} tokens, the decoder has "
                f"{room} positions; shorten it"
            )
        return found

    def _scored(
        self,
        encoded: _Encoded,
        rows: Sequence[int],
        choices: Sequence[_Choices],
        with_: Sequence[Answering],
    ) -> dict[int, Answer]:
        """log p of each choice, in nats: the sum over its tokens and the closing one."""
        pairs = [(at, ids) for at in rows for ids in choices[at].ids]
        # Sequences of alike lengths together, so that few logits are of padding.
        order = sorted(range(len(pairs)), key=lambda pair: len(pairs[pair][1]))
        sums = np.zeros(len(pairs), np.float32)
        while order:
            some = order[-self._together(len(pairs[order[-1]][1])) :]
            del order[-len(some) :]
            sums[some] = self._log_likelihoods(encoded, [pairs[pair] for pair in some])
        found, place = {}, 0
        for at in rows:
            logits = sums[place : place + len(choices[at].ids)]
            place += len(logits)
            if choices[at].bias:
                logits = logits + np.array(choices[at].bias, np.float32)
            answer = Answer(choices[at].names, logits, softmax(logits), with_[at].digest)
            found[at] = _finite(answer)
        return found

    def _together(self, length: int) -> int:
        """Sequences of one call, by the size of their logits."""
        width = max(1, length * self._decoder.last_width(GRAPH_LOGITS))
        return max(1, min(_MOST_SEQUENCES, _MOST_LOGITS // width))

    def _log_likelihoods(self, encoded: _Encoded, pairs: Sequence[tuple[int, list[int]]]) -> Array:
        longest = max(len(ids) for _, ids in pairs)
        wanted = np.full((len(pairs), longest), -1, np.int64)
        for at, (_, ids) in enumerate(pairs):
            wanted[at, : len(ids)] = ids
        # Shifted by one: the decoder reads each token and predicts the next.
        start = np.full((len(pairs), 1), self.record.start, np.int64)
        given = np.concatenate([start, np.where(wanted < 0, self.record.pad, wanted)[:, :-1]], 1)
        logits = encoded.taken([row for row, _ in pairs]).logits(given, np.arange(len(pairs)))
        logs = np.take_along_axis(log_softmax(logits), np.maximum(wanted, 0)[..., None], 2)[..., 0]
        found: Array = np.where(wanted < 0, np.float32(0), logs).sum(1)
        return found

    def _generated(
        self,
        encoded: _Encoded,
        rows: Sequence[Row],
        modes: Sequence[str],
        choices: Sequence[_Choices],
        with_: Sequence[Answering],
    ) -> dict[int, list[int]]:
        """Tokens of the rows whose answers are generated."""
        found: dict[int, list[int]] = {}
        limits = [self._limit(row, own) for row, own in zip(rows, with_, strict=True)]
        greedy = [at for at, mode in enumerate(modes) if mode == "greedy"]
        fixed = {"start": self.record.start, "end": self.record.end}
        if greedy:
            step = encoded.taken(greedy).step
            wanted = [limits[at] for at in greedy]
            found.update(
                zip(greedy, greedy_search(step, len(greedy), limits=wanted, **fixed), strict=True)
            )
        groups: dict[tuple[int, int, float, bool], list[int]] = {}
        for at, mode in enumerate(modes):
            if mode in ("beam", "constrained"):
                key = _beam_settings(rows[at], mode, choices[at], limits[at])
                groups.setdefault(key, []).append(at)
        for (beams, limit, penalty, held), some in groups.items():
            repeated = [at for at in some for _ in range(beams)]
            found.update(
                zip(
                    some,
                    beam_search(
                        encoded.taken(repeated).step,
                        len(some),
                        beams=beams,
                        limit=limit,
                        penalty=penalty,
                        tries=[Trie(choices[at].ids, end=self.record.end) for at in some]
                        if held
                        else None,
                        **fixed,
                    ),
                    strict=True,
                )
            )
        return found

    def _limit(self, row: Row, own: Answering) -> int:
        """Tokens that a free answer may have."""
        asked = (row.decoding or _DEFAULT).max_answer_length
        found = asked or own.max_answer_length or _MAX_ANSWER_LENGTH
        return found if self.record.positions is None else min(found, self.record.positions - 1)

    def _answer(self, ids: list[int], choices: _Choices, mode: str, own: Answering) -> Answer:
        none = np.zeros(0, np.float32)
        if mode == "constrained":
            text = choices.names[choices.ids.index(ids)] if ids in choices.ids else ""
        else:
            kept = [token for token in ids if token not in self.record.frame]
            text = self._tokenize.text(kept).strip()
        return Answer((), none, none, own.digest, text=text)


class _Graph:
    """A session, fed with arrays and OrtValues."""

    def __init__(self, path: Path, digest: str, threads: int | None) -> None:
        self.session = open_session(path, digest, threads=threads)
        inputs = self.session.get_inputs()
        self.types = {one.name: one.type for one in inputs}
        self.shapes = {one.name: one.shape for one in inputs}
        outputs = self.session.get_outputs()
        self.outputs = [one.name for one in outputs]
        self._widths = {one.name: one.shape[-1] for one in outputs}
        self.kept: list[dict[str, Array]] | None = None
        """The inputs of each run, while somebody records them."""

    def last_width(self, output: str) -> int:
        """Size of an output's last axis."""
        return int(self._widths[output])

    def run(self, feeds: Mapping[str, Any], experts: Mapping[str, Any]) -> dict[str, Any]:
        """Name to OrtValue of every output."""
        values = {
            name: _value(value) if isinstance(value, np.ndarray) else value
            for name, value in {**feeds, **experts}.items()
            # A group of sites may lie in one of the two graphs alone.
            if name in self.types
        }
        if self.kept is not None:
            # Copies: an OrtValue's array may lie in memory that the next run writes.
            self.kept.append({name: np.array(value.numpy()) for name, value in values.items()})
        found = self.session.run_with_ort_values(self.outputs, values)
        return dict(zip(self.outputs, found, strict=True))


class _Encoded:
    """What the decoder reads of some rows."""

    def __init__(
        self, decoder: _Graph, cross: Mapping[str, Any], mask: Array, acting: Acting
    ) -> None:
        self._decoder, self._mask, self._acting = decoder, mask, acting
        self._cross = {name: value.numpy() for name, value in cross.items()}

    def taken(self, rows: Sequence[int]) -> _Decoder:
        """A decoder of these rows, of which one may stand several times."""
        chosen = np.asarray(rows)
        fixed = {name: _value(array[chosen]) for name, array in self._cross.items()}
        fixed["attention_mask"] = _value(self._mask[chosen])
        return _Decoder(self._decoder, {**fixed, **self._acting(rows)})


class _Decoder:
    """Sequences that are continued token by token."""

    def __init__(self, graph: _Graph, fixed: Mapping[str, Any]) -> None:
        self._graph, self._fixed = graph, fixed
        self._past: dict[str, Any] = {}

    @property
    def step(self) -> Step:
        """Logits of the next token after each of `[n]`."""
        return lambda tokens, parents: self.logits(tokens[:, None], parents)[:, -1]

    def logits(self, ids: Array, parents: Array) -> Array:
        """Logits `[n, T, V]` after each of the ids `[n, T]`.

        Args:
            parents: which sequence each one continues.
        """
        past = self._past or self._nothing(len(parents))
        feeds = {"decoder_ids": ids, "parents": parents.astype(np.int64), **past}
        found = self._graph.run(feeds, self._fixed)
        logits: Array = found.pop(GRAPH_LOGITS).numpy()
        # Kept where they are: nothing is copied between two steps.
        self._past = {f"past_{name}": value for name, value in found.items()}
        return logits

    def _nothing(self, count: int) -> dict[str, Any]:
        """Keys and values of no token."""
        shapes, types = self._graph.shapes, self._graph.types
        return {
            name: np.zeros((count, shape[1], 0, shape[3]), _dtype(types[name]))
            for name, shape in shapes.items()
            if name.startswith("past_")
        }


def _dtype(type_: str) -> type[np.floating[Any]]:
    """Of an input's type, as ONNX Runtime names it."""
    return np.float16 if type_ == "tensor(float16)" else np.float32


def _value(array: Array) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cpu", 0)


def _mode(row: Row, choices: _Choices) -> str:
    """How a row's answer is found.

    Raises:
        BackboneError: it needs candidates, and the row has none.
    """
    mode = (row.decoding or _DEFAULT).mode or ("score" if choices.names else "greedy")
    if mode in ("score", "constrained") and not choices.names:
        raise BackboneError(
            f"{row.where}: mode {mode!r} needs candidates, and the expert has no labels; give "
            "candidates"
        )
    return mode


def _beam_settings(
    row: Row, mode: str, choices: _Choices, limit: int
) -> tuple[int, int, float, bool]:
    """Beams, longest answer, length penalty, and whether only the choices are allowed."""
    asked = row.decoding or _DEFAULT
    if mode == "beam":
        return asked.num_beams or _BEAMS, limit, asked.length_penalty, False
    # As many beams as candidates: none is lost, so the choice is exact. Beams compare sums there.
    beams = asked.num_beams or min(len(choices.ids), _MOST_BEAMS)
    return beams, max(map(len, choices.ids)), 0.0, True


def _finite(answer: Answer) -> Answer:
    """The answer.

    Raises:
        AnswerError: it holds NaN or infinity.
    """
    found = finite(answer)
    if isinstance(found, Answer):
        return found
    raise found
