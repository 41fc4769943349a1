"""The side and the order of a row depend on its text and the seed alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pidep.tasks.by_hash import held_out, in_order, share


def test_a_share_is_known_and_even() -> None:
    assert share("account", 0) == 0.5204733718531038
    found = [share(str(number), 0) for number in range(2000)]
    assert all(0.0 <= value < 1.0 for value in found)
    assert 0.48 < sum(found) / len(found) < 0.52
    assert share("account", 1) != share("account", 0)


@given(st.text(alphabet="abc \t", min_size=1), st.integers(0, 3))
def test_capitals_and_spaces_change_no_side(text: str, seed: int) -> None:
    assert held_out(text, fraction=0.5, seed=seed) == held_out(
        f"  {text.upper()}\n", fraction=0.5, seed=seed
    )


@given(st.sets(st.text(max_size=3), max_size=12), st.sets(st.text(max_size=3), max_size=12))
def test_more_items_move_none_past_another(some: set[str], more: set[str]) -> None:
    few, many = in_order(some, str, seed=0), in_order(some | more, str, seed=0)
    assert [item for item in many if item in some] == few
