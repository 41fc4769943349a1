"""The tasks, experts and evaluations of `bench_prediction`, each kept in a folder."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.transfer_statistics import Matrix
from pidep.adapters.mixture import Mixture, find_sites
from pidep.backbones.encoder import Encoder
from pidep.backbones.load import load_backbone
from pidep.errors import PidepError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.files.atomic_write import write_json
from pidep.files.cache_file import read_cached, write_cached
from pidep.interpolation.candidates import CandidateTrainer
from pidep.interpolation.policies import interpolate
from pidep.interpolation.settings import InterpolateSettings
from pidep.similarity.embedding_cache import cached_fisher
from pidep.similarity.estimators import ESTIMATORS
from pidep.similarity.fisher import FisherKind
from pidep.similarity.measures import Embedding
from pidep.tasks.data import Split, TaskData, data_digest, few_shot, hold_out, limit, load_data
from pidep.tasks.task import Task, load_task
from pidep.training.own_expert import own_expert_trainer, train_own_expert
from pidep.training.scorer import Scorer, predict_logits, scorer_for_task
from pidep.training.settings import TrainingSettings

__all__ = ["Draw", "Lab", "Settings", "SubTask"]

FORMAT = 2
"""Raised whenever the same settings measure something else."""


class Draw(NamedTuple):
    """Shots of a target."""

    shots: int
    """Rows of each label."""
    seed: int


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement. Together with the code, they decide the figures."""

    domains: tuple[str, ...] = (
        "sentiment/amazon",
        "sentiment/movie",
        "sentiment/nyt",
        "sentiment/tweets",
    )
    clusters: int = 2
    backbone: str = "minilm"
    sites: tuple[str, ...] = ("encoder.layer.[45].*",)
    rank: int = 8
    max_length: int = 32
    train_rows: int = 2100
    """Of a domain, at most."""
    test_rows: int = 400
    """Of a sub-task, at most."""
    shots: tuple[int, ...] = (8, 16, 64)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    mixture_shots: tuple[int, ...] = (8, 16)
    """Those of `shots` at which mixtures with three helpers are measured."""
    full_steps: int = 120
    few_steps: int = 40
    full_rate: float = 1e-3
    few_rate: float = 5e-4
    validation_rows: int = 150
    fisher_rows: int = 256
    """Most training rows of a full-data embedding. A few-shot embedding takes all its rows."""
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    points: tuple[str, ...] = ("random", "mean")
    """Base points of these estimators."""
    zero_shot: bool = True
    """Whether helpers are measured alone, too."""
    variants: bool = True
    """Whether other Fishers, and texts of all rows, are asked at the fewest shots."""
    choosing: tuple[str, ...] = ("fisher", "trial", "h-score")
    """Estimators whose three helpers are mixed."""
    tuned_shots: tuple[int, ...] = ()
    """Those of `shots` at which π is learned with three helpers."""
    tuned_seeds: tuple[int, ...] = (0,)
    tuned_choosing: tuple[str, ...] = ("h-score",)
    """Estimators whose three helpers π is learned with."""


@dataclass(frozen=True)
class SubTask:
    """A part of a domain, on one topic."""

    name: str
    task: Task
    scorer: Scorer
    data: TaskData
    words: tuple[str, ...]
    """Words that distinguish the part from the rest of its domain."""
    mean_embedding: Matrix
    """Mean embedding `[D]` of its training texts under the bare backbone."""


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def sub_tasks(settings: Settings, backbone: Encoder, out: Path) -> list[SubTask]:
    """Every domain cut into parts by topic. A sentence is in one part and on one side."""
    found: list[SubTask] = []
    seen: set[str] = set()
    for domain in settings.domains:
        task = load_task(domain)
        data = load_data(task)
        train = limit(_unseen(data.train, seen), settings.train_rows, seed=0)
        # Tests take 0.3 of a packaged domain: one share per cluster, and half as much again for
        # uneven clusters.
        test = limit(
            _unseen(data.test, seen), settings.test_rows * settings.clusters * 5 // 4, seed=0
        )
        seen |= {_normalised(text) for text in [*data.train.rows, *data.test.rows]}
        found += _clusters(settings, backbone, task, train, test, out)
    return found


