"""The catalogue, the drawings, and the split: no variant of an icon is on both sides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.errors import TaskError
from pidep.gallery.icons import catalog as catalog_module
from pidep.gallery.icons.catalog import FAMILIES, LICENCES, Icon, catalog, categories
from pidep.gallery.icons.digits import digits
from pidep.gallery.icons.draw import draw, drawn_file
from pidep.gallery.icons.names import base_and_modifiers
from pidep.gallery.icons.split import groups, parts

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def made(name: str, *, family: Any = "material", kin: tuple[str, ...] = ()) -> Icon:
    base, modifiers = base_and_modifiers(name)
    return Icon(family, "default", name, Path(f"{name}.svg"), base, modifiers, name, kin=kin)


def test_the_catalogue_is_whole_and_its_keys_are_unique() -> None:
    icons = catalog()
    count = Counter(icon.family for icon in icons)
    assert set(count) == set(FAMILIES) == set(LICENCES)
    assert count["material"] > 7000
    assert count["fontawesome"] > 1800
    assert count["octicons"] > 300
    assert len({icon.key for icon in icons}) == len(icons)
    assert list(icons) == sorted(icons)
    assert all(icon.label and icon.base for icon in icons)


def test_font_awesome_brings_labels_terms_and_categories() -> None:
    icon = next(icon for icon in catalog("fontawesome") if icon.name == "anchor")
    assert (icon.label, icon.style) == ("anchor", "solid")
    assert "ship" in icon.terms
    assert "maritime" in icon.categories
    assert len(categories()) == 68
    assert categories()["maritime"][0] == "Maritime"


def test_octicons_are_listed_once_whatever_their_sizes() -> None:
    names = [icon.name for icon in catalog("octicons")]
    assert len(names) == len(set(names))
    assert "alert" in names


@pytest.mark.parametrize("seed", [0, 1])
def test_no_variant_is_on_both_sides_in_any_family(seed: int) -> None:
    sides = parts(catalog(), shares=SHARES, seed=seed)
    assert sum(map(len, sides.values())) == len(catalog())
    seen: dict[str, str] = {}
    for part, icons in sides.items():
        for icon in icons:
            for base in (icon.base, *icon.kin):
                assert seen.setdefault(base, part) == part, (
                    f"{icon.key}: {base} is in {seen[base]} and {part}"
                )
    family_of: dict[str, set[str]] = {}
    for icon in catalog():
        family_of.setdefault(icon.base, set()).add(icon.family)
    assert (
        sum(len(families) > 1 for families in family_of.values()) > 300
    )  # otherwise this test would compare nothing


def test_the_variants_of_account_stay_together() -> None:
    sides = parts(catalog("material"), shares=SHARES, seed=0)
    holding = [
        part
        for part, icons in sides.items()
        if any(icon.name.split("-")[0] == "account" and icon.base == "account" for icon in icons)
    ]
    assert len(holding) == 1
    variants = {icon.name for icon in sides[holding[0]]}
    assert {
        "account",
        "account-outline",
        "account-plus",
        "account-plus-outline",
        "account-off",
    } <= variants


def test_a_split_depends_on_the_seed_and_not_on_what_is_asked_for() -> None:
    whole = parts(catalog(), shares=SHARES, seed=0)
    only = parts(catalog("material"), shares=SHARES, seed=0)
    assert {icon.key for icon in only["test"]} <= {icon.key for icon in whole["test"]}
    assert {icon.key for icon in parts(catalog(), shares=SHARES, seed=1)["test"]} != {
        icon.key for icon in whole["test"]
    }
    for part, share in SHARES.items():
        assert abs(len(whole[part]) / len(catalog()) - share) < 0.05


def test_names_of_one_icon_join_their_groups() -> None:
    of_base = groups(
        [
            made("house", kin=("home",)),
            made("home-outline"),
            made("cottage", kin=("house",)),
            made("anchor"),
        ]
    )
    assert of_base["house"] == of_base["home"] == of_base["cottage"] != of_base["anchor"]


def test_shares_that_do_not_add_up() -> None:
    with pytest.raises(TaskError, match="add up to 1"):
        parts([], shares={"train": 0.8}, seed=0)


def test_an_unknown_family() -> None:
    with pytest.raises(TaskError, match="family 'emoji': expected one of material, "):
        catalog("emoji")  # type: ignore[arg-type]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TaskError,
        match="no-such-package is not installed; run: pip install --no-deps no-such-package",
    ):
        catalog_module.package_folder("no_such_package", "icons", "no-such-package")


@pytest.mark.parametrize(
    "key", ["material/default/anchor", "fontawesome/solid/wifi", "octicons/default/alert"]
)
def test_an_icon_is_drawn_in_the_middle_and_kept(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path))
    icon = next(icon for icon in catalog() if icon.key == key)
    pixels = draw(icon, size=64)
    assert pixels.shape == (64, 64, 3)
    rows, columns = np.nonzero(pixels[..., 0] < 128)
    assert rows.min() >= 3
    assert rows.max() <= 60
    assert abs((columns.min() + columns.max()) / 2 - 31.5) < 6
    assert max(np.ptp(rows), np.ptp(columns)) > 32
    [kept] = tmp_path.rglob("*.png")
    assert kept == drawn_file(icon, size=64)
    stamp = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(draw(icon, size=64), pixels)
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(b"")  # as a power cut may leave it
    np.testing.assert_array_equal(draw(icon, size=64), pixels)


def test_a_damaged_svg_and_a_tiny_size_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path))
    (tmp_path / "x.svg").write_text("<svg")
    icon = Icon("material", "default", "x", tmp_path / "x.svg")
    with pytest.raises(TaskError, match=r"x\.svg: cannot be drawn"):
        draw(icon)
    with pytest.raises(TaskError, match="size 8: expected at least 16"):
        draw(icon, size=8)


def test_digits_are_dark_on_light() -> None:
    found = digits()
    assert len(found) == 1797
    assert Counter(digit.label for digit in found)[3] == 183
    assert found[0].pixels.shape == (8, 8)
    assert found[0].pixels[0, 0] == 255
    assert min(int(digit.pixels.min()) for digit in found) == 0
