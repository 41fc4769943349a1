"""The icons of each side, one split for every task, and text from their names."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Literal

from pidep.gallery.icons.catalog import Icon, catalog
from pidep.gallery.icons.names import words
from pidep.gallery.icons.split import groups, parts
from pidep.tasks.by_hash import in_order

__all__ = [
    "BADGES",
    "SHARES",
    "SPLIT_SEED",
    "Side",
    "at_most",
    "badge_of",
    "bare_name",
    "group_of",
    "icons_of",
    "named",
    "neighbours",
    "outline_pairs",
]

Side = Literal["train", "test"]
SHARES = {"test": 0.12, "validation": 0.1, "train": 0.78}
SPLIT_SEED = 0
"""`pidep.gallery.mini_training` splits in the same way, so pidep-mini saw no test icon in
training.
"""
_PARTS: dict[Side, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation")}

_TWINS = {
    f"material/default/{name}"
    for name in ("checkbox-blank-circle-outline", "circle-outline", "radiobox-blank")
}
"""Training icons that look exactly like a test icon: these circles are also the new moon."""

BADGES = {
    "plus": "a plus sign",
    "minus": "a minus sign",
    "remove": "a small cross",
    "off": "a slash across it",
    "check": "a check mark",
    "alert": "an exclamation mark",
    "lock": "a padlock",
    "edit": "a pencil",
    "clock": "a clock",
}
"""Modifiers that are a mark on the picture, and the words for the mark."""


@functools.cache
def icons_of(side: Side) -> tuple[Icon, ...]:
    """All icons of a side, in an order drawn from their names.

    For tests, icons of the part that nothing was chosen on come first. A drawing that has two names
    stays with the tests.
    """
    divided = parts(catalog(), shares=SHARES, seed=SPLIT_SEED)
    icons = tuple(
        icon
        for part in _PARTS[side]
        for icon in in_order(divided[part], lambda icon: icon.key, seed=0)
    )
    if side == "test":
        return icons
    held = {icon.path.read_bytes() for icon in icons_of("test")}
    return tuple(
        icon for icon in icons if icon.path.read_bytes() not in held and icon.key not in _TWINS
    )


def named(side: Side) -> list[Icon]:
    """Icons named after what they show: Material Design and Font Awesome without brands.

    Font Awesome's regular style repeats the solid style and is left out.
    """
    return [
        icon
        for icon in icons_of(side)
        if icon.family == "material" or (icon.family == "fontawesome" and icon.style == "solid")
    ]


@functools.cache
def _groups() -> dict[str, str]:
    return groups(catalog())


def group_of(icon: Icon) -> str:
    """The base name's group, across families."""
    return _groups()[icon.base]


def badge_of(icon: Icon) -> str | None:
    """The icon's badge, if it has exactly one."""
    found = [word for word in icon.modifiers if word in BADGES]
    return found[0] if len(found) == 1 else None


def bare_name(icon: Icon) -> str:
    """The icon's subject as text.

    A Material name without badge and style, or Font Awesome's label.
    """
    if icon.family != "material":
        return icon.label
    return words(
        "-".join(
            [
                icon.base,
                *(word for word in icon.modifiers if word not in ("outline", badge_of(icon))),
            ]
        )
    )


def outline_pairs(side: Side) -> list[tuple[Icon, Icon]]:
    """Material icons that exist both filled and as an outline."""
    material = {icon.name: icon for icon in icons_of(side) if icon.family == "material"}
    return [
        (icon, material[f"{name}-outline"])
        for name, icon in material.items()
        if f"{name}-outline" in material
    ]


def at_most(icons: Iterable[Icon], count: int, key: Callable[[Icon], Hashable]) -> list[Icon]:
    """The first `count` icons of every key."""
    seen: Counter[Hashable] = Counter()
    kept = []
    for icon in icons:
        seen[key(icon)] += 1
        if seen[key(icon)] <= count:
            kept.append(icon)
    return kept


def neighbours(icons: Iterable[Icon], key: Callable[[Icon], Hashable]) -> list[tuple[Icon, Icon]]:
    """Pairs of icons with neighbouring names and one key, in an order drawn from the names.

    Each icon is in one pair at most. One icon stands for its base name's group, so that two of a
    pair never mean the same.
    """
    of_key: dict[Hashable, dict[str, Icon]] = {}
    for icon in icons:
        of_key.setdefault(key(icon), {}).setdefault(group_of(icon), icon)
    rows = [sorted(some.values(), key=lambda icon: icon.name) for some in of_key.values()]
    pairs = [pair for row in rows for pair in zip(row[::2], row[1::2], strict=False)]
    return in_order(pairs, lambda pair: pair[0].key, seed=3)
