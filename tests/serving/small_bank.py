"""A bank and a merged model made in milliseconds: small graphs, real records and files.

The bank's embedding of a row is the mean of its expert's `lora_A`, or zeros for the bare backbone.
A hundredth of the sum of the row's token ids is added to its first element. So the embedding
depends on the expert and on the text.

The tokenizer has one token more than the graphs' table of words, `NEW`. As in a backbone whose
embedding is smaller than its tokenizer, a graph fails on each batch that holds the token.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pidep.artifacts import BankRecord, GroupRecord, MergedRecord
from pidep.artifacts.names import NO_BYTECODE
from pidep.export.config_pbtxt import bank_config
from pidep.export.recipe import shipped
from pidep.files.digest import file_digest
from pidep.serving import ExpertStore
from tests.serving.experts import small_expert

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "the", "a"]
NEW = "[NEW]"
WIDTH, MAX_RANK = 4, 4


def _save(
    nodes: list[Any], inputs: list[Any], output: Any, constants: list[Any], path: Path
) -> None:
    graph = helper.make_graph(nodes, "small", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _text_inputs() -> list[Any]:
    names = ("input_ids", "attention_mask")
    return [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in names]


def _words() -> Any:
    """The number of each word, as a table that the graphs look tokens up in."""
    return helper.make_tensor("words_of", TensorProto.FLOAT, [len(WORDS)], list(range(len(WORDS))))


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([NEW])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())


def write_small_bank(repo: Path) -> Path:
    """Write `<repo>/pidep_bank/1`, with its store beside the repository; gives the
    version folder.
    """
    folder = repo / "pidep_bank" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text('name: "pidep_bank" backend: "python"')
    shutil.copyfile(shipped("model.py"), folder / "model.py")
    _write_tokenizer(folder)
    factors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["E", 1, MAX_RANK, WIDTH])
        for name in ("lora_a_4", "lora_b_4")
    ]
    constants = [
        _words(),
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        helper.make_tensor("step", TensorProto.FLOAT, [1, WIDTH], [0.01, 0.0, 0.0, 0.0]),
    ]
    nodes = [
        helper.make_node("Gather", ["lora_a_4", "slots"], ["rows"], axis=0),
        helper.make_node("ReduceMean", ["rows", "axes"], ["expert"], keepdims=0),
        helper.make_node("Gather", ["words_of", "input_ids"], ["ids"], axis=0),
        helper.make_node("ReduceSum", ["ids", "last"], ["words"], keepdims=1),
        helper.make_node("Mul", ["words", "step"], ["text"]),
        helper.make_node("Add", ["expert", "text"], ["sentence_embedding"]),
    ]
    slots = helper.make_tensor_value_info("slots", TensorProto.INT64, ["G", "K"])
    weights = helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["G", "K", 1])
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["B", WIDTH])
    _save(
        nodes, [*_text_inputs(), slots, weights, *factors], output, constants, folder / "model.onnx"
    )
    BankRecord(
        backbone_digest="sha256:tiny",
        graph_digest=file_digest(folder / "model.onnx"),
        hidden_size=WIDTH,
        max_rank=MAX_RANK,
        expert_store="../../../expert_store",
        groups=tuple(
            GroupRecord(input=f"lora_{one}_4", factor=one.upper(), width=WIDTH, sites=("layer.0",))
            for one in "ab"
        ),
    ).sealed(folder).write(folder)
    return folder


def write_served_bank(folder: Path) -> Path:
    """`<folder>/model_repo` as an export writes it, so that Triton Server loads it; the store
    beside it has the experts `film` and `book`.
    """
    repo = folder / "model_repo"
    version = write_small_bank(repo)
    config = bank_config("pidep_bank", max_batch_size=64, hidden_size=WIDTH)
    (version.parent / "config.pbtxt").write_text(config)
    (version / NO_BYTECODE).touch()
    store = ExpertStore(folder / "expert_store")
    for seed, name in enumerate(("film", "book")):
        store.publish(small_expert(name=name, seed=seed), name)
    return repo


def write_small_merged(repo: Path) -> Path:
    """Write `<repo>/film/1`. Its logits are the sum of the token ids, and 0."""
    folder = repo / "film" / "1"
    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    constants = [
        _words(),
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        helper.make_tensor("both", TensorProto.FLOAT, [1, 2], [1.0, 0.0]),
    ]
    nodes = [
        helper.make_node("Gather", ["words_of", "input_ids"], ["ids"], axis=0),
        helper.make_node("ReduceSum", ["ids", "last"], ["words"], keepdims=1),
        helper.make_node("Mul", ["words", "both"], ["logits"]),
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 2])
    _save(nodes, _text_inputs(), output, constants, folder / "model.onnx")
    MergedRecord(
        expert="film",
        digest="sha256:film",
        labels=("negative", "positive"),
        max_length=4,
        backbone_digest="sha256:tiny",
        graph_digest=file_digest(folder / "model.onnx"),
    ).sealed(folder).write(folder)
    return folder
