"""Five tasks that need both a picture and words.

Wrong answers are hard, and neither the picture nor the words alone tell them from right ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain, islice

from pidep.gallery.icons.catalog import Icon
from pidep.gallery.icons.names import MODIFIERS
from pidep.gallery.suite.icons import (
    Side,
    at_most,
    badge_of,
    bare_name,
    group_of,
    icons_of,
    named,
    neighbours,
    outline_pairs,
)
from pidep.gallery.suite.row import Sides, SuiteRow
from pidep.gallery.suite.statements import FAMILY_NAMES, of_family, phrase, statement, style_of
from pidep.tasks.by_hash import share

__all__ = ["CHOICES", "among_four", "badge", "caption", "entail", "find", "fits"]

CHOICES = 4
_VARIANTS = 2
"""Most wrong candidates that share the right one's base name."""
_HARD = 2
"""Fewest hard candidates beside the right one."""
_OF_A_BASE = 4
_UNSEEN = {"variant", "alt", "classic"}
"""Modifiers that no picture shows."""


def fits() -> Sides:
    """Task: does the text name the icon? Pairs of icons share modifiers, or their first word.

    Each icon occurs with its own name and with the other's.
    """
    return Sides(_names_that_fit("train", 500), _names_that_fit("test", 150))


def _names_that_fit(side: Side, count: int) -> list[SuiteRow]:
    pairs = neighbours(
        at_most(named(side), 3, group_of), lambda icon: icon.modifiers or icon.label.split()[0]
    )
    both = [one for pair in pairs[:count] for one in (pair, pair[::-1])]
    return [
        SuiteRow(answer, name.label, icon)
        for icon, other in both
        for answer, name in (("yes", icon), ("no", other))
    ]


def caption() -> Sides:
    """Task: one picture, and four names to choose from."""
    return Sides(_captions("train", 2000), _captions("test", 500))


def _captions(side: Side, count: int) -> list[SuiteRow]:
    return [
        SuiteRow(right, image=icon, choices=tuple(one.label for one in four))
        for icon, four, right in among_four(side, count)
    ]


def find() -> Sides:
    """Task: one phrase, and four pictures to choose from."""
    return Sides(_phrases("train", 1000), _phrases("test", 400))


def _phrases(side: Side, count: int) -> list[SuiteRow]:
    return [
        SuiteRow(right, phrase(icon), choices=tuple(four))
        for icon, four, right in among_four(side, count)
    ]


def among_four(side: Side, count: int) -> Iterator[tuple[Icon, list[Icon], int]]:
    """Icons among three others each, with their position; at least two of the others are hard.

    Hard candidates are up to two variants of the base name, then icons that share a word or the
    modifiers.
    """
    icons = [icon for icon in named(side) if not _UNSEEN & set(icon.modifiers)]
    of_base, of_modifiers = (
        _index(icons, lambda icon: [icon.base]),
        _index(icons, lambda icon: [icon.modifiers]),
    )
    of_word = _index(icons, _words)
    number = 0
    for icon in at_most(icons, _OF_A_BASE, group_of):
        variants, same = (
            _from_somewhere(icon, of_base[icon.base]),
            _from_somewhere(icon, of_modifiers[icon.modifiers]),
        )
        alike = chain.from_iterable(
            _from_somewhere(icon, of_word[word]) for word in sorted(_words(icon))
        )
        hard = _unlike(
            icon,
            _unlike(icon, [], variants, _VARIANTS),
            filter(_stranger_to(icon), [*alike, *(same if icon.modifiers else ())]),
        )
        wrong = _unlike(icon, hard, filter(_stranger_to(icon), same))
        if number < count and len(hard) >= _HARD and len(wrong) == CHOICES - 1:
            right = number % CHOICES
            number += 1
            yield icon, [*wrong[:right], icon, *wrong[right:]], right


def _index(
    icons: Iterable[Icon], keys_of: Callable[[Icon], Iterable[Hashable]]
) -> dict[Hashable, list[Icon]]:
    found: dict[Hashable, list[Icon]] = {}
    for icon in icons:
        for key in keys_of(icon):
            found.setdefault(key, []).append(icon)
    return found


