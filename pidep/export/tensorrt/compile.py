"""An ONNX graph to a TensorRT engine. The precision is the graph's: networks are strongly typed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pidep.artifacts.engine import EngineRecord
from pidep.errors import PidepError, UsageError
from pidep.export.recipe import Recipe
from pidep.export.tensorrt.library import TensorRT, find_library
from pidep.export.tensorrt.profile import optimisation_profile
from pidep.files.digest import file_digest

__all__ = ["compile_engine"]

_LOG = logging.getLogger(__name__)


def compile_engine(graph: Path, plan: Path, recipe: Recipe) -> EngineRecord:
    """Build the engine of a graph; inputs and outputs keep their names.

    Args:
        graph: standard operators only, such as recipe `onnx-portable` makes.
        plan: where the engine is written.

    Raises:
        UsageError: TensorRT is missing, or offers not what the recipe asks for.
        PidepError: TensorRT cannot parse or build the graph; the message names the operator.
    """
    assert recipe.runtime != "onnxruntime"
    assert recipe.profile is not None
    library = find_library(recipe.runtime)
    trt, log = library.api, _log_of(library)
    builder = _made(lambda: trt.Builder(log), library, log)
    network = builder.create_network(_strongly_typed(trt))
    _parse(library, network, log, graph)
    config = builder.create_builder_config()
    config.add_optimization_profile(optimisation_profile(builder, network, recipe.profile))
    _set_capabilities(library, config, recipe)
    _LOG.info("export: builds the engine")
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise PidepError(
            f"{graph.name}: {library.name} {library.version} builds no engine: {log.last()}"
        )
    plan.write_bytes(memoryview(built))
    return EngineRecord(
        digest=file_digest(plan),
        graph_digest=file_digest(graph),
        library=library.name,
        library_version=library.version,
        compute_capabilities=recipe.compute_capabilities,
        profile=recipe.profile.sizes(),
    )


def _made(make: Any, library: TensorRT, log: Any) -> Any:
    """What `make` gives; TensorRT itself raises a TypeError that says nothing."""
    try:
        return make()
    except TypeError as error:
        raise UsageError(
            f"{library.name} {library.version}: cannot start: {log.last()}; it needs an NVIDIA "
            "GPU and driver, or use a recipe of tensorrt-rtx, which needs none"
        ) from error


def _strongly_typed(trt: Any) -> int:
    """The flag of strongly typed networks; TensorRT 11 has no others and no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(library: TensorRT, network: Any, log: Any, graph: Path) -> None:
    parser = library.api.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return
    error = parser.get_error(0)
    operator, node = error.node_operator(), error.node_name()
    raise PidepError(
        f"{graph.name}: {library.name} {library.version} cannot read node {node!r} ({operator}): "
        f"{_line(error.desc())}; export it with opset 20, or use a recipe of ONNX Runtime"
    )


def _set_capabilities(library: TensorRT, config: Any, recipe: Recipe) -> None:
    """Build for GPUs that this machine does not have; for its own GPU where none is named."""
    wanted = [library.capability(text) for text in recipe.compute_capabilities]
    if wanted:
        config.num_compute_capabilities = len(wanted)
        for number, capability in enumerate(wanted):
            config.set_compute_capability(capability, number)


def _log_of(library: TensorRT) -> Any:
    """A logger of the library that keeps its errors and passes the rest on to `logging`."""
    trt = library.api

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            _LOG.debug("%s", message)

        def last(self) -> str:
            """The last error as one line."""
            return _line(self.errors[-1]) if self.errors else "without a reason"

    return Log()


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
