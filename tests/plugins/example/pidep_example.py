"""Everything that another package needs to add a task, a backbone and a kind of expert to pidep."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pidep.experts.kind import ExpertKind, Tensors
from pidep.tasks.packaged import PackagedTask

FOLDER = Path(os.environ["PIDEP_EXAMPLE"])
"""The folder of the rows and the backbone. A real package has them inside."""


def write_rows() -> Path:
    """Eighty rows whose last word decides the label."""
    path = FOLDER / "rows.jsonl"
    rows = [
        {"text": f"the film was {word}", "label": label}
        for _ in range(20)
        for word, label in (("good", "yes"), ("bad", "no"), ("great", "yes"), ("awful", "no"))
    ]
    # equal texts are on one side of the split, so each text is different
    for number, row in enumerate(rows):
        row["text"] = f"{'a ' * (number % 5)}{'very ' * (number // 5 % 4)}{row['text']}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TASKS = {
    "example/liked": PackagedTask(
        {"name": "liked", "labels": {"no": "bad", "yes": "good"}, "max_length": 16}, write_rows
    )
}


def load_bert() -> Any:
    """A backbone under a name of this package."""
    from pidep.backbones.encoder import load_encoder

    return load_encoder(FOLDER / "bert", name="example-bert")


class _Ia3(ExpertKind):
    """(IA)³ (Liu et al., 2022): a factor 1 + s on every output of a layer."""

    name = "ia3"
    adapter = "pidep_example_adapter:IA3_ADAPTER"

    def size_of(self, tensors: Tensors) -> int:
        return 1


IA3 = _Ia3()
