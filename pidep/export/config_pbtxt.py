"""`config.pbtxt`, made with Triton Server's own protobuf: never by pasting strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pidep.artifacts import names
from pidep.errors import ServingError, UsageError

__all__ = ["bank_config", "merged_config", "read_config"]

_QUEUE_DELAY_US = 100
"""How long Triton Server waits for more rows of a batch. A single client pays it with each request.
Under load, a batch gathers its rows while the one before it runs.
"""
_QUEUED_BATCHES = 4
"""Batches of one-row requests that may wait. More would only meet their deadlines in the queue."""


def bank_config(
    name: str,
    *,
    max_batch_size: int,
    hidden_size: int,
    images: bool = False,
    decodes: bool = False,
) -> str:
    """The bank's configuration: `TEXT` or `COLUMNS`, `EXPERT` and `KEY` in; scores and more out.

    Args:
        hidden_size: D, width of the embedding.
        images: whether the bank reads images; then it has the optional input `IMAGE`.
        decodes: whether the backbone is an encoder-decoder; then it has the optional inputs
            `CANDIDATES` and `DECODING`, and no output `EMBEDDING`.
    """
    config = _python_model(
        name, max_batch_size=max_batch_size, images=images, with_expert=True, decodes=decodes
    )
    if not decodes:
        config.output.add(name=names.EMBEDDING, data_type=_pb2().TYPE_FP32, dims=[hidden_size])
    return _text(config)


def merged_config(
    name: str,
    *,
    max_batch_size: int,
    platform: Literal["python", "onnxruntime", "tensorrt"],
    num_labels: int,
    images: bool = False,
    decodes: bool = False,
    entry_digest: str | None = None,
) -> str:
    """A merged model's configuration.

    Args:
        platform: `python` reads texts; NVIDIA's `onnxruntime` and `tensorrt` backends read token
            ids.
        num_labels: C, width of the logits; the Python backend does not fix it.
        images: as in `bank_config`.
        decodes: as in `bank_config`.
        entry_digest: where no code of pidep answers, the configuration says which entry is served.
    """
    if platform == "python":
        config = _python_model(
            name,
            max_batch_size=max_batch_size,
            images=images,
            with_expert=False,
            decodes=decodes,
        )
        return _text(config)
    pb2 = _pb2()
    config = pb2.ModelConfig(name=name, backend=platform, max_batch_size=max_batch_size)
    for tensor in ("input_ids", "attention_mask"):
        config.input.add(name=tensor, data_type=pb2.TYPE_INT64, dims=[-1])
    config.output.add(name=names.GRAPH_LOGITS, data_type=pb2.TYPE_FP32, dims=[num_labels])
    if entry_digest is not None:
        config.parameters[names.ENTRY_PARAMETER].string_value = entry_digest
    _batch(config)
    return _text(config)


def read_config(path: Path) -> Any:
    """A configuration as protobuf's `ModelConfig`.

    Raises:
        ServingError: no such file, or Triton Server could not read it.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), _pb2().ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ServingError(f"{path}: no configuration of a model ({error})") from error


def _python_model(
    name: str, *, max_batch_size: int, images: bool, with_expert: bool, decodes: bool
) -> Any:
    """What all models of the Python backend have."""
    pb2 = _pb2()
    config = pb2.ModelConfig(name=name, backend="python", max_batch_size=max_batch_size)
    # A row is a text or columns. Triton Server cannot say "one of the two"; `triton_model` does.
    further = [names.CANDIDATES, names.DECODING] if decodes else []
    optional = {names.TEXT, names.COLUMNS, names.IMAGE, names.KEY, *further}
    inputs = [names.TEXT, names.COLUMNS]
    inputs += [names.EXPERT, names.KEY] * with_expert + [names.IMAGE] * images + further
    for tensor in inputs:
        config.input.add(
            name=tensor, data_type=pb2.TYPE_STRING, dims=[1], optional=tensor in optional
        )
    # Experts have different numbers of labels, so their axis is open.
    config.output.add(name=names.SCORES, data_type=pb2.TYPE_FP32, dims=[-1])
    config.output.add(name=names.LABELS, data_type=pb2.TYPE_STRING, dims=[-1])
    config.output.add(name=names.LABEL, data_type=pb2.TYPE_STRING, dims=[1])
    config.output.add(name=names.DIGEST, data_type=pb2.TYPE_STRING, dims=[1])
    config.output.add(name=names.ENTRY, data_type=pb2.TYPE_STRING, dims=[1])
    config.output.add(name=names.ERROR, data_type=pb2.TYPE_STRING, dims=[1])
    # No dynamic batching: the model forms its batches itself (`serving.batcher`).
    # KIND_CPU: Triton Server reserves no GPU for it. The session inside takes one where it can.
    config.instance_group.add(count=1, kind=pb2.ModelInstanceGroup.KIND_CPU)
    return config


def _batch(config: Any) -> None:
    """Batches of several requests, and a queue with an end.

    Triton Server refuses what does not fit into the queue at once: 503, UNAVAILABLE. A request
    whose own deadline has passed in the queue is refused, too, and never run.
    """
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = _QUEUE_DELAY_US
    policy = batching.default_queue_policy
    policy.max_queue_size = _QUEUED_BATCHES * max(config.max_batch_size, 1)
    policy.timeout_action = policy.REJECT
    policy.allow_timeout_override = True


def _pb2() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise UsageError(
            "tritonclient not found: pip install 'pidep[client]' "
            "(config.pbtxt is made with its protobuf)"
        ) from error
    return model_config_pb2


def _text(config: Any) -> str:
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))
