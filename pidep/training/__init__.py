"""Learning one expert: settings, batches, the loop, checkpoints, scoring and evaluation.

`own_expert` holds the only implementation that learns an own expert. `pidep tune`, the lab and
the folds of interpolation all call it. May import `pidep.tasks`, `pidep.backbones`,
`pidep.adapters`, `pidep.experts` and the rooms below them.
"""

from pidep.training.evaluation import evaluate
from pidep.training.loop import Diverged, OnStep, Schedule, TrainReport, fit
from pidep.training.own_expert import TrainOwn, as_expert, own_expert_trainer, train_own_expert
from pidep.training.scorer import Scorer, predict_answers, predict_logits
from pidep.training.settings import TrainingSettings

__all__ = [
    "Diverged",
    "OnStep",
    "Schedule",
    "Scorer",
    "TrainOwn",
    "TrainReport",
    "TrainingSettings",
    "as_expert",
    "evaluate",
    "fit",
    "own_expert_trainer",
    "predict_answers",
    "predict_logits",
    "train_own_expert",
]
