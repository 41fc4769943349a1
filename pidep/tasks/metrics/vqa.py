"""VQA accuracy (Antol et al., 2015; Goyal et al., 2017) with the official normalisation."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["normalised", "vqa_score"]

_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
_SPELLED = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTIONS.split()
    for at, letter in enumerate(word)
    if letter == "'"
}
"""Contractions without one apostrophe to their spelling: `dont` to `don't`, and so on."""
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalised(answer: str) -> str:
    """Lower case, no articles or punctuation, digits for words up to ten, contractions spelled out.

    >>> normalised("The two dogs, I think.")
    '2 dogs i think'
    """
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split()]
    return " ".join(_SPELLED.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Remove marks beside a blank; replace other marks by a blank.

    A comma in a number removes all.
    """
    found = text
    grouped = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        found = found.replace(
            mark, "" if grouped or f"{mark} " in text or f" {mark}" in text else " "
        )
    return _PERIOD.sub("", found)


def vqa_score(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Mean over answers of min(number of people who said it / 3, 1), averaged over leave-one-out.

    As in the official code, texts are normalised only where people disagree.
    """
    return sum(_of_one(row, text) for row, text in zip(references, predictions, strict=True)) / len(
        predictions
    )


def _of_one(people: Sequence[str], answer: str) -> float:
    said, answer = [_tidy(one) for one in people], _tidy(answer)
    if len(set(said)) > 1:
        said, answer = [normalised(one) for one in said], normalised(answer)
    agree = said.count(answer)
    others = [agree - (one == answer) for one in said]  # people left when one is left out
    return sum(min(1.0, count / 3) for count in others) / len(said)


def _tidy(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
