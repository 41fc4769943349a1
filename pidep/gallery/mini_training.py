"""Trains the connector of `pidep-mini` on icons and their names.

Icons of three families (Material Design, Font Awesome without brands, Octicons) are trained against
MiniLM's embeddings of their names by a symmetric contrastive loss: an image against the names of
all training icons, a name against the images of the batch. The part that bypasses the transformer
is fitted afterwards, in closed form. The stem's features are computed once and cached. Parts are by
base name (see `pidep.gallery.icons.split`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.backbones.checkpoint import weights_digest
from pidep.backbones.connector import as_kept, gathered
from pidep.backbones.mini import PREPROCESS, Mini, new_connector
from pidep.backbones.stem import load_stem
from pidep.files.cache_folder import cache_folder
from pidep.gallery.backbones import load_minilm
from pidep.gallery.icons.catalog import Icon, catalog
from pidep.gallery.icons.draw import render
from pidep.gallery.icons.split import groups, parts
from pidep.gallery.suite.icons import SHARES, SPLIT_SEED

__all__ = [
    "PHRASES",
    "Data",
    "Settings",
    "choose",
    "embed",
    "fit_past",
    "left_out_errors",
    "load_data",
    "loss_of",
    "new_mini",
    "stem_features",
    "train",
    "transformer_length",
    "whitening",
]

_LOG = logging.getLogger(__name__)
PHRASES = ("{}", "an icon of {}")
"""An icon's name as text. The first phrase is the query."""
_WORDS = 24


@dataclass(frozen=True)
class Settings:
    """All settings of the training, without the data."""

    steps: int = 1400
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 50
    places: int = 8
    """Number of an image's sixteen tokens in a step, drawn anew for every step."""
    dropout: float = 0.2
    """Dropout of the stem's features."""
    other_phrases: float = 0.3
    """Share of steps that use another phrase than the bare name."""
    softness: float = 0.0
    """Weight of names that mean nearly the same, relative to the one right name."""
    logit_scale: float = 20.0
    """Initial value; it is learned."""
    sharpness: float = 1.0
    """Width of the bypassing part's Gaussians; 2 is about the squared distance of two icons."""
    ridge: float = 0.2
    whitening: float = 0.75
    """Exponent that lowers the weight of name directions that pictures do not tell; 0 lowers none.
    """
    whitening_floor: float = 0.1
    """Added to each direction's error, in means over all directions."""
    strange: float = 0.05
    """Share of training icons whose nearest neighbour is farther than the distance for full length.
    """
    past: float = 3.0
    """Length of the bypassing part, relative to the transformer's part."""
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Icons with their features, names and parts."""

    icons: Sequence[Icon]
    part: list[str]
    group: list[str]
    features: Any  # [N, V, C + 4M] fp16, a memory map
    summary: Tensor  # [N, F] fp32
    names: Tensor  # [P, U, D] unit rows, P phrases of U different names
    name_of: Tensor  # [N] int64

    def rows(self, part: str) -> list[int]:
        """Numbers of the icons of a part."""
        return [row for row, found in enumerate(self.part) if found == part]


def choose() -> list[Icon]:
    """Icons with names of their own; brands are left out."""
    return [
        icon for icon in catalog("material", "fontawesome", "octicons") if icon.style != "brands"
    ]


def stem_features(icons: Sequence[Icon], mini: Mini) -> tuple[Any, Tensor]:
    """`[N, V, C + 4M]` fp16 and `[N, F]` fp32 of every icon, cached after the first time."""
    sha = hashlib.sha256(f"{PREPROCESS.digest} {weights_digest(mini.stem)}\n".encode())
    for icon in icons:
        sha.update(f"{icon.key} {hashlib.sha256(icon.path.read_bytes()).hexdigest()}\n".encode())
    path = cache_folder() / "mini" / f"{sha.hexdigest()[:24]}.npy"
    beside = path.with_suffix(".summary.npy")
    if not path.is_file() or not beside.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(beside, _compute(icons, mini, partial))
        # Renamed last: an interrupted run leaves no file that looks complete.
        partial.replace(path)
    return np.load(path, mmap_mode="r"), torch.from_numpy(np.load(beside)).float()


def _compute(icons: Sequence[Icon], mini: Mini, path: Path) -> Any:
    """Write the features to `path`; gives the summaries."""
    table: Any = None
    summaries: list[Any] = []
    started = time.perf_counter()
    for start in range(0, len(icons), 8):
        some = icons[start : start + 8]
        pixels = torch.from_numpy(PREPROCESS([render(icon, size=PREPROCESS.size) for icon in some]))
        with torch.inference_mode():
            last, middle, summary = mini.stem(pixels.contiguous(memory_format=torch.channels_last))
        # fp16 and a memory map: half a gigabyte of features, of which a step reads one batch.
        found = gathered(last, middle).half().numpy()
        summaries.append(summary.half().numpy())
        if table is None:
            table = np.lib.format.open_memmap(
                path, "w+", np.float16, (len(icons), *found.shape[1:])
            )  # type: ignore[no-untyped-call]
        table[start : start + 8] = found
        if start % 1600 == 0:
            _LOG.info(
                f"features of {start} of {len(icons)} icons, {time.perf_counter() - started:.0f} s"
            )
    table.flush()
    return np.concatenate(summaries)


def load_data(mini: Mini) -> Data:
    """Everything that training and measuring need."""
    icons = choose()
    of_base = groups(catalog())
    part_of = {
        icon.key: part
        for part, some in parts(icons, shares=SHARES, seed=SPLIT_SEED).items()
        for icon in some
    }
    unique = sorted({icon.label for icon in icons})
    number = {name: place for place, name in enumerate(unique)}
    _LOG.info(
        f"{len(icons)} icons of {len({of_base[icon.base] for icon in icons})} base names, "
        f"{len(unique)} different names"
    )
    phrased = [[phrase.format(name) for name in unique] for phrase in PHRASES]
    names = torch.stack(
        [mini.text.encode(texts, max_length=_WORDS, batch_size=256) for texts in phrased]
    )
    _LOG.info("names embedded")
    features, summary = stem_features(icons, mini)
    return Data(
        icons=icons,
        part=[part_of[icon.key] for icon in icons],
        group=[of_base[icon.base] for icon in icons],
        features=features,
        summary=summary,
        names=names,
        name_of=torch.tensor([number[icon.label] for icon in icons]),
    )


def new_mini() -> Mini:
    """The mini backbone with an untrained connector."""
    text, stem = load_minilm(), load_stem()
    fast = stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Mini("pidep-mini", text, fast, new_connector(text.hidden_size), PREPROCESS, "")


def embed(
    mini: Mini, features: Tensor, summary: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Features `[B, V, C + 4M]` to unit rows of images without text, with or without the bypass.

    `places` are all places when absent.
    """
    ids, mask = (
        torch.from_numpy(array)
        for array in mini.text.tokenize([""] * len(features), max_length=_WORDS)
    )
    tokens = mini.connector.tokens(features, places)
    past = (
        torch.zeros(len(features), mini.hidden_size)
        if summary is None
        else mini.connector.past(summary)
    )
    visual = torch.cat([tokens, past.unsqueeze(1)], 1)
    return mini.forward(ids, mask, visual, mask.new_ones(visual.shape[:2]), places=places)


