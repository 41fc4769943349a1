"""Parts of an icon's name: `account-plus-outline` is `account` with modifiers `plus`, `outline`."""

from __future__ import annotations

__all__ = ["MODIFIERS", "base_and_modifiers", "words"]

# Last words w for which the Material family has at least ten pairs X and X-w; the words that other
# families use for them (Font Awesome's slash and xmark, Octicons' fill); and closed sets:
# directions, sizes, shapes around an icon.
_STYLES = (
    "outline filled fill variant bold thick thin light full empty half dotted dashed solid "
    "regular classic alt small medium large"
)
_BADGES = (
    "plus minus remove off on alert check cancel close xmark slash question exclamation "
    "help lock unlock edit pencil pen cog settings gear wrench clock search magnify marker "
    "sync refresh star heart play pause stop eye key percent music image account user "
    "person network wireless bluetooth text export import auto badge add delete info bolt "
    "flash shimmer sparkle sparkles"
)
_SHAPES = (
    "box circle square rectangle rhombus hexagon octagon triangle multiple group open closed opened"
)
_DIRECTIONS = (
    "up down left right top bottom upper lower north south east west start end vertical "
    "horizontal forward backward ascending descending"
)
_DEGREES = "fast slow high low max min maximum minimum all none"

MODIFIERS = frozenset(" ".join((_STYLES, _BADGES, _SHAPES, _DIRECTIONS, _DEGREES)).split())
"""Last words that make a variant. Numbers and single letters do so as well."""


def words(name: str) -> str:
    """`account-plus` as text: `account plus`."""
    return " ".join(name.replace("_", "-").split("-"))


def _modifies(word: str) -> bool:
    return word in MODIFIERS or len(word) == 1 or word.isdigit()


def base_and_modifiers(name: str) -> tuple[str, tuple[str, ...]]:
    """The base name and the modifiers after it; at least one word is the base.

    >>> base_and_modifiers("account-plus-outline")
    ('account', ('plus', 'outline'))
    >>> base_and_modifiers("plus-circle")
    ('plus', ('circle',))
    """
    parts = [part for part in name.split("-") if part]
    count = len(parts)
    while count > 1 and _modifies(parts[count - 1]):
        count -= 1
    return "-".join(parts[:count]), tuple(parts[count:])
