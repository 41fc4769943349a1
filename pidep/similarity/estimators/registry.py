"""Every estimator by name."""

from __future__ import annotations

from pidep.similarity.estimators.h_score import H_SCORE
from pidep.similarity.estimators.label_texts import LABEL_TEXTS
from pidep.similarity.estimators.leep import LEEP
from pidep.similarity.estimators.logme import LOGME
from pidep.similarity.estimators.mixture_gradient import mixture_gradient
from pidep.similarity.estimators.nce import NCE
from pidep.similarity.estimators.no_labels import NO_LABELS
from pidep.similarity.estimators.own_fisher import OWN_FISHER
from pidep.similarity.estimators.point_fisher import PRIOR_ROWS, point_fisher
from pidep.similarity.estimators.point_gradient import gradient_cosine, taylor
from pidep.similarity.estimators.texts import TEXTS
from pidep.similarity.estimators.trial import TRIAL

__all__ = ["ESTIMATORS"]

_POINTS = ("random", "mean")

ESTIMATORS = {
    one.name: one
    for one in (
        OWN_FISHER,
        TRIAL,
        NO_LABELS,
        TEXTS,
        LABEL_TEXTS,
        LEEP,
        NCE,
        LOGME,
        H_SCORE,
        *(point_fisher(point) for point in _POINTS),
        *(point_fisher(point, prior_rows=PRIOR_ROWS) for point in _POINTS),
        *(point_fisher(point, prior_rows=PRIOR_ROWS, centred=True) for point in _POINTS),
        *(gradient_cosine(point) for point in _POINTS),
        *(taylor("mean", order=order) for order in (1, 2)),
        mixture_gradient(at_backbone=True),
        mixture_gradient(at_backbone=False),
    )
}
