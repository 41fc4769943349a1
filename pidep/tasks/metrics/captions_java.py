"""METEOR and SPICE of captions, by the authors' Java programs in `pycocoevalcap`."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from typing import Any

from pidep.errors import TaskError
from pidep.tasks.metrics.captions import tokens

__all__ = ["meteor", "spice"]


def meteor(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """METEOR 1.5 (Denkowski and Lavie, 2014)."""
    scorer = _scorer("meteor", "Meteor")
    try:
        return float(scorer.compute_score(*_numbered(references, predictions))[0])
    finally:
        # pycocoevalcap leaves its Java process and three pipes open.
        scorer.meteor_p.kill()
        scorer.meteor_p.wait()
        for pipe in (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            pipe.close()


def spice(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """SPICE (Anderson et al., 2016)."""
    try:
        return float(
            _scorer("spice", "Spice").compute_score(*_numbered(references, predictions))[0]
        )
    except TaskError:
        raise
    except Exception as error:  # it fetches Stanford CoreNLP 3.6.0 on first use
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TaskError(
            f"metric 'spice': {reason}; pycocoevalcap needs Java 8 and fetches Stanford CoreNLP "
            "3.6.0 once"
        ) from error


def _scorer(metric: str, name: str) -> Any:
    if shutil.which("java") is None:
        raise TaskError(
            f"metric {metric!r}: needs Java, and no 'java' is on the path; install a Java runtime, "
            "or use bleu4 or cider"
        )
    try:
        module: Any = importlib.import_module(f"pycocoevalcap.{metric}.{metric}")
    except ImportError as error:
        raise TaskError(
            f"metric {metric!r}: {error}; pip install pycocoevalcap, or use bleu4 or cider"
        ) from error
    return getattr(module, name)()


def _numbered(
    references: Sequence[Sequence[str]], predictions: Sequence[str]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Captions as COCO's evaluation passes them on: tokens joined by blanks."""
    wanted = {
        number: [" ".join(tokens(one)) for one in row] for number, row in enumerate(references)
    }
    return wanted, {number: [" ".join(tokens(text))] for number, text in enumerate(predictions)}
