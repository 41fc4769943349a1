"""A tiny random backbone and experts for it: real transformers, real PEFT format, no network."""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests.cli.run import PLAIN, Done

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # spinning threads take more time from other processes than they save here

# The same examples in every run. Fewer than the default of 100, because more of them reach no other
# line.
settings.register_profile("pidep", max_examples=30, derandomize=True, deadline=None)
settings.load_profile("pidep")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "good",
    "bad",
    "great",
    "awful",
    "a",
    "film",
    "the",
    "was",
    "very",
    "positive",
    "negative",
]


def save_tiny(folder: Path, *, num_layers: int = 2) -> Path:
    """A hub folder with a random BERT of 16 features and the words above."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    }
    BertModel(
        BertConfig(vocab_size=len(WORDS), num_hidden_layers=num_layers, **size)
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    # Without a mask token of its own: the model has no embedding for one more.
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), mask_token="[UNK]")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder: Path):  # type: ignore[no-untyped-def]
    """The backbone in `tiny_folder`, loaded once. Tests use `tiny` instead, which they
    may change.
    """
    from pidep.backbones.load import load_backbone

    return load_backbone(str(tiny_folder))


@pytest.fixture
def tiny(tiny_loaded):  # type: ignore[no-untyped-def]
    """A backbone of its own for each test. A copy takes a fifth of the time of loading."""
    return copy.deepcopy(tiny_loaded)


def tiny_mini(text):  # type: ignore[no-untyped-def]
    """A mini backbone around a tiny text encoder: images of 64 pixels, four visual tokens."""
    import torch
    from torch import nn

    from pidep.backbones.connector import Connector
    from pidep.backbones.mini import Mini
    from pidep.inputs.images import Preprocess

    class TinyStem(nn.Module):
        """Pixels `[B, 3, 64, 64]` to maps `[B, 8, 2, 2]` and `[B, 4, 4, 4]` and a summary
        `[B, 8]`.
        """

        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle = nn.Conv2d(3, 8, 32, 32), nn.Conv2d(3, 4, 16, 16)
            self.calls = 0

        def forward(self, pixels):  # type: ignore[no-untyped-def]
            if not torch.compiler.is_compiling():
                self.calls += len(pixels)
            last = self.last(pixels)
            return last, self.middle(pixels), last.mean((2, 3))

    torch.manual_seed(0)
    shape = {
        "channels": 8,
        "channels_middle": 4,
        "channels_summary": 8,
        "axes": 3,
        "points": 5,
        "num_tokens": 4,
    }
    connector = Connector(**shape, width=text.hidden_size).requires_grad_(False)
    for name in ("axes", "points", "vectors"):
        nn.init.normal_(connector.past.get_buffer(name))
    connector.past.sharpness.fill_(0.2)
    return Mini(
        "mini",
        text,
        TinyStem().requires_grad_(False),
        connector,
        Preprocess(size=64),
        "sha256:mini",
    )


@pytest.fixture
def mini(tiny):  # type: ignore[no-untyped-def]
    return tiny_mini(tiny)


def picture(seed: int) -> np.ndarray:
    """Noise of 64 × 64 pixels."""
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    """`picture` as an encoded file."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture(seed)).save(out, "PNG")
    return out.getvalue()


def make_expert(
    backbone,
    *,
    name: str = "film",
    seed: int = 0,
    rank: int = 2,
    scaling: float = 2.0,
    sites=("*",),
):  # type: ignore[no-untyped-def]
    """A random expert for a backbone."""
    from pidep.adapters.mixture import find_sites, linear_at
    from pidep.experts.folder import Expert

    rng = np.random.default_rng(seed)
    factors = {}
    for site in find_sites(backbone.model, sites):
        linear = linear_at(backbone.model, site)
        a = rng.normal(0, 0.3, (rank, linear.in_features)).astype(np.float32)
        factors[site] = {
            "lora_A": a,
            "lora_B": rng.normal(0, 0.3, (linear.out_features, rank)).astype(np.float32),
        }
    return Expert(
        name=name,
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        sites=factors,
        scaling=scaling,
        labels=("negative", "positive"),
        label_texts=("negative", "positive"),
        label_embeddings=backbone.encode(["negative", "positive"], max_length=8).numpy(),
        logit_scale=20.0,
        max_length=12,
    )


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A task over 80 tiny rows."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(80):
        label = index % 2
        word = [("bad", "awful"), ("good", "great")][label][int(rng.integers(2))]
        filler = " ".join(rng.choice(["a", "film", "the", "was", "very"], size=5))
        rows.append({"text": f"{filler} {word}", "label": ["negative", "positive"][label]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "film.yaml"
    path.write_text(
        "name: film\nlabels: {negative: negative, positive: positive}\ndata: {path: "
        "rows.jsonl}\nmax_length: 12\n"
    )
    return path


@pytest.fixture
def inside(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """`inside("graph", pool)` runs `pidep graph …` in this process. A traceback fails the test.

    A process of its own costs seconds of imports. Tests of the process itself use
    `tests.cli.run.pidep`.
    """
    from pidep.cli import main

    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["pidep", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capfd.readouterr()
        code: object = None
        # `pidep serve` handles these, and the test run must not keep its handlers.
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return Done.of(int(str(code or 0)), out, err)

    return run
