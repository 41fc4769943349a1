"""A model of Triton Server's Python backend as one would write it by hand around a bank.

One request after the other, answered in `execute`: no queue, no limits, no metrics, no swaps. It
shows what Triton Server and its Python backend add alone. `bench_serving` puts the folder in.
"""

# mypy: ignore-errors

from pathlib import Path

import numpy as np
import triton_python_backend_utils as utils

from pidep.runtime.bank import Bank
from pidep.serving.store import ExpertStore

FOLDER = BANK_FOLDER  # noqa: F821


class TritonPythonModel:
    """One row a request."""

    def initialize(self, args):
        """Open the bank with its experts."""
        self.bank = Bank(Path(FOLDER))
        self.residents = self.bank.build(ExpertStore(self.bank.store).published())

    def execute(self, requests):
        """Answer each request."""
        return [self.answered(request) for request in requests]

    def answered(self, request):
        """The response to one request."""
        text, name = (
            utils.get_input_tensor_by_name(request, tensor).as_numpy()[0, 0].decode()
            for tensor in ("TEXT", "EXPERT")
        )
        (answer,) = self.bank.run(self.residents, [text], [name])
        labels = np.array([[label.encode() for label in answer.labels]], dtype=object)
        outputs = {
            "SCORES": answer.scores[None],
            "LABELS": labels,
            "LABEL": np.array([[answer.label.encode()]], dtype=object),
            "DIGEST": np.array([[answer.digest.encode()]], dtype=object),
            "ENTRY": np.array([[b""]], dtype=object),
        }
        return utils.InferenceResponse([utils.Tensor(key, value) for key, value in outputs.items()])
