"""Every icon of the installed packages with its names, words and categories."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from pidep.errors import TaskError
from pidep.gallery.icons.names import base_and_modifiers, words

__all__ = ["FAMILIES", "LICENCES", "Family", "Icon", "catalog", "categories", "package_folder"]

Family = Literal["material", "fontawesome", "octicons", "simple"]
FAMILIES: tuple[Family, ...] = get_args(Family)
LICENCES: dict[Family, str] = {
    "material": "Material Design Icons by Pictogrammers, in mkdocs-material: "
    "Apache-2.0 (some under their own; Pictogrammers Free License)",
    "fontawesome": "Font Awesome Free 6.6.0 by Fonticons, in fontawesomefree: "
    "icons CC BY 4.0 (attribution), metadata and code MIT",
    "octicons": "Octicons by GitHub, in mkdocs-material: MIT",
    "simple": "Simple Icons, in mkdocs-material: CC0-1.0; the brands' marks remain theirs",
}
"""Source and licence of each family. No icon is in pidep's own files."""
_SIZE = re.compile(r"-(?:12|16|24|48|96)$")


@dataclass(frozen=True, order=True)
class Icon:
    """One icon."""

    family: Family
    style: str
    """`solid`, `regular` or `brands` for Font Awesome; `default` for other families."""
    name: str
    """The family's own name of the icon, without a size."""
    path: Path = field(compare=False)
    base: str = field(compare=False, default="")
    """The name without its modifiers."""
    modifiers: tuple[str, ...] = field(compare=False, default=())
    label: str = field(compare=False, default="")
    """The name as text, or Font Awesome's own label."""
    terms: tuple[str, ...] = field(compare=False, default=())
    """Other words for the icon: Font Awesome's search terms and former names."""
    categories: tuple[str, ...] = field(compare=False, default=())
    """Font Awesome's categories, by name."""
    kin: tuple[str, ...] = field(compare=False, default=())
    """Base names of the icon's other names. The icon is grouped with icons of those, too."""

    @property
    def key(self) -> str:
        """`family/style/name`, unique."""
        return f"{self.family}/{self.style}/{self.name}"


def package_folder(package: str, inside: str, requirement: str) -> Path:
    spec = importlib.util.find_spec(package)
    folder = (
        Path(spec.origin).parent / inside if spec is not None and spec.origin is not None else None
    )
    if folder is None or not folder.is_dir():
        raise TaskError(
            f"icons: package {requirement} is not installed; run: pip install --no-deps "
            f"{requirement}"
        )
    return folder


def _from_files(family: Family, folder: Path) -> list[Icon]:
    """Icons of a folder of SVG files; the largest of several sizes."""
    chosen = {
        _SIZE.sub("", path.stem) if family == "octicons" else path.stem: path
        for path in sorted(folder.glob("*.svg"))
    }
    icons = []
    for name, path in sorted(chosen.items()):
        base, modifiers = base_and_modifiers(name) if family != "simple" else (name, ())
        icons.append(Icon(family, "default", name, path, base, modifiers, words(name)))
    return icons


def _metadata() -> tuple[Path, dict[str, Any]]:
    folder = package_folder("fontawesomefree", "static/fontawesomefree", "fontawesomefree")
    return folder, json.loads((folder / "metadata" / "icons.json").read_text(encoding="utf-8"))


@functools.cache
def categories() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Font Awesome's categories: name to label and icon names."""
    folder, _ = _metadata()
    table = yaml.safe_load((folder / "metadata" / "categories.yml").read_text(encoding="utf-8"))
    return {
        name: (str(entry["label"]), tuple(map(str, entry["icons"])))
        for name, entry in table.items()
    }


def _fontawesome() -> list[Icon]:
    folder, table = _metadata()
    of_icon: dict[str, list[str]] = {}
    for category, (_, names) in categories().items():
        for name in names:
            of_icon.setdefault(name, []).append(category)
    icons = []
    for name, entry in table.items():
        base, modifiers = base_and_modifiers(name)
        former = tuple(map(str, entry.get("aliases", {}).get("names", ())))
        terms = tuple(
            dict.fromkeys(
                [*map(words, former), *(str(term).lower() for term in entry["search"]["terms"])]
            )
        )
        kin = tuple(sorted({base_and_modifiers(other)[0] for other in former} - {base}))
        for style in entry["styles"]:
            path = folder / "svgs" / style / f"{name}.svg"
            if path.is_file():
                found = tuple(of_icon.get(name, ()))
                icons.append(
                    Icon(
                        "fontawesome",
                        style,
                        name,
                        path,
                        base,
                        modifiers,
                        entry["label"].lower(),
                        terms,
                        found,
                        kin,
                    )
                )
    return icons


@functools.cache
def catalog(*families: Family) -> tuple[Icon, ...]:
    """Icons of the given families, or of all, in a fixed order.

    Raises:
        TaskError: a family is unknown or its package is not installed.
    """
    icons: list[Icon] = []
    for family in families or FAMILIES:
        if family not in FAMILIES:
            raise TaskError(f"icons: family {family!r}: expected one of {', '.join(FAMILIES)}")
        if family == "fontawesome":
            icons += _fontawesome()
        else:
            icons += _from_files(
                family, package_folder("material", "templates/.icons", "mkdocs-material") / family
            )
    return tuple(sorted(icons))
