"""Six tasks on the rated sentences of four domains; a sentence is on the same side in all
of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from pidep.gallery.sentiment import packaged_rows
from pidep.gallery.suite.row import Sides, SuiteRow
from pidep.tasks.by_hash import held_out, in_order

__all__ = ["DOMAINS", "domain", "sentiment", "strength"]

DOMAINS = ("amazon", "movie", "nyt", "tweets")
_TEST_FRACTION, _SPLIT_SEED = 0.3, 0
"""The defaults of task files, whose rows are divided by the same rule."""
_STRONG, _MILD = 2.0, 1.0
"""Lowest rating of a strong sentence, and highest rating of a mild one; 4 is the maximum."""


@dataclass(frozen=True)
class _Sentence:
    domain: str
    text: str
    rating: float

    @property
    def held_out(self) -> bool:
        return held_out(self.text, fraction=_TEST_FRACTION, seed=_SPLIT_SEED)


def _of_domain(name: str) -> Iterator[_Sentence]:
    with packaged_rows(f"sentiment/{name}").open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            yield _Sentence(name, row["text"], row["rating"])


def sentiment(name: str) -> Sides:
    """All sentences of a domain, labelled by the sign of their rating."""
    sides = Sides([], [])
    for sentence in _of_domain(name):
        row = SuiteRow("positive" if sentence.rating > 0 else "negative", sentence.text)
        (sides.test if sentence.held_out else sides.train).append(row)
    return sides


def _sentences() -> list[_Sentence]:
    """Every sentence that occurs in one domain only, once, in an order drawn from the texts."""
    found: dict[str, list[_Sentence]] = {}
    for sentence in (sentence for name in DOMAINS for sentence in _of_domain(name)):
        found.setdefault(" ".join(sentence.text.lower().split()), []).append(sentence)
    alone = [some[0] for some in found.values() if len({sentence.domain for sentence in some}) == 1]
    return in_order(alone, lambda sentence: sentence.text, seed=1)


def _balanced(
    label_of: Callable[[_Sentence], str | None],
    stratum_of: Callable[[_Sentence], Hashable],
    *,
    train: int,
    test: int,
) -> Sides:
    """The first `train` and `test` sentences of every label in every stratum."""
    sides = Sides([], [])
    seen: Counter[Hashable] = Counter()
    for sentence in _sentences():
        label, held = label_of(sentence), sentence.held_out
        place = (label, stratum_of(sentence), held)
        if label is not None and seen[place] < (test if held else train):
            seen[place] += 1
            (sides.test if held else sides.train).append(SuiteRow(label, sentence.text))
    return sides


def domain() -> Sides:
    """Task: the domain that a sentence comes from."""
    return _balanced(lambda sentence: sentence.domain, lambda _: None, train=500, test=150)


def strength() -> Sides:
    """Task: whether a sentence was rated strongly or mildly.

    Labels are balanced in every domain and for either sign. Editorials are left out: few of their
    sentences are rated strongly.
    """
    return _balanced(
        _strength_of, lambda sentence: (sentence.domain, sentence.rating > 0), train=160, test=50
    )


def _strength_of(sentence: _Sentence) -> str | None:
    if sentence.domain == "nyt" or _MILD < abs(sentence.rating) < _STRONG:
        return None
    return "strong" if abs(sentence.rating) >= _STRONG else "mild"
