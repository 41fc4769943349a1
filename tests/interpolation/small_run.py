"""A small interpolation: eight rows, three steps, an own expert and two helpers."""

from pidep.interpolation.candidates import CandidateTrainer
from pidep.interpolation.guard import guard
from pidep.interpolation.policies import interpolate
from pidep.interpolation.settings import InterpolateSettings
from pidep.tasks.data import Split
from pidep.training.loop import Schedule

ROWS = Split(
    [
        "the film was good",
        "awful",
        "a very bad film",
        "great film",
        "good good",
        "the bad film",
        "a great",
        "awful bad",
    ],
    [1, 0, 0, 1] * 2,
)


SCHEDULE = Schedule(
    "test",
    steps=3,
    batch_size=4,
    warmup=0.1,
    weight_decay=0.01,
    eval_every=3,
    patience=2,
    seed=0,
    fingerprint="",
)


def run(parts, policy: str, **more):
    scorer, own, helpers = parts
    settings = InterpolateSettings(
        SCHEDULE, policy=policy, own_learning_rate=1e-2, **{"folds": 2, **more}
    )
    return interpolate(
        CandidateTrainer(scorer, tuple(helpers), settings, lambda _rows, _factor: own),
        own,
        ROWS,
        None,
        similarities=[0.5, 0.25],
    )


def choose(monkeypatch, wanted: str) -> None:
    """Give one choice a loss of zero, and let eight rows suffice."""
    monkeypatch.setattr("pidep.interpolation.candidates.ENOUGH_ROWS", 6)

    def biased(losses, *more, **options):
        return guard(
            losses | {name: loss * 0 for name, loss in losses.items() if name == wanted},
            *more,
            **options,
        )

    monkeypatch.setattr("pidep.interpolation.auto.guard", biased)


TRAINED = {"joint", "own_expert_high_rate", "joint_high_rate"}
