"""`config.pbtxt` through Triton Server's own protobuf, never by pasting strings."""

from __future__ import annotations

from typing import Any, Literal

from pidep.errors import UsageError

__all__ = ["bank_config", "merged_config"]


def _pb2() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise UsageError("tritonclient not found: pip install 'pidep[client]' (config.pbtxt is made with its protobuf)") from error
    return model_config_pb2


def _text(config: Any) -> str:
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def _python_model(name: str, *, inputs: tuple[str, ...], max_batch_size: int, images: bool, embedding: int | None = None) -> str:
    pb2 = _pb2()
    config = pb2.ModelConfig(name=name, backend="python", max_batch_size=max_batch_size)
    for tensor in inputs:
        config.input.add(name=tensor, data_type=pb2.TYPE_STRING, dims=[1])
    if images:
        config.input.add(name="IMAGE", data_type=pb2.TYPE_STRING, dims=[1], optional=True)
    config.output.add(name="SCORES", data_type=pb2.TYPE_FP32, dims=[-1])
    config.output.add(name="LABELS", data_type=pb2.TYPE_STRING, dims=[-1])
    config.output.add(name="LABEL", data_type=pb2.TYPE_STRING, dims=[1])
    config.output.add(name="DIGEST", data_type=pb2.TYPE_STRING, dims=[1])
    if embedding is not None:
        config.output.add(name="EMBEDDING", data_type=pb2.TYPE_FP32, dims=[embedding])
    config.dynamic_batching.max_queue_delay_microseconds = 500
    config.instance_group.add(count=1, kind=pb2.ModelInstanceGroup.KIND_CPU)
    return _text(config)


def bank_config(name: str, *, max_batch_size: int, hidden_size: int, images: bool = False) -> str:
    """The bank: TEXT, EXPERT and (optional, encoded) IMAGE in; SCORES, LABELS, LABEL, DIGEST and EMBEDDING out."""
    return _python_model(name, inputs=("TEXT", "EXPERT"), max_batch_size=max_batch_size, images=images, embedding=hidden_size)


def merged_config(
    name: str, *, max_batch_size: int, platform: Literal["python", "onnxruntime"], num_labels: int, images: bool = False
) -> str:
    """A merged model: TEXT in through the Python backend, or token ids in through NVIDIA's onnxruntime backend."""
    if platform == "python":
        return _python_model(name, inputs=("TEXT",), max_batch_size=max_batch_size, images=images)
    pb2 = _pb2()
    config = pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    config.input.add(name="input_ids", data_type=pb2.TYPE_INT64, dims=[-1])
    config.input.add(name="attention_mask", data_type=pb2.TYPE_INT64, dims=[-1])
    config.output.add(name="logits", data_type=pb2.TYPE_FP32, dims=[num_labels])
    config.dynamic_batching.max_queue_delay_microseconds = 500
    return _text(config)