def _unseen(split: Split, seen: set[str]) -> Split:
    return split.take(row for row, text in enumerate(split.rows) if _normalised(text) not in seen)


def _clusters(
    settings: Settings, backbone: Encoder, task: Task, train: Split, test: Split, out: Path
) -> Iterator[SubTask]:
    texts = [*train.rows, *test.rows]
    key = json.dumps(
        [
            FORMAT,
            backbone.digest,
            settings.max_length,
            settings.clusters,
            data_digest(train),
            data_digest(test),
        ]
    )
    path = out / "texts" / f"{task.name}.safetensors"
    kept = read_cached(path, key=key)
    if kept is None:
        embeddings = backbone.encode(texts, max_length=settings.max_length).numpy()
        kept = {"embeddings": embeddings, "cluster": _k_means(embeddings, settings.clusters)}
        write_cached(path, kept, key=key)
    cluster, count = kept["cluster"], len(train.rows)
    scorer = scorer_for_task(
        backbone, task, max_length=min(settings.max_length, backbone.max_positions)
    )
    for number in range(settings.clusters):
        mine = np.flatnonzero(cluster == number)
        rows = train.take(mine[mine < count].tolist())
        held = limit(test.take((mine[mine >= count] - count).tolist()), settings.test_rows, seed=0)
        words = _words(
            [texts[row] for row in mine], [texts[row] for row in np.flatnonzero(cluster != number)]
        )
        mean = kept["embeddings"][mine[mine < count]].mean(0, dtype=np.float64)
        yield SubTask(f"{task.name}-{number}", task, scorer, TaskData(rows, held), words, mean)


def _k_means(embeddings: npt.NDArray[np.float32], clusters: int) -> npt.NDArray[np.int64]:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        labels = KMeans(clusters, random_state=0, n_init=10).fit_predict(embeddings)
    return np.asarray(labels, np.int64)


def _words(mine: list[str], rest: list[str], *, count: int = 8) -> tuple[str, ...]:
    """Words whose share of sentences exceeds most their share in the rest."""
    shares = []
    for texts in (mine, rest):
        counter = Counter(
            word for text in texts for word in set(re.findall(r"[a-z]{3,}", text.lower()))
        )
        shares.append({word: number / max(1, len(texts)) for word, number in counter.items()})
    return tuple(
        sorted(shares[0], key=lambda word: (shares[1].get(word, 0.0) - shares[0][word], word))[
            :count
        ]
    )


