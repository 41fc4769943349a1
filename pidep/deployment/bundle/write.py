"""`pidep bundle` as a function."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pidep.deployment.bundle.plan import plan_bundle
from pidep.deployment.bundle.template import fill
from pidep.deployment.settings import BundleSettings
from pidep.errors import UsageError
from pidep.files.atomic_write import atomic_folder, check_place

__all__ = ["Bundle", "write_bundle"]

_WHEELS = "wheels"


@dataclass(frozen=True)
class Bundle:
    """What was written."""

    out: str
    model: str
    image: str
    """Name of the image that the files use."""
    files: tuple[str, ...]
    """Relative to `out`, sorted."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "files": list(self.files)}


def write_bundle(entry: str | Path, settings: BundleSettings) -> Bundle:
    """Write the files that run an entry in NVIDIA's container. The same input gives the same bytes.

    Args:
        entry: a model's folder in a repository, such as `model_repo/pidep_bank`.

    Raises:
        UsageError: no complete entry, or a folder `out` that must not be replaced.
        ServingError: the entry's record or configuration is damaged.
    """
    out = settings.out
    check_place(out, "`out`")
    plan = plan_bundle(Path(entry), out, settings)
    texts = {
        path: fill(template.read_text(encoding="utf-8"), plan.values, plan.conditions)
        for path, template in sorted(_templates(files(__package__) / "files").items())
        if "python" in plan.conditions or not path.startswith(f"{_WHEELS}/")
    }
    wheels = _require_replaceable(out, set(texts), overwrite=settings.overwrite)
    with atomic_folder(out) as temporary:
        for path, text in texts.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        for wheel in wheels:
            shutil.copyfile(wheel, temporary / _WHEELS / wheel.name)
    return Bundle(str(out), plan.values["model"], plan.values["image"], tuple(texts))


def _templates(folder: Traversable, prefix: str = "") -> dict[str, Traversable]:
    """Path in the bundle to its template."""
    found: dict[str, Traversable] = {}
    for one in folder.iterdir():
        if one.is_dir():
            found |= _templates(one, f"{prefix}{one.name}/")
        else:
            found[f"{prefix}{one.name}"] = one
    return found


def _require_replaceable(out: Path, names: set[str], *, overwrite: bool) -> list[Path]:
    """Refuse to lose files that are not of a bundle; the wheels that a new bundle keeps."""
    found = [path for path in out.rglob("*") if not path.is_dir()] if out.is_dir() else []
    if found and not overwrite:
        raise UsageError(f"`out`: {out} is not empty; choose another folder, or give `overwrite`")
    wheels = [path for path in found if path.parent == out / _WHEELS and path.suffix == ".whl"]
    if strange := sorted(
        path
        for path in found
        if path.relative_to(out).as_posix() not in names and path not in wheels
    ):
        raise UsageError(
            f"`out`: {strange[0]} is no file of a bundle, and would be lost; move it away"
        )
    return wheels
