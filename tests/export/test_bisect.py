"""A refused graph: the gate names the first node whose numbers are not PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pidep.artifacts.names import BACKBONE, BANK, GRAPH, VERSION
from pidep.deployment.release import release_bank
from pidep.errors import ParityError
from pidep.export import Recipe, Source, compile, export_merged, load_recipe
from pidep.export.bisect import Bisection
from pidep.export.graph import bank_modules, merged_modules
from pidep.runtime.bank import Bank
from tests.cli.run import untouched
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK, int8_recipe, noisy

pytestmark = pytest.mark.slow  # graphs are compiled
DENSE = "encoder.layer.1.intermediate.dense"


def constant_of(model: Any, module: str) -> tuple[Any, str]:
    """The matrix of a Linear of the tiny backbone, and the name of the node that reads it."""
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    wide = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and shapes.get(node.input[1]) == (16, 32)
    ]
    node = wide[int(module.split(".")[2])]  # by its layer: only `intermediate.dense` is so wide
    return next(one for one in model.graph.initializer if one.name == node.input[1]), node.name


def break_graphs(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Graphs are changed after they were exported and before they are quantised."""
    right = compile.in_precision

    def broken(graph: Path, *arguments: Any, **options: Any) -> Any:
        model = onnx.load(graph)
        beside = graph.with_name(f"{graph.name}.data")
        change(model)
        if beside.exists():
            beside.unlink()
            how = {"save_as_external_data": True, "location": beside.name, "size_threshold": 256}
            onnx.save(model, graph, **how)
        else:
            onnx.save(model, graph)
        return right(graph, *arguments, **options)

    monkeypatch.setattr(compile, "in_precision", broken)


def shifted(array: np.ndarray) -> np.ndarray:
    out = array.copy()
    out.flat[::3] += np.asarray(2.0, array.dtype)
    return out


def perturb(tensor: Any) -> None:
    changed = shifted(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))


def beside(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"weights": "beside"})


def refused(backbone: Any, folder: Path, form: str, recipe: Recipe) -> str:
    """The message of an export that the gate refuses; nothing of it is left."""
    source = Source(make_expert(backbone, sites=["*query", "*value"]), TASK, ROWS)
    (folder / "repo").mkdir()
    release: Any = {"bank": release_bank, "merged": export_merged}[form]
    given: Any = [source] if form == "bank" else source
    with untouched(folder), pytest.raises(ParityError) as found:
        release(given, folder / "repo", recipe)
    return str(found.value)


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("merged", "fp32"),
        ("bank", "fp32"),
        ("merged", "fp32 beside"),
        ("merged", "fp16"),
        ("merged", "int8"),
        ("bank", "int8"),
    ],
)
def test_a_broken_weight_is_found(
    backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, precision: str
) -> None:
    node = []

    def change(model: Any) -> None:
        weight, name = constant_of(model, DENSE)
        node.append(name)
        perturb(weight)

    break_graphs(monkeypatch, change)
    recipe = {
        "fp32": load_recipe("onnx-cpu"),
        "fp32 beside": beside(load_recipe("onnx-cpu")),
        "fp16": load_recipe("onnx-cuda-fp16"),
        "int8": int8_recipe(),
    }[precision]
    strict = recipe.tolerance.model_copy(update={"max_abs": 1e-3})
    message = refused(backbone, tmp_path, form, recipe.model_copy(update={"tolerance": strict}))
    assert message.startswith("parity of 'film': ")
    assert f"; first beyond tolerance: {DENSE} (node" in message
    assert f"'{node[0]}" in message  # int8 gives the node a longer name
    assert " outputs before it agree; nothing was published" in message
    assert "\n" not in message
    assert ("int8 is bounded by the metric" in message) == (precision == "int8")


def test_a_broken_output_and_a_broken_input_are_found(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(name: str) -> Callable[[Any], None]:
        return lambda model: perturb(
            next(one for one in model.graph.initializer if one.name == name)
        )

    with monkeypatch.context() as patch:
        break_graphs(patch, change("permute"))
        (tmp_path / "labels").mkdir()
        message = refused(shallow, tmp_path / "labels", "merged", load_recipe("onnx-cpu"))
    assert "first beyond tolerance: the output (node 'node_matmul'): max abs" in message
    with monkeypatch.context() as patch:
        break_graphs(patch, change("model.embeddings.word_embeddings.weight"))
        (tmp_path / "words").mkdir()
        message = refused(shallow, tmp_path / "words", "merged", load_recipe("onnx-cpu"))
    assert "first beyond tolerance: embeddings.word_embeddings (node 'node_embedding')" in message
    assert "no output is before it; nothing was published" in message


def test_rounding_is_called_rounding(shallow: Any, tmp_path: Path) -> None:
    recipe = load_recipe("onnx-cpu")
    strict = recipe.tolerance.model_copy(update={"max_abs": 1e-12})
    recipe = recipe.model_copy(update={"tolerance": strict})
    message = refused(shallow, tmp_path, "merged", recipe)
    assert "; no node of 2" in message
    assert "is beyond 1e-04 of its largest value, the furthest is" in message


def test_what_fails_on_the_way_does_not_hide_the_refusal(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory\nat all")

    monkeypatch.setattr("pidep.export.bisect.open_session", failing)
    recipe = load_recipe("onnx-cpu")
    strict = recipe.tolerance.model_copy(update={"max_abs": 1e-12})
    message = refused(shallow, tmp_path, "merged", recipe.model_copy(update={"tolerance": strict}))
    assert message.startswith("parity of 'film': max abs error is")
    assert message.endswith("; no node was named (RuntimeError: no memory); nothing was published")


@pytest.mark.parametrize("mixed", [False, True])
def test_a_right_bank_of_all_kinds_is_beyond_nowhere(
    shallow: Any, tmp_path: Path, mixed: bool
) -> None:
    """Also where a prompt that is shorter than the bank's moves the tokens of its row."""
    kinds = ("lora", "adapter", "prefix", "prompt", "bitfit")
    sources = [Source(noisy(shallow, kind), TASK, ROWS) for kind in kinds]
    release_bank(sources, tmp_path / "repo", load_recipe("onnx-cpu"))
    version = tmp_path / "repo" / BANK / VERSION
    bank = Bank(version)
    residents = bank.build({source.expert.name: source.served for source in sources})
    found = Bisection(
        bank,
        version / GRAPH,
        lambda: bank_modules(shallow, bank.groups, opset=load_recipe("onnx-cpu").opset),
        shallow,
        "fp32",
    )
    for source in sources:
        names = [source.expert.name, *([BACKBONE] if mixed else [])]
        session = bank.session

        def ask(row: Any, names: list[str] = names) -> object:
            return bank.run(residents, [row] * len(names), names)

        said = found.first_beyond(source, ROWS.rows[2], ask=ask)
        assert said.startswith("; no node of 2"), said
        assert bank.session is session


def test_values_of_modules(shallow: Any) -> None:
    found = merged_modules(shallow, make_expert(shallow, sites=["*query"]), opset=20)
    linears = [name for name in found if name.endswith("dense") or "self." in name]
    assert sorted(linears) == [
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.attention.self.key",
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.value",
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.0.output.dense",
    ]
    assert all(len(values) == 1 for values in found.values()), found
