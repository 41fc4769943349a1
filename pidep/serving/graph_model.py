"""Runs a graph in another model of the same server: one of Triton Server's own backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import GRAPH
from pidep.errors import AnswerError, OverloadError
from pidep.runtime.answer import Array
from pidep.runtime.entry import entry_file

__all__ = ["GraphModel", "require_graph"]

_ABSENT = ("is not ready", "is not found", "unknown model")
"""Words of Triton Server about a model that is not loaded, or not any more."""


def require_graph(front: Path, record: MergedRecord) -> None:
    """Refuse a graph beside a front that is not the recorded one: Triton's backend checks none.

    Some servers copy each model of a repository to a folder of its own. There, nothing can be seen.

    Args:
        front: the front's version folder.

    Raises:
        ServingError: another graph lies there.
    """
    graph = front.parent.with_name(record.graph_model or "") / front.name / GRAPH
    if graph.is_file():
        entry_file(graph, record.graph_digest)


class GraphModel:
    """A session that asks a model of the server, from inside the server: Triton's BLS."""

    def __init__(self, name: str) -> None:
        """Nothing is asked yet: the server loads its models in any order."""
        self.name = name

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs of a batch, on the CPU.

        Raises:
            OverloadError: the model is not loaded.
            AnswerError: it has failed.
        """
        # The module exists inside Triton Server's stub only.
        import triton_python_backend_utils as pb_utils

        request = pb_utils.InferenceRequest(
            model_name=self.name,
            requested_output_names=list(outputs),
            inputs=[pb_utils.Tensor(name, value) for name, value in feeds.items()],
            # A backend on a GPU would leave them there.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response: Any = request.exec()
        if response.has_error():
            message = " ".join(response.error().message().split())[:300]
            if any(words in message.lower() for words in _ABSENT):
                raise OverloadError(f"model {self.name!r} is not loaded; try again later")
            raise AnswerError(f"model {self.name!r}: {message}")
        # A copy: the response's memory is gone with it.
        return [
            pb_utils.get_output_tensor_by_name(response, name).as_numpy().copy() for name in outputs
        ]
