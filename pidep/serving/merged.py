"""A merged model: one expert folded into its graph. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pidep.backbones.tokenize import Tokenize
from pidep.errors import ServingError
from pidep.serving.bank import Answer, open_session, softmax

__all__ = ["Merged"]


class Merged:
    """Runs batches of one expert."""

    def __init__(self, version_folder: Path, *, threads: int | None = None) -> None:
        path = version_folder / "merged.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            self.labels = tuple(record["labels"])
            self.digest = str(record["digest"])
            self.max_length = int(record["max_length"])
            graph_digest = str(record["graph_digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServingError(f"{path}: malformed ({error}); export the model again") from error
        self.tokenize = Tokenize((version_folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.session = open_session(version_folder / "model.onnx", graph_digest, threads=threads)

    def run(self, texts: Sequence[str]) -> list[Answer]:
        """Answer each row."""
        ids, mask = self.tokenize(texts, max_length=self.max_length)
        (logits,) = self.session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        return [Answer(self.labels, scores, self.digest) for scores in softmax(logits)]
