"""Tasks, backbones and expert kinds by name: pidep's own, and those of other packages.

Another package adds one through an entry point in its `pyproject.toml`:

    [project.entry-points."pidep.tasks"]      # name = "module:object", a mapping of name to
        PackagedTask
    [project.entry-points."pidep.backbones"]  # name = "module:function" that loads the backbone
    [project.entry-points."pidep.kinds"]      # name = "module:object", an ExpertKind

pidep's own are listed in `BUILT_IN`, so that they are found in a checkout that is not installed.
Names are known without importing anything; an object is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pidep.errors import UsageError

__all__ = ["BUILT_IN", "Group", "load", "names"]

Group = Literal["pidep.tasks", "pidep.backbones", "pidep.kinds"]

BUILT_IN: Mapping[Group, Mapping[str, str]] = {
    "pidep.tasks": {"gallery": "pidep.gallery.tasks:TASKS"},
    "pidep.backbones": {
        "minilm": "pidep.gallery.backbones:load_minilm",
        "pidep-mini": "pidep.gallery.backbones:load_mini",
    },
    "pidep.kinds": {
        name: f"pidep.experts.kinds.{name}:KIND"
        for name in ("adapter", "bitfit", "lora", "prefix", "prompt")
    },
}
"""Group to names to `module:object`. These come first and cannot be replaced by an entry point."""


def names(group: Group) -> tuple[str, ...]:
    """Every name of a group: pidep's own first, then those of other packages, sorted."""
    # Another package cannot replace a built-in name: a run must mean the same on every machine.
    return (*BUILT_IN[group], *sorted(set(_others(group)) - set(BUILT_IN[group])))


@cache
def load(group: Group, name: str) -> Any:
    """The object behind a name.

    Raises:
        UsageError: another package's entry point does not import.
        KeyError: no such name.
    """
    if name in BUILT_IN[group]:
        module, _, attribute = BUILT_IN[group][name].partition(":")
        return getattr(import_module(module), attribute)
    found = _others(group)[name]
    try:
        return found.load()
    except Exception as error:  # code of another package may fail in any way
        package = found.dist.name if found.dist is not None else found.module
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"entry point {name!r} of {group} ({found.value}, package {package}): does not load "
            f"({reason}); mend or uninstall that package"
        ) from error


@cache
def _others(group: Group) -> dict[str, EntryPoint]:
    # `entry_points` reads the metadata of every installed package.
    return {found.name: found for found in entry_points(group=group)}
