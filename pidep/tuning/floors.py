"""What an expert must beat to be of use, measured: a constant answer and a linear probe."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.linear_model import LogisticRegression

from pidep.backbones.backbone import Backbone
from pidep.tasks.data import UNLABELLED, Split, limit
from pidep.training.evaluation import Measurement, measured_labels
from pidep.tuning.job import Job

__all__ = ["floors", "majority", "probe"]

PROBE_ROWS = 1024
"""Training rows of a probe, at most: more cost a pass of the backbone, and change little."""
_INVERSE_PENALTY = 10.0
"""Embeddings have length 1, so the usual 1 leaves a probe of few rows without any slope."""


def floors(job: Job) -> dict[str, Measurement]:
    """The metric of every floor on the test rows; none where rows have no labels of the task."""
    test, metric = job.data.test, job.task.metric
    if not job.task.labels or UNLABELLED in test.labels:
        return {}
    found = {"majority": measured_labels(metric, test.labels, majority(test))}
    backbone = job.scorer.backbone
    # Labels of a zero-shot run are not read, and an encoder-decoder has no embeddings.
    if backbone.embeds and UNLABELLED not in job.train.labels:
        rows = limit(job.train, PROBE_ROWS, seed=job.config.seed)
        made = probe(backbone, rows, test, max_length=job.scorer.max_length)
        found["probe"] = measured_labels(metric, test.labels, made)
    return found


def majority(test: Split) -> list[int]:
    """The test rows' commonest label, once a row. No method knows it: it is the best constant."""
    counts = Counter(test.labels)
    # The smallest of equally common labels, so that the order of the rows does not matter.
    best = min(counts, key=lambda label: (-counts[label], label))
    return [best] * len(test.labels)


def probe(backbone: Backbone, train: Split, test: Split, *, max_length: int) -> list[int]:
    """The answers of a logistic regression on embeddings of the bare backbone."""
    embedded = backbone.encode([*train.rows, *test.rows], max_length=max_length).numpy()
    known = embedded[: len(train.rows)].astype(np.float64)
    if len(set(train.labels)) == 1:
        return [train.labels[0]] * len(test.rows)
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000).fit(known, train.labels)
    made: list[int] = model.predict(embedded[len(train.rows) :].astype(np.float64)).tolist()
    return made
