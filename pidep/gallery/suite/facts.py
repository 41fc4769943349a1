"""Facts about the sixteen packaged tasks. Importing this fetches and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["DRAWN", "FACTS", "Facts", "Modality"]

Modality = Literal["vision", "language", "vision-language"]

_SENTENCES = "sentences and ratings by Hutto and Gilbert (2014), in vaderSentiment: MIT"
_DIGITS = "UCI's Optical Recognition of Handwritten Digits, in scikit-learn: CC BY 4.0"
_MATERIAL = "Material Design Icons by Pictogrammers: Apache-2.0"
_AWESOME = "Font Awesome Free 6.6.0: CC BY 4.0"
_ICONS = f"{_MATERIAL}; {_AWESOME}"
_OCTICONS = "Octicons by GitHub: MIT"


@dataclass(frozen=True)
class Facts:
    """One packaged task: facts for people, and the fields of its task file."""

    modality: Modality
    asks: str
    train: int
    test: int
    balance: str
    """Whether all labels have equally many rows."""
    licence: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return str(self.fields.get("metric", "accuracy"))

    @property
    def terms(self) -> str:
        """Names of the licences."""
        return ", ".join(
            dict.fromkeys(
                part.rpartition(": ")[2].split(",")[0] for part in self.licence.split("; ")
            )
        )

    @property
    def choices(self) -> str:
        """The labels, or the kind of candidates that rows bring."""
        if "labels" in self.fields:
            return ", ".join(self.fields["labels"])
        return f"four {self.fields['candidates_are']}s"


def _sentiment(asks: str, train: int, test: int, name: str) -> Facts:
    fields = {
        "name": name,
        "input": "{text}",
        "label": "label",
        "labels": {
            "negative": "it was terrible",
            "positive": "it was great",
        },  # the verbaliser of LM-BFF (Gao et al., 2021)
        "test_fraction": 0.3,
    }
    return Facts("language", asks, train, test, "natural", _SENTENCES, fields)


def _fields(
    name: str, *, max_length: int, labels: dict[str, str], text: bool = True, image: bool = False
) -> dict[str, Any]:
    found = {
        "name": name,
        "input": "{text}" if text else "",
        "label": "label",
        "labels": labels,
        "max_length": max_length,
    }
    return {**found, "image": "image"} if image else found


_VISION = {
    "vision/digits": Facts(
        "vision",
        "which digit is written here?",
        1246,
        551,
        "natural, nearly even",
        _DIGITS,
        _fields(
            "digits",
            text=False,
            image=True,
            max_length=16,
            labels={
                str(number): f"the digit {word}"
                for number, word in enumerate(
                    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
                )
            },
        ),
    ),
    "vision/family": Facts(
        "vision",
        "which family is this icon of?",
        1636,
        502,
        "even, but for Octicons, which has fewest",
        f"{_ICONS}; {_OCTICONS}; Simple Icons: CC0-1.0, the marks remain the brands'",
        _fields(
            "family",
            text=False,
            image=True,
            max_length=16,
            labels={
                "material": "a Material Design icon",
                "fontawesome": "a solid Font Awesome icon",
                "octicons": "a thin GitHub icon",
                "simple": "the logo of a brand",
            },
        ),
    ),
    "vision/filled": Facts(
        "vision",
        "is this icon filled or an outline?",
        2000,
        600,
        "even: pairs of one name",
        _MATERIAL,
        _fields(
            "filled",
            text=False,
            image=True,
            max_length=16,
            labels={"filled": "a filled icon", "outline": "an outlined icon"},
        ),
    ),
    "vision/category": Facts(
        "vision",
        "which category is this icon of?",
        536,
        218,
        "natural",
        f"{_ICONS}, its categories MIT; {_OCTICONS}",
        _fields(
            "category",
            text=False,
            image=True,
            max_length=16,
            labels={
                "arrows": "arrows",
                "communication": "communication",
                "food-beverage": "food and drink",
                "household": "household",
                "medical-health": "medicine and health",
                "transportation": "transportation",
                "users-people": "people",
            },
        ),
    ),
    "vision/turned": Facts(
        "vision",
        "where does the top of this icon point?",
        1000,
        400,
        "even",
        _MATERIAL,
        _fields(
            "turned",
            text=False,
            image=True,
            max_length=16,
            labels={
                "upright": "an upright icon",
                "right": "an icon turned to the right",
                "down": "an icon turned upside down",
                "left": "an icon turned to the left",
            },
        ),
    ),
}
_LANGUAGE = {
    "sentiment/amazon": _sentiment(
        "is this sentence of a product review positive?", 2099, 886, "amazon"
    ),
    "sentiment/movie": _sentiment(
        "is this sentence of a film review positive?", 6994, 3078, "movie"
    ),
    "sentiment/nyt": _sentiment("is this sentence of an editorial positive?", 2114, 856, "nyt"),
    "sentiment/tweets": _sentiment("is this tweet positive?", 2381, 1051, "tweets"),
    "language/domain": Facts(
        "language",
        "which kind of text is this sentence from?",
        2000,
        600,
        "even",
        _SENTENCES,
        _fields(
            "domain",
            max_length=48,
            labels={
                "amazon": "a product review",
                "movie": "a film review",
                "nyt": "a newspaper editorial",
                "tweets": "a tweet",
            },
        ),
    ),
    "language/strength": Facts(
        "language",
        "how strong is the feeling in this sentence?",
        1920,
        600,
        "even, in every domain and for either sign",
        _SENTENCES,
        _fields(
            "strength",
            max_length=48,
            labels={"mild": "a mild feeling", "strong": "a strong feeling"},
        ),
    ),
}
_VISION_LANGUAGE = {
    "vl/fits": Facts(
        "vision-language",
        "does this name fit this icon?",
        2000,
        600,
        "even: every icon with both answers",
        _ICONS,
        _fields(
            "fits",
            image=True,
            max_length=24,
            labels={"yes": "the name fits the picture", "no": "the name is of another picture"},
        ),
    ),
    "vl/caption": Facts(
        "vision-language",
        "what is this icon called?",
        2000,
        500,
        "even places",
        _ICONS,
        {
            "name": "caption",
            "input": "",
            "image": "image",
            "label": "label",
            "candidates": "choices",
            "candidates_are": "text",
            "max_length": 24,
        },
    ),
    "vl/badge": Facts(
        "vision-language",
        "which mark does this icon carry?",
        1077,
        282,
        "natural, at most 150 and 60 of each",
        _MATERIAL,
        _fields(
            "badge",
            image=True,
            max_length=24,
            labels={
                "plus": "with a plus sign",
                "minus": "with a minus sign",
                "remove": "with a small cross",
                "off": "with a slash across it",
                "check": "with a check mark",
                "alert": "with an exclamation mark",
                "lock": "with a padlock",
                "edit": "with a pencil",
                "clock": "with a clock",
            },
        ),
    ),
    "vl/entail": Facts(
        "vision-language",
        "is this statement about this icon true?",
        2000,
        608,
        "even: every icon with both answers",
        _ICONS,
        _fields(
            "entail",
            image=True,
            max_length=24,
            labels={"true": "it is true of the picture", "false": "it is false of the picture"},
        ),
    ),
    "vl/find": Facts(
        "vision-language",
        "which of four icons is meant?",
        1000,
        400,
        "even places",
        _ICONS,
        {
            "name": "find",
            "input": "{text}",
            "label": "label",
            "candidates": "choices",
            "candidates_are": "image",
            "max_length": 24,
        },
    ),
}
FACTS: dict[str, Facts] = {**_VISION, **_LANGUAGE, **_VISION_LANGUAGE}
"""Facts by task name. A test checks the sizes with the packages of `constraints.txt`."""
DRAWN = tuple(name for name in FACTS if not name.startswith("sentiment/"))
"""Tasks whose rows this package chooses. The other tasks take sentences as they come."""
