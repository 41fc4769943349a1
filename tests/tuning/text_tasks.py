"""Small tasks in the words that the tiny encoder-decoders know, with and without images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
ANIMALS = ("cat", "dog")


def rows_of(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Texts that name a colour and an animal, and questions about them."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        colour, animal = list(COLOURS)[number % 2], ANIMALS[int(rng.integers(2))]
        filler = " ".join(rng.choice(["the", "is", "of", "big", "small", "a"], size=4))
        rows.append({"text": f"{filler} {colour} {animal}", "colour": colour, "animal": animal})
    return rows


def write_task(folder: Path, name: str, *, count: int = 80, seed: int = 0, **fields: Any) -> Path:
    """A task file over its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows_of(count, seed=seed))
    )
    path = folder / f"{name}.yaml"
    path.write_text(
        json.dumps({"name": name, "data": {"path": f"{name}.jsonl"}, "max_length": 12, **fields})
    )
    return path


def labelled(folder: Path, name: str = "colour", *, seed: int = 0, **fields: Any) -> Path:
    """The colour: one of two labels."""
    return write_task(
        folder, name, seed=seed, label="colour", labels={"red": "red", "blue": "blue"}, **fields
    )


def answered(folder: Path, name: str = "both", *, seed: int = 0, **fields: Any) -> Path:
    """Colour and animal in words."""
    return write_task(
        folder, name, seed=seed, **{"target": "{colour} {animal}", "metric": "accuracy", **fields}
    )


def choosing(folder: Path, name: str = "which") -> Path:
    """The colour again, as one of each row's own candidates."""
    path = write_task(folder, name, label="colour", candidates="choices")
    rows = [{**row, "choices": list(COLOURS)} for row in rows_of(80)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pictured(
    folder: Path, *, count: int = 24, target: str | None = "{colour}", **fields: Any
) -> Path:
    """Images of one colour, and a question. The target may be a box instead."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour = list(COLOURS)[number % 2]
        noise = rng.integers(-20, 20, (12, 16, 3))
        Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
        box = [0, 0, 8, 6] if colour == "red" else [8, 6, 8, 6]
        rows.append({"text": "what colour", "image": f"{number}.png", "colour": colour, "box": box})
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "pictures.yaml"
    values: dict[str, Any] = {
        "name": "pictures",
        "image": "image",
        "target": target,
        "data": {"path": "pictures.jsonl"},
        "max_length": 8,
    }
    values = {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps({**values, **fields}))
    return path
