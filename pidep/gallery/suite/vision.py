"""Five tasks that show a picture and no text."""

from __future__ import annotations

import hashlib

import numpy as np

from pidep.gallery.icons.catalog import Icon
from pidep.gallery.icons.digits import digits as all_digits
from pidep.gallery.icons.draw import draw
from pidep.gallery.suite.icons import Side, at_most, icons_of, outline_pairs
from pidep.gallery.suite.pictures import Turned
from pidep.gallery.suite.row import Sides, SuiteRow
from pidep.tasks.by_hash import share

__all__ = ["CATEGORIES", "category", "digits", "family", "filled", "turned"]

CATEGORIES = (
    "arrows",
    "communication",
    "food-beverage",
    "household",
    "medical-health",
    "transportation",
    "users-people",
)
"""The largest of Font Awesome's categories that share few icons. Shared icons are left out."""
_OF_A_BASE = 6
TURNS = ("upright", "right", "down", "left")
"""Direction of a turned icon's top, by quarter turns."""
# Mean difference of shades (0 to 255). Below it, an icon looks the same when turned.
_DIFFERENT = 20.0


def digits() -> Sides:
    """Task: scikit-learn's handwritten digits. Equal images fall on the same side."""
    sides = Sides([], [])
    for digit in all_digits():
        held = share(hashlib.sha256(digit.pixels.tobytes()).hexdigest(), 0) < 0.3
        (sides.test if held else sides.train).append(SuiteRow(str(digit.label), image=digit))
    return sides


def family() -> Sides:
    """Task: the icon's family, one of four. Octicons has the fewest icons."""
    return Sides(_of_families("train", 450), _of_families("test", 140))


def _of_families(side: Side, count: int) -> list[SuiteRow]:
    icons = (icon for icon in icons_of(side) if icon.style != "brands")
    return [
        SuiteRow(icon.family, image=icon)
        for icon in at_most(icons, count, lambda icon: icon.family)
    ]


def filled() -> Sides:
    """Task: filled or outlined, in pairs of one name."""
    return Sides(_of_pairs("train", 1000), _of_pairs("test", 300))


def _of_pairs(side: Side, count: int) -> list[SuiteRow]:
    return [
        SuiteRow(name, image=icon)
        for pair in outline_pairs(side)[:count]
        for name, icon in zip(("filled", "outline"), pair, strict=True)
    ]


def category() -> Sides:
    """Task: Font Awesome's category. Other families take the category of their base name."""
    return Sides(_of_categories("train"), _of_categories("test"))


def _of_categories(side: Side) -> list[SuiteRow]:
    icons = [
        icon
        for icon in icons_of(side)
        if icon.family in ("material", "octicons", "fontawesome") and icon.style != "brands"
    ]
    of_base: dict[str, set[str]] = {}
    for icon in icons:
        if icon.family == "fontawesome":
            of_base.setdefault(icon.base, set()).update(set(icon.categories) & set(CATEGORIES))
    rows = []
    for icon in at_most(icons, _OF_A_BASE, lambda icon: (icon.family, icon.base)):
        found = (
            set(icon.categories) & set(CATEGORIES)
            if icon.family == "fontawesome"
            else of_base.get(icon.base, set())
        )
        # a single letter marks a brand: language-r
        if len(found) == 1 and all(len(word) > 1 for word in icon.modifiers):
            rows.append(SuiteRow(next(iter(found)), image=icon))
    return rows


def turned() -> Sides:
    """Task: quarter turns of an icon (Gidaris et al., 2018); symmetric icons are left out."""
    return Sides(_of_turns("train", 1000), _of_turns("test", 400))


def _of_turns(side: Side, count: int) -> list[SuiteRow]:
    """One icon for each base name, so that a shape occurs once."""
    rows: list[SuiteRow] = []
    for icon in at_most(
        (icon for icon in icons_of(side) if icon.family == "material"), 1, lambda icon: icon.base
    ):
        if len(rows) < count and _has_a_top(icon):
            quarters = len(rows) % len(TURNS)
            rows.append(SuiteRow(TURNS[quarters], image=Turned(icon, quarters)))
    return rows


def _has_a_top(icon: Icon) -> bool:
    pixels = draw(icon)[..., 0].astype(np.float64)
    return (
        min(float(np.abs(pixels - np.rot90(pixels, quarters)).mean()) for quarters in (1, 2, 3))
        >= _DIFFERENT
    )
