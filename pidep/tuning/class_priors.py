"""Class priors of a run: where they come from, and the bias that its expert keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pidep.adapters.mixture import Mixture
from pidep.errors import TaskError, UsageError, did_you_mean
from pidep.experts.folder import Expert
from pidep.interpolation.held_out import HeldOut
from pidep.interpolation.priors import (
    Calibration,
    calibrate,
    estimate_priors,
    label_shares,
    prior_bias,
)
from pidep.tasks.data import Split, parse_rows
from pidep.tasks.data_source import Data
from pidep.tasks.sources import sources_of
from pidep.tasks.task import Task
from pidep.training.scorer import Scorer, predict_logits
from pidep.tuning.settings import TuneSettings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ClassPriors", "check_request", "decided", "given_priors", "unlabelled_rows"]


@dataclass(frozen=True)
class ClassPriors:
    """The shares of the labels that a run's answers are decided for."""

    source: Literal["unlabelled", "given", "training"]
    """Estimated from rows without labels, given by the user, or those of the training rows."""
    shares: dict[str, float]
    """By label."""
    rows: int = 0
    """Rows without labels behind an estimate."""
    temperature: float = 1.0
    held_out_rows: int = 0
    """Held-out rows behind the temperature; 0 where nothing was held out."""

    def to_json(self) -> dict[str, Any]:
        """For the run folder."""
        return asdict(self)


def check_request(config: TuneSettings) -> None:
    """Refuse priors that are asked for twice, and those of a run without labels.

    Raises:
        UsageError: the settings do not fit together.
    """
    if config.unlabelled is not None and config.class_prior:
        raise UsageError(
            "`unlabelled` and `class_prior`: both say how common the labels are; give one"
        )
    asked = "`unlabelled`" if config.unlabelled is not None else "`class_prior`"
    if config.policy == "zero-shot" and (config.unlabelled is not None or config.class_prior):
        raise UsageError(
            f"policy zero-shot: has no labelled rows, so {asked} has nothing to correct; run "
            "without it, or choose another policy"
        )


def given_priors(asked: Sequence[str], task: Task) -> dict[str, float] | None:
    """Label to share, as `class_prior` gives them; labels that are not named share the rest.

    Raises:
        UsageError: a label that the task lacks, a share outside (0, 1), or shares of another sum.
    """
    if not asked:
        return None
    found: dict[str, float] = {}
    for one in asked:
        name, _, number = one.rpartition("=")
        if name not in task.labels or name in found:
            raise UsageError(
                f"`class_prior` {one!r}: expected label=share, each label once; task "
                f"{task.name!r} has the labels {', '.join(task.labels) or 'none'}"
                f"{did_you_mean(name, list(task.labels))}"
            )
        found[name] = _share(one, number)
    others = [name for name in task.labels if name not in found]
    rest = 1 - sum(found.values())
    if not (rest > 1e-6 if others else abs(rest) <= 1e-3):
        expected = "less than 1, because other labels share the rest" if others else "1"
        raise UsageError(
            f"`class_prior`: the shares have the sum {1 - rest:g}, expected {expected}"
        )
    found |= dict.fromkeys(others, rest / max(1, len(others)))
    return {name: found[name] / (1 if others else 1 - rest) for name in task.labels}


def _share(one: str, number: str) -> float:
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UsageError(f"`class_prior` {one!r}: expected a share between 0 and 1, such as 0.72")
    return share


def unlabelled_rows(task: Task, file: Path) -> Split:
    """The rows of a file, read as the task's own files are. No label is read.

    Raises:
        TaskError, ImageError: the file cannot be read, or a row lacks what the template needs.
    """
    if not task.labels:
        raise TaskError(
            f"task {task.name!r}: its rows have no labels in common, so `unlabelled` tells nothing "
            "about how common they are; run without it"
        )
    own = task.data
    data = Data(path=file, encoding=own.encoding, delimiter=own.delimiter, quoting=own.quoting)
    (source,) = sources_of(task.model_copy(update={"data": data}))
    return parse_rows(task, source.rows, source.name, labelled=False)


def decided(
    expert: Expert,
    mixture: Mixture,
    scorer: Scorer,
    train: Split,
    held_out: HeldOut | None,
    *,
    given: Mapping[str, float] | None = None,
    unlabelled: Split | None = None,
) -> tuple[Expert, ClassPriors]:
    """The expert with a bias for the class priors, and what they are; as it was without any.

    Args:
        expert: the one that is served.
        mixture: the same, as it answers in PyTorch.
        scorer: of the task, without a bias.
        train: the rows that the expert was trained on.
        held_out: what the expert, or its like, says about rows that did not train it.
        given: label to share, where the user knows them.
        unlabelled: rows of the target; their labels are not used.
    """
    learned = label_shares(train.labels, len(expert.labels)) if expert.labels else ()
    if given is None and unlabelled is None:
        return expert, ClassPriors("training", dict(zip(expert.labels, learned, strict=True)))
    calibration = Calibration() if held_out is None else calibrate(held_out)
    if unlabelled is None:
        assert given is not None
        shares = tuple(given[name] for name in expert.labels)
    else:
        logits = predict_logits(scorer, unlabelled.rows, mixture)
        shares = estimate_priors(calibration.applied(logits), learned)
    found = replace(
        expert,
        # A divided scale divides every logit, wherever the expert answers.
        logit_scale=expert.logit_scale / calibration.temperature,
        label_bias=prior_bias(calibration, shares, learned),
    )
    return found, ClassPriors(
        "given" if unlabelled is None else "unlabelled",
        {name: round(share, 4) for name, share in zip(expert.labels, shares, strict=True)},
        0 if unlabelled is None else len(unlabelled.rows),
        round(calibration.temperature, 4),
        calibration.rows,
    )
