"""Boxes as location tokens: transformers' bins in both directions, and errors that name the row."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.errors import TaskError
from pidep.inputs.locations import box_to_text, text_to_box, text_to_boxes

SIZES = [(640, 480), (33, 1000), (768, 768), (1919, 1081)]


def theirs():  # type: ignore[no-untyped-def]
    """transformers' own post-processor without a tokenizer, which its two formulas do not need."""
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    found = object.__new__(Florence2PostProcessor)
    found.quantize_bins = (1000, 1000)
    return found


@settings(deadline=None)
@given(
    st.sampled_from(SIZES),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
    st.lists(st.integers(0, 1000), min_size=2, max_size=2).map(sorted),  # at the edges of the bins
)
def test_the_bins_are_those_of_transformers(
    size: tuple[int, int], across: list[float], down: list[int]
) -> None:
    import torch

    width, height = size
    box = (across[0] * width, down[0] * height / 1000, across[1] * width, down[1] * height / 1000)
    bins = theirs().quantize(torch.tensor([box]), size)[0]
    text = "".join(f"<loc_{place}>" for place in bins.tolist())
    assert box_to_text(box, size=size) == text
    for there, here, side in zip(text_to_box(text, size=size), box, (*size, *size), strict=True):
        assert abs(there - here) <= side / 1000


def test_the_middle_of_a_bin_as_transformers_gives_it() -> None:
    import torch

    for size in SIZES:
        for bins in ([0, 0, 999, 999], [12, 345, 678, 901]):
            middle = text_to_box("".join(f"<loc_{place}>" for place in bins), size=size)
            assert [int(place) for place in middle] == theirs().dequantize(
                torch.tensor([bins]), size
            )[0].tolist()


def test_encoding_a_decoded_box_is_the_identity() -> None:
    for place in range(1000):
        text = f"<loc_{place}><loc_{place // 2}><loc_999><loc_{place}>"
        assert box_to_text(text_to_box(text, size=(640, 480)), size=(640, 480)) == text


def test_labelled_boxes() -> None:
    text = (
        "car<loc_0><loc_0><loc_500><loc_500>dog<loc_250><loc_250><loc_999><loc_999>"
        "dog<loc_0><loc_0><loc_999><loc_999>"
    )
    found = text_to_boxes(text)
    assert [label for label, _ in found] == ["car", "dog", "dog"]
    assert found[0][1] == (0.0005, 0.0005, 0.5005, 0.5005)
    both = text_to_boxes("dog<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>")
    assert [label for label, _ in both] == ["dog", "dog"]
    assert (
        text_to_boxes("dog <loc_1> <loc_2> <loc_3> <loc_4> <loc_5> <loc_6> <loc_7> <loc_8>") == both
    )
    assert text_to_boxes("no boxes at all") == []


@pytest.mark.parametrize(
    ("box", "size", "message"),
    [
        ((1, 2, 3), (10, 10), r"row 3: expected \(left, top, right, bottom\), found \(1, 2, 3\)"),
        (("a", 0, 1, 1), (1, 1), r"row 3: expected \(left, top, right, bottom\)"),
        (
            (0.5, 0, 0.1, 1),
            (1, 1),
            r"expected left ≤ right and top ≤ bottom, found .*; boxes are not \(x, y, width, "
            r"height\)",
        ),
        ((0, 0, float("nan"), 1), (1, 1), "expected left ≤ right"),
        (
            (10, 20, 30, 40),
            (1, 1),
            r"lies outside its image of 1 × 1; give the image's size with a box in pixels",
        ),
        (
            (10, 20, 700, 40),
            (640, 480),
            r"lies outside its image of 640 × 480; it belongs to another image",
        ),
        ((0, 0, 1, 1), (0, 5), "image size 0 × 5: expected numbers above 0"),
    ],
)
def test_text_without_a_box_is_refused(
    box: tuple[float, ...], size: tuple[float, float], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        box_to_text(box, size=size, where="row 3")


def test_a_pixel_too_far_is_the_last_bin() -> None:
    assert box_to_text((-1, 0, 641, 480), size=(640, 480)) == "<loc_0><loc_0><loc_999><loc_999>"


def test_an_answer_without_a_box_says_where() -> None:
    with pytest.raises(TaskError) as raised:
        text_to_box("a cat", where="test, row 2")
    assert str(raised.value) == (
        "test, row 2: expected four locations such as <loc_0><loc_0><loc_999><loc_999>, found "
        "'a cat'"
    )
    with pytest.raises(
        TaskError, match="test, row 4: expected locations from 0 to 999, found <loc_1000>"
    ):
        text_to_box("<loc_0><loc_0><loc_1000><loc_9>", where="test, row 4")
    with pytest.raises(
        TaskError,
        match="expected four locations a box, found 3 in a row: 'cat<loc_1><loc_2><loc_3>'",
    ):
        text_to_boxes("cat<loc_1><loc_2><loc_3>")
