"""Statements about icons, such as `an outlined account with a plus sign`."""

from __future__ import annotations

from pidep.gallery.icons.catalog import Icon
from pidep.gallery.suite.icons import BADGES, badge_of, bare_name

__all__ = ["FAMILY_NAMES", "of_family", "phrase", "statement", "style_of"]

FAMILY_NAMES = {"material": "Material Design", "fontawesome": "Font Awesome"}


def style_of(icon: Icon) -> str:
    """`outlined`, or `filled` for a Material icon that is not called an outline."""
    return "outlined" if "outline" in icon.modifiers else "filled"


def statement(noun: str, *, style: str = "", badge: str | None = None) -> str:
    """A statement about an icon.

    >>> statement("account", style="outlined", badge="plus")
    'an outlined account with a plus sign'
    """
    start = f"{style} {noun}".strip()
    article = "an" if start[0] in "aeiou" else "a"
    return f"{article} {start}{'' if badge is None else f' with {BADGES[badge]}'}"


def of_family(icon: Icon, family: str) -> str:
    """A statement that an icon belongs to a family, its own or another."""
    return f"a {FAMILY_NAMES[family]} icon of {icon.label}"


def phrase(icon: Icon) -> str:
    """The statement that an icon's name makes."""
    return statement(
        bare_name(icon),
        style="outlined" if "outline" in icon.modifiers else "",
        badge=badge_of(icon),
    )
