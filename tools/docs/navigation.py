"""The pages of the site in the order of mkdocs.yml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXECUTED = ("Start", "Guides")
"""Sections whose commands and Python blocks `make docs` runs."""


class _Loader(yaml.SafeLoader):
    """YAML with mkdocs' tags, which name Python functions; only their names are kept."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def configuration() -> dict[str, Any]:
    """mkdocs.yml as a mapping."""
    loaded = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)
    assert isinstance(loaded, dict)
    return loaded


def _pages(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for value in (
        entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ()
    ):
        yield from _pages(value)


def all_pages() -> list[Path]:
    """Every page of the navigation."""
    return [DOCS / page for page in _pages(configuration()["nav"])]


def executed_pages() -> list[Path]:
    """The pages of Start and Guides."""
    sections = [section for section in configuration()["nav"] if isinstance(section, dict)]
    return [
        DOCS / page
        for section in sections
        for name, entry in section.items()
        if name in EXECUTED
        for page in _pages(entry)
    ]
