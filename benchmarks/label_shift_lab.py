"""The cells of `bench_label_shift`: logits of every method on test rows and on rows without labels.

A cell is one target, number of shots and seed. Its file is written once and read afterwards, so a
run that was stopped goes on, and every skew and every way to decide is computed from one training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pidep.adapters.mixture import Mixture
from pidep.backbones.load import load_backbone
from pidep.experts.folder import Expert, read_expert
from pidep.files.cache_file import read_cached, write_cached
from pidep.interpolation.candidates import CandidateTrainer
from pidep.interpolation.policies import interpolate
from pidep.tasks.data import Split, content_of, limit
from pidep.training.own_expert import own_expert_trainer, train_own_expert
from pidep.training.scorer import predict_logits
from pidep.tuning.interpolate_experts import interpolation_settings
from pidep.tuning.job import Job, prepare
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import tune

__all__ = ["DOMAINS", "Cell", "Lab"]

DOMAINS = ("amazon", "movie", "nyt", "tweets")
FORMAT = 1
"""Raised whenever the same cell holds something else."""
COMMON: dict[str, Any] = {
    "sites": ("encoder.layer.[45].*",),
    "max_length": 32,
    "test_limit": 1600,
}
UNLABELLED_ROWS = 1200
"""Training rows that are no shots; rows without labels are drawn from them."""

Arrays = Mapping[str, Any]


class Cell(NamedTuple):
    """What is measured once."""

    domain: str
    shots: int
    seed: int

    def __str__(self) -> str:
        return f"{self.domain}-{self.shots}-{self.seed}"


@dataclass(frozen=True)
class Lab:
    """A folder of helpers and cells."""

    out: Path

    @cached_property
    def backbone(self) -> Any:
        """MiniLM."""
        return load_backbone("minilm")

    def helpers(self) -> dict[str, Expert]:
        """The expert of every domain, learned from all of its training rows."""
        for domain in DOMAINS:
            if not (self.out / "pool" / domain).is_dir():
                print(f"helper {domain} …", file=sys.stderr, flush=True)
                config = TuneSettings(
                    task=f"sentiment/{domain}",
                    name=domain,
                    pool=self.out / "pool",
                    top_k=0,
                    **COMMON,
                )
                tune(config, self.out / "runs" / domain, backbone=self.backbone, overwrite=True)
        return {domain: read_expert(self.out / "pool" / domain) for domain in DOMAINS}

    def read(self, cell: Cell) -> Arrays | None:
        """The arrays of a measured cell: `labels_*` [N] and `<method>_*` [N, C] for `held`,
        `test` and `rest`; None where it is not measured.
        """
        return read_cached(self._place(cell), key=self._key(cell))

    def measure(self, cell: Cell) -> Arrays:
        """The arrays of a cell, measured where they are missing."""
        kept = self.read(cell)
        if kept is not None:
            return kept
        print(f"cell {cell} …", file=sys.stderr, flush=True)
        experts = self.helpers()
        config = TuneSettings(
            task=f"sentiment/{cell.domain}",
            name=cell.domain,
            shots=cell.shots,
            seed=cell.seed,
            **COMMON,
        )
        job = prepare(config, self.backbone, self.out / "runs" / str(cell))
        helpers = [expert for name, expert in experts.items() if name != cell.domain]
        with self.backbone.cached_below(job.sites):
            found = dict(_measured(job, helpers))
        write_cached(self._place(cell), found, key=self._key(cell))
        return found

    def _place(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell}.safetensors"

    def _key(self, cell: Cell) -> str:
        return json.dumps([FORMAT, *cell, COMMON, UNLABELLED_ROWS])


def _measured(job: Job, helpers: list[Expert]) -> Iterator[tuple[str, Any]]:
    own, _ = train_own_expert(job.scorer, job.task, job.training, job.train, name=job.name)
    train_own = own_expert_trainer(job.scorer, job.task, job.training, name=job.name)
    settings = interpolation_settings(job, [own, *helpers])
    trainer = CandidateTrainer(job.scorer, tuple(helpers), settings, train_own)
    mixed = interpolate(trainer, own, job.train, None)
    assert mixed.held_out is not None
    yield "labels_held", mixed.held_out.labels.numpy()
    yield "pi_held", mixed.held_out.logits.numpy()
    yield "chosen", np.frombuffer(mixed.decision.chosen.encode(), np.uint8)
    for side, rows in (("test", job.data.test), ("rest", _rest(job))):
        yield f"labels_{side}", np.array(rows.labels)
        mixtures = {"own": Mixture.of([own]), "uniform": mixed.uniform, "pi": mixed.mixture}
        for name, mixture in mixtures.items():
            yield f"{name}_{side}", predict_logits(job.scorer, rows.rows, mixture).numpy()
        with torch.inference_mode():
            found = job.scorer.backbone.encode(rows.rows, max_length=job.scorer.max_length)
        yield f"embeddings_{side}", found.numpy()
    found = job.scorer.backbone.encode(job.train.rows, max_length=job.scorer.max_length)
    yield "embeddings_train", found.numpy()
    yield "labels_train", np.array(job.train.labels)


def _rest(job: Job) -> Split:
    """Training rows beside the shots."""
    shots = {content_of(row) for row in job.train.rows}
    rows = job.data.train
    others = [at for at, row in enumerate(rows.rows) if content_of(row) not in shots]
    return limit(rows.take(others), UNLABELLED_ROWS, seed=job.config.seed)
