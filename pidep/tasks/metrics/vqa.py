"""VQA accuracy (Antol et al., 2015; Goyal et al., 2017), with the normalisation of the official evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["normalised", "vqa_score"]

_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
    how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
    wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_SPELLED = {word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS.split() for at, letter in enumerate(word) if letter == "'"}
"""Contractions with one apostrophe missing to how they are written: `dont` to `don't`, `couldnt've` and `couldn'tve` to `couldn't've`."""
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalised(answer: str) -> str:
    """Lower case; no articles and punctuation; digits for number words up to ten; contractions with their apostrophes.

    >>> normalised("The two dogs, I think.")
    '2 dogs i think'
    """
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split()]
    return " ".join(_SPELLED.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark beside a blank goes, any other becomes one; where a number has a comma in it, all of them go."""
    found = text
    grouped = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        found = found.replace(mark, "" if grouped or f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", found)


def vqa_score(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Mean over answers of min(people who said it / 3, 1), itself the mean over leaving one of the people out.

    As officially, texts are normalised only where the people differ; where all said the same, it is compared as it stands.
    """
    return sum(_of_one(row, text) for row, text in zip(references, predictions, strict=True)) / len(predictions)


def _of_one(people: Sequence[str], answer: str) -> float:
    said, answer = [_tidy(one) for one in people], _tidy(answer)
    if len(set(said)) > 1:
        said, answer = [normalised(one) for one in said], normalised(answer)
    agree = said.count(answer)
    others = [agree - (one == answer) for one in said]  # people left when one is not asked
    return sum(min(1.0, count / 3) for count in others) / len(said)


def _tidy(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
