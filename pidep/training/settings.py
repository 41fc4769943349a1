"""How one expert is trained, for any task and any rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pidep.adapters.kinds import adapter_kind
from pidep.training.loop import Schedule

__all__ = ["FEW_ROWS", "TrainingSettings", "few_shot_factor"]

FEW_ROWS = 128
"""Training rows below which the learning rate is halved."""


@dataclass(frozen=True)
class TrainingSettings:
    """Kind, sites, learning rate and steps of an own expert."""

    kind: str
    sites: tuple[str, ...]
    rank: int
    """LoRA rank, adapter width, or number of virtual tokens."""
    scaling: float
    """s in ΔW = s·BA of a LoRA; 1 for other kinds."""
    steps: int
    batch_size: int
    warmup: float
    """Share of the steps in which the learning rate rises."""
    weight_decay: float
    eval_every: int
    """Steps between validations."""
    patience: int
    """Validations without improvement before training stops."""
    learning_rate: float | None = None
    """Peak learning rate before the factor; None for the kind's own."""
    learning_rate_factor: float = 1.0
    """Multiplies the peak learning rate; the kind's own rate can so be scaled for every kind."""
    rank_stabilized: bool = False
    """Whether `scaling` follows rsLoRA."""
    seed: int = 0
    fingerprint: str = ""
    """Identifies task, data and settings in checkpoints; see `Schedule.fingerprint`."""

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        usual = self.learning_rate
        if usual is None:
            usual = adapter_kind(self.kind).learning_rate
        return usual * self.learning_rate_factor

    def at_rate(self, factor: float) -> TrainingSettings:
        """These settings at `factor` times the peak learning rate."""
        return replace(self, learning_rate_factor=self.learning_rate_factor * factor)

    def schedule(self, phase: str, *, steps: int | None = None) -> Schedule:
        """The schedule of a phase that trains with these settings."""
        count = self.steps if steps is None else steps
        return Schedule(
            phase=phase,
            steps=count,
            batch_size=self.batch_size,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            eval_every=min(self.eval_every, count) if count else 1,
            patience=self.patience,
            seed=self.seed,
            fingerprint=f"{phase}:{self.fingerprint}",
        )


def few_shot_factor(num_rows: int) -> float:
    """The factor on a kind's learning rate for a few-shot run.

    Few rows are soon known by heart. At 16 rows 1/2 was the best of 1/2, 1, 2 and 4 for adapters
    and prefixes; at 256 rows it left both of them undertrained.
    """
    return 0.5 if num_rows < FEW_ROWS else 1.0
