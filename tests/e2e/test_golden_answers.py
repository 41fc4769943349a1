"""Served answers compared with a golden file: labels, digests, messages and records, but no scores.

Scores differ in their last bits between processors. Digests do not, because every weight here is a
multiple of 1/64, and none is random. `python -m tests.e2e.test_golden_answers` writes the golden
file again.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pidep.deployment.release import release_bank
from pidep.errors import ServingError
from pidep.experts.folder import Expert
from pidep.export import Source, export_merged, load_recipe
from pidep.serving.client import Client, Request
from pidep.serving.server import TritonServer, free_ports
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from tests.conftest import WORDS

GOLDEN = Path(__file__).parent / "golden_answers.json"
ROWS = ["the film was good", "awful", "a very bad film", "great film", "the the was a a very very"]
LABELS = {"film": ("bad", "fine", "good"), "book": ("no", "yes")}
MEASURED = {"backbone", "entry_digest", "files", "graph_digest", "parity"}
"""Keys of a record that depend on the folder, the processor, or the versions of torch and onnx."""


def exact(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Multiples of 1/64 between -1/2 and 1/2, the same on every machine."""
    count = np.prod(shape, dtype=np.int64)
    places = np.arange(count, dtype=np.uint64) + np.uint64(1 + 100_003 * seed)
    scattered = (places * np.uint64(2_654_435_761) % np.uint64(2**32)) >> np.uint64(16)
    return ((scattered % np.uint64(65)).astype(np.float32) / 64 - 0.5).reshape(shape)


def weights(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Exact weights. Biases and positions are zero, because they would give all texts one label."""
    if name.endswith("LayerNorm.weight"):
        return np.ones(shape, np.float32)
    same = name.endswith("bias") or "position" in name or "token_type" in name
    return np.zeros(shape, np.float32) if same else exact(shape, seed)


def backbone_folder(folder: Path) -> Path:
    """A BERT of two layers with exact weights."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    model = BertModel(config)
    with torch.no_grad():
        for seed, (name, value) in enumerate(sorted(model.named_parameters())):
            value.copy_(torch.from_numpy(weights(name, tuple(value.shape), seed)))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), mask_token="[UNK]").save_pretrained(folder)
    return folder


def exact_expert(backbone: Any, name: str, sites: list[str], *, rank: int) -> Expert:
    """A LoRA with exact factors. Its labels are axes of the embedding."""
    labels = LABELS[name]
    factors = {
        site: {"lora_A": exact((rank, 16), seed), "lora_B": exact((16, rank), seed + 50)}
        for seed, site in enumerate(sites, len(labels))
    }
    return Expert(
        name=name,
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        sites=factors,
        scaling=0.5,
        labels=labels,
        label_texts=labels,
        label_embeddings=np.eye(16, dtype=np.float32)[: len(labels)],
        logit_scale=20.0,
        max_length=12,
    )


def source(backbone: Any, name: str, sites: list[str], *, rank: int) -> Source:
    expert = exact_expert(backbone, name, sites, rank=rank)
    labels = {label: label for label in expert.labels}
    task = Task.model_validate({"name": name, "labels": labels, "data": {"path": "unused.jsonl"}})
    return Source(expert, task, Split(ROWS, [0, 1, 0, 1, 0]))


def served(folder: Path) -> dict[str, Any]:
    """Answers and records of a bank of two experts and of a merged model."""
    from pidep.backbones.load import load_backbone

    backbone = load_backbone(str(backbone_folder(folder / "tiny-bert")))
    repo = folder / "model_repo"
    film = source(backbone, "film", ["encoder.layer.0.attention.self.query"], rank=2)
    values = [f"encoder.layer.{layer}.attention.self.value" for layer in (0, 1)]
    book = source(backbone, "book", values, rank=3)
    recipe = load_recipe("onnx-cpu")
    release_bank([film, book], repo, recipe)
    export_merged(film, repo, load_recipe("onnx-cpu"))
    with TritonServer(repo, free_ports()) as server:
        answers = asked(server.grpc_url)
    return {"answers": answers, "records": records(repo)}


def asked(url: str) -> dict[str, Any]:
    mixed = [Request(text, name) for text in ROWS for name in ("film", "book", "@backbone")]
    plain = [Request(text, "") for text in ROWS]
    with Client(url) as bank, Client(url, model="film") as merged:
        with pytest.raises(ServingError) as unknown:
            bank.infer([Request("good", "nope")])
        chosen = bank.choose(Request("great film", "film"), plain[:3])
        return {
            "bank": by_expert(mixed, bank.infer(mixed)),
            "merged": by_expert(plain, merged.infer(plain)),
            "chosen": {"label": chosen.label, "digest": chosen.digest},
            "unknown expert": re.sub(
                r" \(request [0-9a-f]{16}\)$", "", str(unknown.value).replace(url, "HOST:PORT")
            ),
        }


def by_expert(rows: list[Request], answers: list[Any]) -> dict[str, Any]:
    """Digest and labels of each expert, and the label of each text."""
    found: dict[str, Any] = {}
    for row, answer in zip(rows, answers, strict=True):
        best = sorted(answer.scores.values(), reverse=True)
        # Rounding must not decide a label, because it differs between processors.
        assert len(best) < 2 or best[0] - best[1] > 0.01, f"{row}: {answer.scores} are too near"
        of_expert = {"digest": answer.digest, "labels": list(answer.scores)}
        one = found.setdefault(row.expert, {**of_expert, "label": {}})
        assert {key: one[key] for key in of_expert} == of_expert
        one["label"][row.text] = answer.label
    return found


def records(repo: Path) -> dict[str, Any]:
    """The files that export and publish wrote, without the parts that depend on the machine."""
    store = repo.parent / "expert_store"
    files = {
        "bank.json": repo / "pidep_bank" / "1" / "bank.json",
        "merged.json": repo / "film" / "1" / "merged.json",
        "manifest.json": store / "manifest.json",
    }
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    for digest in found["manifest.json"]["aliases"].values():
        version = store / "versions" / digest.removeprefix("sha256:")
        record = json.loads((version / "expert.json").read_text())
        found[f"expert.json of {record['name']}"] = record
    return {
        name: {key: value for key, value in record.items() if key not in MEASURED}
        for name, record in found.items()
    }


@pytest.mark.server
def test_answers_and_records_are_golden(tmp_path: Path) -> None:
    assert served(tmp_path) == json.loads(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = json.dumps(served(Path(temporary)), indent=1, ensure_ascii=False)
    GOLDEN.write_text(found + "\n", encoding="utf-8")
