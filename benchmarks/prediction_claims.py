"""What `bench_prediction` claims about its figures."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.record import Claim
from benchmarks.transfer_statistics import Figure

__all__ = ["Figures", "claims_of", "goals_of", "mixture_claims", "packaged_claims", "tuned_claims"]

Figures = Mapping[str, Figure]
"""Statistic to figure, of one estimator."""
CLAIMED = {"h-score or trial": ("fisher", "trial"), "trial": ("fisher",)}
"""Estimators with claims on the packaged tasks, and those that they are compared with."""


def claims_of(figures: Mapping[str, Figures]) -> list[Claim]:
    """Claims about the paper's estimator: transfers into mixtures of the fewest shots."""
    fisher, text, batch, random = (
        figures[name] for name in ("fisher", "text", "fisher (batch_squared)", "random")
    )
    gain = {
        "random": random["regret"] - fisher["regret"],
        "text": text["regret"] - fisher["regret"],
        "batch": fisher["spearman"] - batch["spearman"],
    }
    rank = fisher["spearman"]
    return [
        _claim(
            "Spearman of predicted similarity with measured transfer",
            "> 0, 95 % interval above 0",
            str(rank),
            rank.interval[0] > 0,
        ),
        _claim(
            "regret of the top-1 choice, accuracy: Fisher below a random choice",
            f"< {random['regret'].value:.4f}",
            f"{fisher['regret'].value:.4f}; better by {gain['random']}",
            gain["random"].value > 1e-9,
        ),
        _claim(
            "regret of the top-1 choice, accuracy: Fisher at most that of text-embedding "
            "similarity",
            f"<= {text['regret'].value:.4f}",
            f"{fisher['regret'].value:.4f}; better by {gain['text']}",
            gain["text"].value >= 0,
        ),
        _claim(
            "Spearman: per-sample Fisher at least the authors' batch-squared Fisher",
            f">= {batch['spearman'].value:.3f}",
            f"{rank.value:.3f}; better by {gain['batch']}",
            gain["batch"].value >= 0,
        ),
    ]


def goals_of(figures: Mapping[str, Figures], *, ceiling: float, shots: int) -> list[Claim]:
    """Claims about the best estimator, whichever it is. It is chosen on these very figures."""
    best = max(figures, key=lambda name: figures[name]["spearman"].value)
    rank, regret = figures[best]["spearman"], figures[best]["regret"]
    needed = min(0.55, 0.8 * ceiling)
    above = {name: rank - figures[name]["spearman"] for name in ("fisher", "trial", "text")}
    return [
        _claim(
            f"Spearman of the best of {len(figures) - 1} estimators at {shots} shots",
            f">= {needed:.3f} (0.55, or 0.8 of the noise ceiling {ceiling:.3f})",
            f"{best}: {rank}",
            rank.value >= needed,
        ),
        _claim(
            f"regret of the top-1 choice of that estimator at {shots} shots, accuracy",
            "<= 0.008",
            f"{best}: {regret}",
            regret.value <= 0.008,
        ),
        *(
            _claim(
                f"Spearman of that estimator above {name}'s at {shots} shots",
                "> 0, 95 % interval above 0",
                f"{best}: better by {more}",
                more.interval[0] > 0,
            )
            for name, more in above.items()
        ),
    ]


def mixture_claims(mixed: Mapping[str, Figure], *, shots: int) -> list[Claim]:
    """Claims about the three helpers that each estimator of `pidep tune` chooses."""
    above = {name: one - mixed["random"] for name, one in mixed.items() if name != "random"}
    return [
        _claim(
            f"accuracy of the uniform mixture with three helpers by {name} at {shots} shots, above "
            "three at random",
            ">= 0.01",
            f"{mixed[name].value:.4f} against {mixed['random'].value:.4f}; better by {more}",
            more.value >= 0.01,
        )
        for name, more in above.items()
    ]


def packaged_claims(figures: Mapping[str, Figures], *, ceiling: float, shots: int) -> list[Claim]:
    """Claims about the H-score, which the sub-tasks spoke for, and about trial, the default."""
    needed = min(0.55, 0.8 * ceiling)
    found = []
    for name, others in CLAIMED.items():
        own = figures[name]
        found += [
            _claim(
                f"packaged tasks: Spearman of {name} at {shots} shots",
                f">= {needed:.3f} (0.55, or 0.8 of the noise ceiling {ceiling:.3f})",
                str(own["spearman"]),
                own["spearman"].value >= needed,
            ),
            _claim(
                f"packaged tasks: regret of the top-1 choice of {name} at {shots} shots, accuracy",
                "<= 0.008",
                f"{own['regret']}, of a random choice {figures['random']['regret'].value:.3f}",
                own["regret"].value <= 0.008,
            ),
        ]
        for other in others:
            more = own["spearman"] - figures[other]["spearman"]
            found.append(
                _claim(
                    f"packaged tasks: Spearman of {name} above {other}'s at {shots} shots",
                    "> 0, 95 % interval above 0",
                    f"better by {more}",
                    more.interval[0] > 0,
                )
            )
    return found


def tuned_claims(tuned: Mapping[str, Figure], *, shots: int) -> list[Claim]:
    """Claims about π with three helpers by trial on the packaged tasks."""
    more, least = tuned["trial"] - tuned["random"], min(tuned["trial"].by_target)
    return [
        _claim(
            f"packaged tasks: π with three helpers by trial at {shots} shots, above random ones",
            ">= 0.01",
            f"{tuned['trial'].value:.4f} against {tuned['random'].value:.4f}; better by {more}",
            more.value >= 0.01,
        ),
        _claim(
            f"packaged tasks: π with three helpers by trial at {shots} shots, below the own expert",
            "<= 0.005 on every task",
            f"{max(0.0, -least):.4f}",
            least >= -0.005,
        ),
    ]


def _claim(claim: str, target: str, measured: str, met: bool) -> Claim:
    return {"claim": claim, "target": target, "measured": measured, "met": bool(met)}
