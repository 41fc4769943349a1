"""Names that export, runtime, serving and clients agree on. Imports nothing."""

from __future__ import annotations

__all__ = [
    "BACKBONE",
    "BANK",
    "BANK_RECORD",
    "BIAS_SCHEMA",
    "CANDIDATES",
    "COLUMNS",
    "CONFIG",
    "DATA_SUFFIX",
    "DECODER_GRAPH",
    "DECODING",
    "DIGEST",
    "EMBEDDING",
    "ENCODER_GRAPH",
    "ENTRY",
    "ENTRY_PARAMETER",
    "ERROR",
    "EXPERT",
    "EXPERT_RECORD",
    "GATE",
    "GATE_PAGE",
    "GATE_REPORT",
    "GRAPH",
    "GRAPH_EMBEDDING",
    "GRAPH_LABELS",
    "GRAPH_LOGITS",
    "GRAPH_PIXELS",
    "GRAPH_SLOTS",
    "GRAPH_VISUAL",
    "GRAPH_WEIGHTS",
    "HISTORY",
    "IMAGE",
    "IMAGE_GRAPH",
    "KEY",
    "LABEL",
    "LABELS",
    "LABEL_VECTORS",
    "MANIFEST",
    "MERGED_RECORD",
    "MIXTURE_RECORD",
    "NO_BYTECODE",
    "PROBE_ID",
    "ROW_ERRORS",
    "SCHEMA",
    "SCORES",
    "SHIM",
    "STATUS",
    "TASK_EMBEDDING",
    "TEMPLATE_SCHEMA",
    "TEXT",
    "TEXT_SCHEMA",
    "TOKENIZER",
    "VERSION",
    "VISION_GRAPH",
]

# Models and experts.
BANK = "pidep_bank"
"""The bank's model in Triton Server."""
BACKBONE = "@backbone"
"""Names the bare backbone where an expert is expected. It has no labels; it embeds candidates."""
STATUS = "@status"
"""Names no expert: the row is answered with the server's state, as JSON in `LABEL`."""
PROBE_ID = "pidep-probe"
"""Id of a request that only asks whether a model answers. Its refusal is not logged."""

# Files of a model repository entry: <repo>/<model>/config.pbtxt and <repo>/<model>/1/….
CONFIG = "config.pbtxt"
VERSION = "1"
"""Triton Server's version folder. pidep writes this one only; expert versions are in the store."""
GATE = "gate.json"
"""Rows and PyTorch's answers, beside the configuration; no server reads it."""
GATE_REPORT = "gate_report.json"
"""The figures of the gate, beside the configuration; no server reads it."""
GATE_PAGE = "gate_report.html"
"""The same as a page."""
BANK_RECORD = "bank.json"
MERGED_RECORD = "merged.json"
GRAPH = "model.onnx"
VISION_GRAPH = "vision.onnx"
ENCODER_GRAPH = "encoder.onnx"
"""Of an encoder-decoder, in the place of `model.onnx`."""
DECODER_GRAPH = "decoder.onnx"
IMAGE_GRAPH = "image.onnx"
"""The image tower of a backbone of two; `model.onnx` is its text tower then."""
LABEL_VECTORS = "labels.safetensors"
"""Label embeddings times the logit scale, of a merged model of two towers."""
DATA_SUFFIX = ".data"
"""`model.onnx.data` holds the weights of a graph that are not in `model.onnx` itself."""
ENGINE = "model.plan"
"""The TensorRT engine of `model.onnx`; the name that Triton Server's tensorrt backend expects."""
TOKENIZER = "tokenizer.json"
SHIM = "model.py"
"""What Triton Server's Python backend loads."""
NO_BYTECODE = "__pycache__"
"""An empty file where Python would make a folder, so that it keeps no bytecode of the shim."""

# Files of an expert folder.
EXPERT_RECORD = "expert.json"
TASK_EMBEDDING = "fisher.safetensors"
"""The diagonal of the Fisher matrix, one tensor for each tensor of the expert."""
MIXTURE_RECORD = "mixture.json"
"""In the place of `expert.json`, where the folder holds a mixture by reference to its parts."""

# The expert store.
MANIFEST = "manifest.json"
HISTORY = "history"
"""Folder with a file for each name: its last changes."""

# Tensors of a request and its response.
TEXT = "TEXT"
COLUMNS = "COLUMNS"
"""A row as a JSON object of its columns, in the place of its text."""
EXPERT = "EXPERT"
IMAGE = "IMAGE"
CANDIDATES = "CANDIDATES"
"""A row's candidate texts as a JSON list; of encoder-decoders only."""
DECODING = "DECODING"
"""How a row's answer is decoded, as a JSON object; of encoder-decoders only."""
KEY = "KEY"
"""What decides which version of a name answers a row, such as a user's id; optional."""
SCORES = "SCORES"
LABELS = "LABELS"
LABEL = "LABEL"
DIGEST = "DIGEST"
EMBEDDING = "EMBEDDING"
ENTRY = "ENTRY"
"""Digest of the model repository's entry: graph, tokenizer, record and preprocessing."""
ENTRY_PARAMETER = "pidep_entry"
"""Parameter of a configuration that holds it, where no code of pidep answers."""

ERROR = "ERROR"
"""What is wrong with a row, empty where it is answered; only under `ROW_ERRORS`."""
ROW_ERRORS = "row_errors"
"""Parameter of a request: answer the other rows where one is wrong, and say so in `ERROR`."""

# Inputs and outputs of the graphs, beside those that the backbone names.
GRAPH_SLOTS = "slots"
GRAPH_WEIGHTS = "weights"
GRAPH_EMBEDDING = "sentence_embedding"
GRAPH_LABELS = "label_embeddings"
"""[C, D] fp32 times the logit scale; an optional input of an adapter graph."""
GRAPH_LOGITS = "logits"
GRAPH_PIXELS = "pixels"
GRAPH_VISUAL = "visual"

# Schemas of expert.json.
SCHEMA = 1
"""An expert of a backbone that embeds."""
TEXT_SCHEMA = 2
"""An expert of an encoder-decoder, which scores label texts or answers freely.

It has no label embeddings. Its label texts and the length of its answers enter the digest instead.
"""
TEMPLATE_SCHEMA = 3
"""An expert that has its task's template, on either kind of backbone.

Older pideps made no use of the template, so they must not read such an expert: it would answer
columns in another way than its digest says.
"""
BIAS_SCHEMA = 4
"""An expert that has a bias of its labels, with or without a template.

Older pideps would answer without the bias, so they must not read such an expert.
"""
