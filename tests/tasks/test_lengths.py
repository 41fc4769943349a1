"""How many texts are cut, and which value fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pidep.inputs.row import Row
from pidep.inputs.tokenize import Tokenize
from pidep.tasks.lengths import lengths_of, measure_lengths, same_tokens


@pytest.mark.parametrize(
    ("counts", "max_length", "most", "message"),
    [
        ([4, 6], 8, 32, "no text is cut: the longest of 2 has 6 tokens, and max_length is 8"),
        ([4, 8], 8, 32, "no text is cut"),
        ([4, 9], 8, 32, "1 of 2 texts (50 %) are cut at 8 tokens; max_length 9 cuts none"),
        (
            [*range(1, 101)],
            18,
            512,
            "82 of 100 texts (82 %) are cut at 18 tokens; max_length 96 cuts 5 %, 100 cuts none",
        ),
        ([4, 900], 8, 32, "max_length 32 cuts the fewest that the backbone allows"),
        ([4, 900], 32, 32, "1 of 2 texts (50 %) are cut at 32 tokens, the limit of the backbone"),
    ],
)
def test_the_sentence(counts: list[int], max_length: int, most: int, message: str) -> None:
    found = lengths_of(np.array(counts), max_length=max_length, most=most)
    assert message in str(found)
    assert found.cut == sum(count > max_length for count in counts)
    above = [count for count in counts if count > found.fitting]
    assert not above or found.fitting == most


def test_lengths_are_those_of_the_uncut_tokens(tiny: Any) -> None:
    tokenize = Tokenize(tiny.tokenizer_json)
    texts = ["", "good", "a very good film " * 9, "zebra"]
    whole = [int(tokenize([text], max_length=10_000)[1].sum()) for text in texts]
    assert tokenize.lengths(texts).tolist() == whole
    assert tokenize.lengths(texts * 700).tolist() == whole * 700, "more than one part"
    rows = [Row("", image=b"x"), Row("a film", candidates=("good " * 50, "bad")), "good"]
    found = measure_lengths(rows, tokenize, max_length=3, most=32)
    assert found is not None
    assert (found.texts, found.longest, found.cut) == (2, 4, 1), "candidates are not cut"
    assert measure_lengths(rows[:1], tokenize, max_length=3, most=32) is None


def test_same_tokens(tiny: Any) -> None:
    tokenize = Tokenize(tiny.tokenizer_json)
    assert same_tokens({"a": "good", "b": "bad", "c": "GOOD"}, tokenize, most=32) == ("a", "c")
    assert same_tokens({"a": "good", "b": "bad"}, tokenize, most=32) is None
    long = {"a": "a " * 40 + "good", "b": "a " * 40 + "bad"}
    assert same_tokens(long, tokenize, most=32) == ("a", "b"), "behind the limit"