def _words(icon: Icon) -> set[str]:
    """Words of the icon's name that are not modifiers."""
    return set(icon.label.split()) - MODIFIERS


def _stranger_to(icon: Icon) -> Callable[[Icon], bool]:
    """Whether another icon is called something else: neither name contains the other."""
    own = set(icon.label.split())
    return lambda other: (
        group_of(other) != group_of(icon)
        and not own <= set(other.label.split())
        and not own >= set(other.label.split())
    )


def _from_somewhere(icon: Icon, others: Sequence[Icon]) -> list[Icon]:
    """All icons, beginning at a place that is drawn from the icon's name."""
    start = int(share(icon.key, 2) * len(others))
    return [*others[start:], *others[:start]]


def _unlike(
    icon: Icon, chosen: list[Icon], others: Iterable[Icon], count: int = CHOICES - 1
) -> list[Icon]:
    """The chosen icons and others up to `count`, no two of one name."""
    found = list(chosen)
    for other in others:
        if len(found) == count:
            break
        if other.label not in {icon.label, *(one.label for one in found)}:
            found.append(other)
    return found


def badge() -> Sides:
    """Task: the icon's mark; the text names the rest of the icon."""
    return Sides(_badges("train", 150), _badges("test", 60))


def _badges(side: Side, count: int) -> list[SuiteRow]:
    return [
        SuiteRow(str(badge_of(icon)), bare_name(icon), icon)
        for icon in at_most(_with_badge(side), count, badge_of)
    ]


def _with_badge(side: Side) -> list[Icon]:
    return [
        icon for icon in icons_of(side) if icon.family == "material" and badge_of(icon) is not None
    ]


def entail() -> Sides:
    """Task: a true and a false statement about every icon.

    False statements change the style, mark, thing or family, a quarter of the rows each. The words
    of a statement are true as often as false, so that they alone tell nothing.
    """
    return Sides(_statements("train", 250), _statements("test", 76))


def _statements(side: Side, count: int) -> list[SuiteRow]:
    kinds = (
        _other_style(side),
        _other_badge(side, count),
        _other_thing(side),
        _other_family(side, count),
    )
    rows = []
    for found in kinds:
        for icon, true, false in islice(found, count):
            rows += [SuiteRow("true", true, icon), SuiteRow("false", false, icon)]
    return rows


Statements = Iterable[tuple[Icon, str, str]]
"""An icon with a true and a false statement."""


def _other_style(side: Side) -> Statements:
    for icon in chain.from_iterable(outline_pairs(side)):
        noun, own = bare_name(icon), style_of(icon)
        other = {"filled": "outlined", "outlined": "filled"}[own]
        yield (
            icon,
            statement(noun, style=own, badge=badge_of(icon)),
            statement(noun, style=other, badge=badge_of(icon)),
        )


def _other_badge(side: Side, count: int) -> Statements:
    """Badges rotate among the icons, where possible so that no icon gets its own."""
    few = at_most(at_most(_with_badge(side), _OF_A_BASE, group_of), 1 + count // 5, badge_of)[
        :count
    ]
    few.sort(key=lambda icon: str(badge_of(icon)))
    step = max(Counter(map(badge_of, few)).values())
    for number, icon in enumerate(few):
        other = badge_of(few[(number + step) % len(few)])
        yield (
            icon,
            statement(bare_name(icon), badge=badge_of(icon)),
            statement(bare_name(icon), badge=other),
        )


def _other_thing(side: Side) -> Statements:
    for pair in neighbours(named(side), lambda icon: (icon.family, icon.modifiers)):
        for icon, other in (pair, pair[::-1]):
            yield icon, phrase(icon), phrase(other)


def _other_family(side: Side, count: int) -> Statements:
    """Equally many icons of both families, none with a modifier."""
    plain = at_most((icon for icon in named(side) if not icon.modifiers), 1, group_of)
    for icon in at_most(plain, count // 2, lambda icon: icon.family):
        (other,) = set(FAMILY_NAMES) - {icon.family}
        yield icon, of_family(icon, icon.family), of_family(icon, other)
