"""TensorRT engines of exported graphs.

`library` finds TensorRT or TensorRT for RTX, `profile` gives the open axes of a graph their sizes,
`compile` builds the engine. May import `pidep.export.recipe`, `pidep.artifacts` and below.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.export.tensorrt.compile import compile_engine
    from pidep.export.tensorrt.library import TensorRT, find_library

__all__ = ["TensorRT", "compile_engine", "find_library"]

__getattr__ = lazy_names(
    __name__,
    {
        "TensorRT": "pidep.export.tensorrt.library",
        "compile_engine": "pidep.export.tensorrt.compile",
        "find_library": "pidep.export.tensorrt.library",
    },
)
