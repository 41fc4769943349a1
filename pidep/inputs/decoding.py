"""How the answer of an encoder-decoder to a row is decoded, and how that travels. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pidep.errors import TaskError

__all__ = ["Decoding", "DecodingMode", "read_candidates", "read_decoding"]

DecodingMode = Literal["score", "greedy", "beam", "constrained"]
_MODES = ("score", "greedy", "beam", "constrained")
# A batch runs as long as its longest answer, so one request must not ask for hours.
_MOST_BEAMS, _MOST_TOKENS, _MOST_CANDIDATES = 16, 1024, 1024


@dataclass(frozen=True)
class Decoding:
    """How one row's answer is found.

    `score` gives log p of each label or candidate, `greedy` and `beam` a free text, `constrained`
    one of the labels or candidates by a beam search that allows nothing else.

    Raises:
        TaskError: a value is out of range, or does not fit the mode.
    """

    mode: DecodingMode | None = None
    """`score` where the row has labels or candidates, else `greedy`, when absent."""
    num_beams: int | None = None
    """4 for `beam`; for `constrained` as many as candidates, at most 16."""
    max_answer_length: int | None = None
    """Tokens of a free answer; the expert's, or 32."""
    length_penalty: float = 1.0
    """Of `beam`: a sum of log-probabilities is divided by length ** length_penalty."""

    def __post_init__(self) -> None:
        if self.mode not in (None, *_MODES):
            raise TaskError(f"mode {self.mode!r:.40}: expected {', '.join(_MODES)}")
        for name, most in (("num_beams", _MOST_BEAMS), ("max_answer_length", _MOST_TOKENS)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and 1 <= value <= most):
                raise TaskError(f"{name} {value!r:.40}: expected a whole number from 1 to {most}")
        penalty = self.length_penalty
        number = isinstance(penalty, int | float) and not isinstance(penalty, bool)
        if not number or not math.isfinite(penalty) or abs(penalty) > 10:
            raise TaskError(f"length_penalty {penalty!r:.40}: expected a number from -10 to 10")
        if self.num_beams not in (None, 1) and self.mode in ("score", "greedy"):
            raise TaskError(f"mode {self.mode!r} has one beam, found num_beams {self.num_beams}")

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        default = asdict(Decoding())
        return {key: value for key, value in asdict(self).items() if value != default[key]}


def read_decoding(data: bytes, where: str) -> Decoding:
    """Of a request's JSON object.

    Raises:
        TaskError: it is none, or as `Decoding`; the message begins with `where`.

    >>> read_decoding(b'{"mode": "beam", "num_beams": 2}', "row 1").num_beams
    2
    """
    known = [field.name for field in fields(Decoding)]
    values = _parsed(data, where, f"a JSON object of {', '.join(known)}")
    if not isinstance(values, Mapping) or not set(values) <= set(known):
        raise TaskError(
            f"{where}: decoding {data[:60]!r}: expected a JSON object of {', '.join(known)}"
        )
    try:
        return Decoding(**values)
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from error


def read_candidates(data: bytes, where: str) -> tuple[str, ...]:
    """Of a request's JSON list.

    Raises:
        TaskError: it is no list of texts; the message begins with `where`.

    >>> read_candidates(b'["yes", "no"]', "row 1")
    ('yes', 'no')
    """
    expected = f"a JSON list of 1 to {_MOST_CANDIDATES} different texts"
    values = _parsed(data, where, expected)
    texts = isinstance(values, list) and all(isinstance(each, str) for each in values)
    if not texts or not 1 <= len(values) <= _MOST_CANDIDATES or len(set(values)) != len(values):
        raise TaskError(f"{where}: candidates {data[:60]!r}: expected {expected}")
    return tuple(values)


def _parsed(data: bytes, where: str, expected: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: {data[:60]!r}: expected {expected}") from error