def loss_of(found: Tensor, names: Tensor, target: Tensor, scale: Tensor, softness: float) -> Tensor:
    """Image against all names, and the batch's names against its images.

    Icons of one name are not negatives of each other.
    """
    to_names = found @ names.T * scale
    own = names[target]
    if softness:
        with torch.no_grad():
            alike = (own @ names.T * 20.0).softmax(1) * softness
            alike.scatter_add_(
                1,
                target[:, None],
                torch.full_like(target, 1.0 - softness, dtype=alike.dtype)[:, None],
            )
        first = nn.functional.cross_entropy(to_names, alike)
    else:
        first = nn.functional.cross_entropy(to_names, target)
    to_images = own @ found.T * scale
    twins = (target[:, None] == target[None, :]) & ~torch.eye(len(target), dtype=torch.bool)
    second = nn.functional.cross_entropy(
        to_images.masked_fill(twins, -1e4), torch.arange(len(target))
    )
    return (first + second) / 2


def train(mini: Mini, data: Data, settings: Settings) -> list[float]:
    """Trains `mini.connector`; gives the loss of every step."""
    generator = torch.Generator().manual_seed(settings.seed)
    _start(mini.connector, generator)
    rows = torch.tensor(data.rows("train"))
    seen, target_of = torch.unique(data.name_of[rows], return_inverse=True)
    names = data.names[:, seen]
    scale = nn.Parameter(torch.tensor(settings.logit_scale).log())
    # As usual, norms, biases and scales are not decayed.
    decayed = [mini.connector.project.weight]
    others = [parameter for parameter in mini.connector.parameters() if parameter is not decayed[0]]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": [*others, scale], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    losses: list[float] = []
    order = torch.empty(0, dtype=torch.int64)
    num_places, started = data.features.shape[1], time.perf_counter()
    for step in range(settings.steps):
        if len(order) < settings.batch:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        chosen, order = order[: settings.batch].sort().values, order[settings.batch :]
        places = torch.randperm(num_places, generator=generator)[: settings.places].sort().values
        features = torch.from_numpy(data.features[rows[chosen].numpy()])[:, places].float()
        kept = (
            torch.rand(len(features), 1, features.shape[2], generator=generator) >= settings.dropout
        )
        drawn = torch.rand(2, generator=generator)
        phrase = 0 if drawn[0] >= settings.other_phrases else 1 + int(drawn[1] * (len(names) - 1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = embed(mini, features * kept / (1.0 - settings.dropout), places=places)
        loss = loss_of(
            found.float(), names[phrase], target_of[chosen], scale.exp(), settings.softness
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(mini.connector.parameters(), 1.0)
        optimizer.step()
        rate.step()
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            seconds = time.perf_counter() - started
            _LOG.info(
                f"step {step + 1}: loss {np.mean(losses[-100:]):.3f}, scale "
                f"{float(scale.detach().exp()):.1f}, {seconds:.0f} s"
            )
    mini.connector.requires_grad_(False).eval()
    return losses


@torch.no_grad()
def fit_past(mini: Mini, data: Data, settings: Settings) -> None:
    """Kernel ridge regression of the training icons' names from their summaries.

    Icons of frequent bases weigh less. A name direction that is predicted badly for left-out base
    names counts less, as in a discriminant analysis.
    """
    past, rows = mini.connector.past, torch.tensor(data.rows("train"))
    summary = data.summary[rows]
    past.mean, past.deviation = summary.mean(0), summary.std(0) + 1e-3
    standard, num_features = past.standard(summary), summary.shape[1]
    # `svd_lowrank` draws from the global generator and takes no other.
    torch.manual_seed(settings.seed)
    past.axes = torch.svd_lowrank(standard, q=past.axes.shape[1], niter=2)[2]
    # Rounded as the file rounds them, before the fit: the vectors belong to these points (decision
    # 006).
    past.points = as_kept(past.turned(summary))
    past.sharpness = torch.tensor(settings.sharpness / num_features)
    group = torch.tensor(
        np.unique([data.group[row] for row in rows.tolist()], return_inverse=True)[1]
    )
    near, ease = past.near(past.points), group.bincount()[group].sqrt()
    names = data.names[0, data.name_of[rows]]
    # The kernel matrix with its ridge is positive definite, so one factorisation serves both the
    # fit and the left-out errors.
    factor = torch.linalg.cholesky(near + settings.ridge * torch.diag(ease))
    vectors = torch.cholesky_solve(names - names.mean(0), factor)
    past.vectors = vectors @ whitening(left_out_errors(factor, vectors, group), settings)
    others = near.masked_fill(group[:, None] == group, 0.0).amax(1)
    past.enough = others.quantile(settings.strange).clamp(min=1e-3)
    past.size = torch.tensor(
        settings.past * transformer_length(mini, data, data.rows("train")[::16])
    )


def left_out_errors(factor: Tensor, vectors: Tensor, group: Tensor) -> Tensor:  # [N, D]
    """Errors of names when all icons of their group [N] are left out, in closed form."""
    inverse, out = torch.cholesky_inverse(factor), torch.empty_like(vectors)
    order, sizes = group.argsort(stable=True), group.bincount().tolist()
    for some in order.split(sizes):  # type: ignore[no-untyped-call]
        out[some] = torch.linalg.solve(inverse[some][:, some], vectors[some])
    return out


def whitening(errors: Tensor, settings: Settings) -> Tensor:  # [D, D]
    """Divides each principal direction of the errors by a power of its mean square."""
    found, directions = torch.linalg.eigh((errors.T @ errors).double())
    scale = (found.clamp(min=0.0) / found.mean() + settings.whitening_floor) ** -settings.whitening
    weights: Tensor = ((directions * scale) @ directions.T).float()
    return weights


def transformer_length(mini: Mini, data: Data, rows: Sequence[int]) -> float:
    """The length of `past` that makes it as long as the transformer's part."""
    lengths = []
    with torch.inference_mode():
        for some in torch.tensor(rows).split(64):  # type: ignore[no-untyped-call]
            tokens = mini.connector.tokens(
                torch.from_numpy(np.asarray(data.features[some.numpy()])).float()
            )
            ids, mask = (
                torch.from_numpy(array)
                for array in mini.text.tokenize([""] * len(some), max_length=_WORDS)
            )
            seen = torch.cat([mask, mask.new_ones(tokens.shape[:2])], 1)
            lengths.append(
                (mini.last_states(ids, seen, tokens) * seen.unsqueeze(-1)).sum(1).norm(dim=1)
                / tokens.shape[1]
            )
    return float(torch.cat(lengths).mean())


def _start(connector: nn.Module, generator: torch.Generator) -> None:
    """Drawn from the seed alone, independent of earlier draws."""
    connector.requires_grad_(True).train()
    for module in connector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    place: Any = connector.place
    nn.init.normal_(place, std=0.02, generator=generator)


def _rate(step: int, settings: Settings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1.0 + float(np.cos(np.pi * done)))
