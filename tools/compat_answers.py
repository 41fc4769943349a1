"""Runs exported graphs with the ONNX Runtime of this environment and compares the answers.

    python compat_answers.py FOLDER ...

Each folder has a graph, its inputs and the answers of another release. The script needs nothing but
numpy and ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FEEDS = "feeds.npz"
FOUND = "found.npz"
_GRAPH = "model.onnx"
_BOUND = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.05}
"""Of the largest number of an answer. Releases fuse other operators, so they round otherwise. int8
rounds an activation to the next step, and each step is a 255th of its range."""


def answers(folder: Path) -> Any:
    """The graph's output for the inputs beside it, as pidep's runtime opens it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # From bytes, with the folder of the weights beside them: the way of `open_session`.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    session = onnxruntime.InferenceSession(
        (folder / _GRAPH).read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    with np.load(folder / FEEDS) as feeds:
        return session.run(None, dict(feeds))[0]


def main(folders: list[str]) -> int:
    """Exit code 1 where a graph does not load or answers otherwise."""
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
    bad = 0
    for folder in map(Path, folders):
        precision = next((key for key in _BOUND if key in folder.name), "fp32")
        try:
            found = answers(folder)
        # Whatever a release raises: its own exceptions have no common base.
        except Exception as error:
            print(f"  {folder.name}: does not load: {' '.join(str(error).split())[:300]}")
            bad += 1
            continue
        expected = np.load(folder / FOUND)["found"]
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        good = found.shape == expected.shape and error <= _BOUND[precision]
        bad += not good
        print(f"  {folder.name}: {'same' if good else 'OTHER'}, relative error {error:.1e}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
