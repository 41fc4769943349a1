"""A merged model: one expert folded into its graph. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pidep.errors import PidepError, ServingError
from pidep.runtime.bank import Answer, softmax
from pidep.runtime.reader import Question, Reader
from pidep.runtime.session import open_session

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
        self.reader = Reader(version_folder, record.get("vision"), threads=threads)
        self.session = open_session(version_folder / "model.onnx", graph_digest, threads=threads)

    def run(self, questions: Sequence[Question]) -> list[Answer | PidepError]:
        """Answer each row; a damaged image is an error of that row alone."""
        seen = self.reader.visual(questions)
        answers: list[Answer | PidepError] = [visual for visual in seen if isinstance(visual, PidepError)]
        rows = [(asked, visual) for asked, visual in zip(questions, seen, strict=True) if not isinstance(visual, PidepError)]
        if not rows:
            return answers
        feeds = self.reader.feeds([asked for asked, _ in rows], [visual for _, visual in rows], max_length=self.max_length)
        (logits,) = self.session.run(["logits"], feeds)
        good = (Answer(self.labels, scores, self.digest) for scores in softmax(logits))
        return [visual if isinstance(visual, PidepError) else next(good) for visual in seen]
