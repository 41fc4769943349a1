"""Names of icons and their parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.gallery.icons.names import MODIFIERS, base_and_modifiers, words


@pytest.mark.parametrize(
    ("name", "base", "modifiers"),
    [
        ("account", "account", ()),
        ("account-outline", "account", ("outline",)),
        ("account-plus-outline", "account", ("plus", "outline")),
        ("archive-lock-open-outline", "archive", ("lock", "open", "outline")),
        ("map-marker-right", "map", ("marker", "right")),
        ("plus-circle", "plus", ("circle",)),
        ("plus", "plus", ()),
        ("numeric-7-box", "numeric", ("7", "box")),
        ("alpha-x", "alpha", ("x",)),
        ("air-horn", "air-horn", ()),
        ("--a--b", "a", ("b",)),
    ],
)
def test_base_and_modifiers(name: str, base: str, modifiers: tuple[str, ...]) -> None:
    assert base_and_modifiers(name) == (base, modifiers)


@given(
    st.lists(
        st.sampled_from(["account", "box", "seven", "plus", "outline", "3", "q", "horn"]),
        min_size=1,
        max_size=5,
    )
)
def test_nothing_is_lost_and_the_base_has_no_more_to_strip(parts: list[str]) -> None:
    base, modifiers = base_and_modifiers("-".join(parts))
    assert [*base.split("-"), *modifiers] == parts
    assert base_and_modifiers(base) == (base, ())


def test_a_variant_of_a_name_has_its_base() -> None:
    for modifier in MODIFIERS:
        assert base_and_modifiers(f"air-horn-{modifier}")[0] == "air-horn"


def test_words() -> None:
    assert words("account-plus_outline") == "account plus outline"
