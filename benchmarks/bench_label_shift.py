"""π under label shift, on four sentiment domains: writes `benchmarks/results/label_shift.json`.

    python -m benchmarks.bench_label_shift --cell movie-8-0   # one cell, about two minutes
    python -m benchmarks.bench_label_shift                    # all missing cells, then the claims
    python -m benchmarks.bench_label_shift --summarise        # claims of the cells that are there

Tests are resampled to 20, 50 and 80 % positive, and so are 200 rows without labels, from training
rows that are no shots. Both are drawn several times from every cell, because a draw is cheap. The
constants of `pidep.interpolation.priors` were chosen on training rows that are no shots (decision
028).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.label_shift_lab import DOMAINS, Arrays, Cell, Lab
from benchmarks.record import Claim, write_result
from pidep.interpolation.held_out import HeldOut
from pidep.interpolation.priors import Calibration, calibrate, estimate_priors, prior_bias

__all__ = ["accuracies", "claims", "summary"]

SHARES = (0.2, 0.5, 0.8)
SHOTS = (8, 32)
SEEDS = (0, 1, 2)
DRAWS = 20
UNLABELLED = 200
EVEN = (0.5, 0.5)
MARGIN = 1.0
"""Points that π may be under another method."""

Accuracies = dict[str, float]


def _drawn(labels: Any, positive: float, most: int | None, rng: np.random.Generator) -> Any:
    """Numbers of rows with this share of positive ones: `most`, or as many as there are."""
    sides = [np.flatnonzero(labels == label) for label in (0, 1)]
    shares = (1 - positive, positive)
    room = min(len(side) / share for side, share in zip(sides, shares, strict=True))
    count = int(min(room, most or room))
    ones = round(count * positive)
    counts = (count - ones, ones)
    picked = [rng.choice(side, n, replace=False) for side, n in zip(sides, counts, strict=True)]
    return np.concatenate(picked)


def _probe(cell: Arrays) -> Any:
    """`[N, 2]` of the test rows, as `pidep.tuning.floors.probe` fits it."""
    known = cell["embeddings_train"].astype(np.float64)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(known, cell["labels_train"])
    return model.predict_log_proba(cell["embeddings_test"].astype(np.float64))


def _black_box(held: Any, labels: Any, rows: Any) -> tuple[float, float]:
    """Black-box shift estimation (Lipton et al., 2018) with soft predictions, for two labels."""
    means = [_softmax(held[labels == label]).mean(0)[1] for label in (0, 1)]
    share = (_softmax(rows).mean(0)[1] - means[0]) / max(means[1] - means[0], 1e-3)
    share = float(np.clip(share, 0.01, 0.99))
    return 1 - share, share


def _softmax(logits: Any) -> Any:
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def accuracies(cell: Arrays, positive: float, *, draws: int = DRAWS) -> Accuracies:
    """Method to accuracy in percent at a share of positive rows, mean over the draws.

    `pi_share` is the estimated share of positive rows.
    """
    rng = np.random.default_rng(round(100 * positive))
    tested, rest = (cell[f"labels_{side}"] for side in ("test", "rest"))
    held = torch.from_numpy(cell["pi_held"]), torch.from_numpy(cell["labels_held"])
    calibration = calibrate(HeldOut(*held))
    calibrated, probe = calibration.applied(cell["pi_test"]), _probe(cell)
    found: list[Accuracies] = []
    for _ in range(draws):
        rows = _drawn(tested, positive, None, rng)
        unlabelled = _drawn(rest, positive, UNLABELLED, rng)

        def right(logits: Any, rows: Any = rows) -> float:
            return 100 * float((logits[rows].argmax(1) == tested[rows]).mean())

        def decided(priors: tuple[float, ...], right: Any = right) -> float:
            # The calibrated logits have the bias already, so only the priors are added.
            return right(calibrated + np.array(prior_bias(Calibration(), priors, EVEN)))

        pool = calibration.applied(cell["pi_rest"][unlabelled])
        priors = estimate_priors(pool, EVEN)
        black_box = _black_box(calibration.applied(cell["pi_held"]), cell["labels_held"], pool)
        found.append(
            {
                **{name: right(cell[f"{name}_test"]) for name in ("own", "uniform", "pi")},
                "probe": right(probe),
                "majority": 100 * max(positive, 1 - positive),
                "pi_unlabelled": decided(priors),
                "pi_black_box": decided(black_box),
                "pi_known": decided((1 - positive, positive)),
                "pi_share": 100 * priors[1],
            }
        )
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}


def summary(measured: Mapping[Cell, Arrays]) -> list[dict[str, Any]]:
    """A row for each domain, number of shots and share: the mean over the seeds, and each seed."""
    rows = []
    for shots in SHOTS:
        for domain in DOMAINS:
            cells = {
                cell.seed: arrays
                for cell, arrays in measured.items()
                if (cell.domain, cell.shots) == (domain, shots)
            }
            for positive in SHARES if cells else ():
                seeds = {seed: accuracies(one, positive) for seed, one in sorted(cells.items())}
                names = next(iter(seeds.values()))
                mean = {
                    name: round(statistics.fmean(one[name] for one in seeds.values()), 3)
                    for name in names
                }
                chosen = {
                    seed: bytes(one["chosen"]).decode() for seed, one in sorted(cells.items())
                }
                facts = {"domain": domain, "shots": shots, "positive": positive}
                rows.append({**facts, "chosen": chosen, "mean": mean, "seeds": seeds})
    return rows


def claims(rows: Iterable[Mapping[str, Any]], missing: Iterable[Cell] = ()) -> list[Claim]:
    """The two claims of the mean of every cell; unmet where a cell is missing."""
    rows, missing = list(rows), list(missing)
    lacks = f"; missing: {', '.join(map(str, missing))}" if missing else ""
    found: list[Claim] = []
    for method, others, what in (
        (
            "pi_unlabelled",
            ("own", "uniform", "probe", "majority"),
            f"π with {UNLABELLED} rows without labels, under the best of own expert, uniform "
            "mixture, probe and majority class, worst cell",
        ),
        ("pi", ("own", "uniform"), "π without, under own expert and uniform mixture, worst cell"),
    ):
        gaps = {
            f"{row['domain']}, {row['shots']} shots, {row['positive']:.0%} positive": row["mean"][
                method
            ]
            - max(row["mean"][other] for other in others)
            for row in rows
        }
        worst = min(gaps, key=gaps.__getitem__)
        over = sum(gap < -MARGIN for gap in gaps.values())
        found.append(
            Claim(
                claim=f"label shift: {what}",
                target=f"at most {MARGIN:g} point in any cell",
                measured=f"{gaps[worst]:+.2f} ({worst}); {over} of {len(gaps)} cells beyond{lacks}",
                met=not over and not missing,
            )
        )
    return found


def main() -> int:
    """Measure what is missing and write the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("label-shift"), help="folder of cells")
    parser.add_argument("--cell", help="measure this cell only: domain-shots-seed")
    parser.add_argument("--summarise", action="store_true", help="measure nothing")
    options = parser.parse_args()
    lab = Lab(options.out)
    grid = [Cell(domain, n, seed) for seed in SEEDS for n in SHOTS for domain in DOMAINS]
    if options.cell:
        lab.measure(next(cell for cell in grid if str(cell) == options.cell))
        return 0
    measured: dict[Cell, Arrays] = {}
    for cell in grid:
        arrays = lab.read(cell) if options.summarise else lab.measure(cell)
        if arrays is not None:
            measured[cell] = arrays
    rows = summary(measured)
    missing = [cell for cell in grid if cell not in measured]
    found = claims(rows, missing)
    command = "python -m benchmarks.bench_label_shift"
    print(write_result("label_shift", command=command, raw=rows, claims=found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