def _sha(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Lab:
    """Everything measured, computed once."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.backbone = load_backbone(settings.backbone)
        self.sites = tuple(find_sites(self.backbone.model, settings.sites))

    @cached_property
    def tasks(self) -> list[SubTask]:
        """The sub-tasks, in the order of every matrix."""
        return sub_tasks(self.settings, self.backbone, self.out)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """CPU seconds by phase, and a line on standard error."""
        print(f"{name} …", file=sys.stderr, flush=True)
        started = time.process_time()
        try:
            yield
        finally:
            # Kept, so that a run in several parts knows what all of them took.
            spent, path = self.total_seconds(), self.out / "cpu_seconds.json"
            seconds = round(time.process_time() - started, 1)
            write_json(path, {**spent, name: round(spent.get(name, 0.0) + seconds, 1)})
            print(f"{name}: {seconds} s of CPU", file=sys.stderr, flush=True)

    def total_seconds(self) -> dict[str, float]:
        """CPU seconds by phase of all runs in this folder."""
        try:
            return dict(json.loads((self.out / "cpu_seconds.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def rows(self, task: SubTask, draw: Draw | None) -> tuple[Split, Split | None]:
        """Training and held-out rows: the shots of a draw, or all rows for None."""
        train = task.data.train
        if draw is not None:
            # A small task gives all rows of its rarest label.
            most = min(Counter(train.labels).values())
            return few_shot(train, shots=min(draw.shots, most), seed=draw.seed), None
        return hold_out(
            train, fraction=min(0.1, self.settings.validation_rows / len(train.rows)), seed=0
        )

    def training(self, draw: Draw | None) -> TrainingSettings:
        """Full data, or few shots."""
        few, settings = draw is not None, self.settings
        steps = settings.few_steps if few else settings.full_steps
        return TrainingSettings(
            kind="lora",
            sites=self.sites,
            rank=settings.rank,
            scaling=16 / settings.rank,
            learning_rate=settings.few_rate if few else settings.full_rate,
            steps=steps,
            batch_size=16 if few else 32,
            warmup=0.1,
            weight_decay=0.01,
            eval_every=20,
            patience=3,
            seed=0 if draw is None else draw.seed,
        )

    def expert(self, task: SubTask, draw: Draw | None) -> Expert:
        """The task's own expert."""
        train, validation = self.rows(task, draw)
        training = self.training(draw)
        held = None if validation is None else data_digest(validation)
        labels = hashlib.sha256(task.scorer.label_embeddings.numpy().tobytes()).hexdigest()
        wanted = _sha(
            [
                FORMAT,
                self.backbone.digest,
                asdict(training),
                task.scorer.max_length,
                data_digest(train),
                held,
                labels,
            ]
        )
        drawn = "full" if draw is None else f"{draw.shots}-shots-seed-{draw.seed}"
        folder = self.out / "experts" / task.name / drawn
        try:
            kept = read_expert(folder)
            if kept.provenance.get("settings") == wanted:
                return kept
        except PidepError:
            pass
        expert, report = train_own_expert(task.scorer, task.task, training, train, validation)
        provenance = {
            **expert.provenance,
            "settings": wanted,
            "steps": report.steps,
            "best_step": report.best_step,
        }
        expert = replace(expert, name=task.name, provenance=provenance)
        write_expert(expert, folder)
        return expert

    def embedding(self, task: SubTask, draw: Draw | None, kind: FisherKind) -> Embedding:
        """Fisher embedding at the task's own expert, of all the shots or of `fisher_rows` rows."""
        rows = limit(self.rows(task, draw)[0], self.settings.fisher_rows, seed=0)
        expert, digest = self.expert(task, draw), data_digest(rows)
        return cached_fisher(
            self.out / "fisher",
            self.backbone,
            expert,
            rows.rows,
            rows.labels,
            data_digest=digest,
            kind=kind,
        )

    def correct(self, task: SubTask, *experts: Expert) -> Matrix:  # [N] of 0 and 1
        """Whether each of the task's test rows is answered rightly, by the experts' uniform
        mixture or by the bare backbone.
        """
        return self._answers(
            "answers", task, experts, {}, lambda: Mixture.of(experts) if experts else None
        )

    def tuned(self, task: SubTask, draw: Draw, own: Expert, *helpers: Expert) -> Matrix:  # [N]
        """As `correct`, by what `pidep tune` makes of the same experts: `policy=auto`."""
        train, training = self.rows(task, draw)[0], self.training(draw)

        def pi() -> Mixture:
            trainer = CandidateTrainer(
                task.scorer,
                helpers,
                InterpolateSettings(
                    training.schedule(f"{task.name}: interpolation"),
                    own_learning_rate=training.peak_learning_rate,
                ),
                own_expert_trainer(task.scorer, task.task, training, name=task.name),
            )
            return interpolate(trainer, own, train, None).mixture

        more = {"train": data_digest(train), "training": _sha(asdict(training))}
        return self._answers("tuned", task, (own, *helpers), more, pi)

    def _answers(
        self,
        what: str,
        task: SubTask,
        experts: Sequence[Expert],
        more: Mapping[str, Any],
        made: Callable[[], Mixture | None],
    ) -> Matrix:
        test = task.data.test
        key = {
            "format": FORMAT,
            "backbone": self.backbone.digest,
            "test": data_digest(test),
            "max_length": task.scorer.max_length,
            "experts": [expert.digest for expert in experts],
            **more,
        }

        def answer() -> str:
            answers = predict_logits(task.scorer, test.rows, made()).argmax(1).tolist()
            return "".join(
                str(int(answer == label))
                for answer, label in zip(answers, test.labels, strict=True)
            )

        # One digit a row: a list of numbers would take a line each.
        return np.array([int(digit) for digit in self.kept(what, key, answer)], np.float64)

    def kept(self, what: str, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """A cached JSON value, by everything that decides it."""
        path = self.out / what / f"{_sha(key)}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["key"] == key:
                return record["value"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        value = compute()
        write_json(path, {"key": key, "value": value})
        return value
