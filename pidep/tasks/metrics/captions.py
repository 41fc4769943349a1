"""BLEU-4 and CIDEr-D of captions as in COCO's evaluation, without its Java tokenizer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["bleu4", "cider", "tokens"]

_LONGEST = 4
_SIGMA = 6.0  # sigma of CIDEr-D's length penalty, in words
_WORD = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m)\b"
    r"|\w+(?:[-.,:/]\w+)*?(?=n't\b)"
    r"|\w+(?:[-.,:/']\w+)*?(?='(?:s|re|ve|ll|d|m)\b)"
    r"|\w+(?:[-.,:/']\w+)*"
)
"""Words, with `n't` and `'s` separate as in the Penn Treebank."""
Grams = Counter[tuple[str, ...]]


def tokens(caption: str) -> list[str]:
    """Lower-case words without punctuation.

    >>> tokens("A man's dog -- it isn't big.")
    ['a', 'man', "'s", 'dog', 'it', 'is', "n't", 'big']
    """
    return _WORD.findall(caption.lower())


def _grams(words: Sequence[str], length: int) -> Grams:
    return Counter(tuple(words[at : at + length]) for at in range(len(words) - length + 1))


def bleu4(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Corpus BLEU with n-grams up to four (Papineni et al., 2002).

    Of several references, the nearest length counts. As in COCO's evaluation, 1e-15 and 1e-9 keep a
    missing n-gram from making the score zero.
    """
    right, made = [0] * _LONGEST, [0] * _LONGEST
    length_made = length_wanted = 0
    for row, text in zip(references, predictions, strict=True):
        words, wanted = tokens(text), [tokens(reference) for reference in row]
        length_made += len(words)
        length_wanted += min((abs(len(one) - len(words)), len(one)) for one in wanted)[1]
        for n in range(_LONGEST):
            most: Grams = Counter()
            for one in wanted:
                # `|` of counters is the larger count: a repeated word counts at most as often as in
                # one reference.
                most |= _grams(one, n + 1)
            right[n] += (_grams(words, n + 1) & most).total()
            made[n] += max(0, len(words) - n)
    precision = math.prod(
        (hit + 1e-15) / (count + 1e-9) for hit, count in zip(right, made, strict=True)
    ) ** (1 / _LONGEST)
    ratio = (length_made + 1e-15) / (length_wanted + 1e-9)
    return precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def cider(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """CIDEr-D (Vedantam et al., 2015), the mean over captions, in [0, 10].

    Document frequencies come from these references. A single caption has none and scores 0.
    """
    wanted = [
        [[_grams(tokens(one), n + 1) for n in range(_LONGEST)] for one in row] for row in references
    ]
    seen_in: Grams = Counter()
    for row in wanted:
        seen_in.update({gram for one in row for grams in one for gram in grams})
    log_rows = math.log(len(wanted))

    def weigh(grams: Grams) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (log_rows - math.log(max(1, seen_in[gram])))
            for gram, count in grams.items()
        }

    total = 0.0
    for row, text in zip(wanted, predictions, strict=True):
        made = [_grams(tokens(text), n + 1) for n in range(_LONGEST)]
        # COCO's evaluation takes the difference in bigrams for the length penalty, not in words.
        alike = [
            _alike(weigh(made[n]), weigh(one[n]), made[1].total() - one[1].total())
            for one in row
            for n in range(_LONGEST)
        ]
        total += 10 * sum(alike) / len(alike)
    return total / len(wanted)


def _alike(
    made: dict[tuple[str, ...], float], wanted: dict[tuple[str, ...], float], longer: int
) -> float:
    """Cosine of two weighted counts, with a penalty for another length.

    Counts are clipped at the reference's.
    """
    dot = sum(
        min(weight, wanted[gram]) * wanted[gram] for gram, weight in made.items() if gram in wanted
    )
    lengths = _length(made.values()) * _length(wanted.values())
    return dot / lengths * math.exp(-(longer**2) / (2 * _SIGMA**2)) if lengths else 0.0


def _length(weights: Iterable[float]) -> float:
    return math.sqrt(sum(weight**2 for weight in weights))
