"""TensorRT for RTX, really compiled without a GPU: engines, profiles, and what it cannot do."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from pidep.adapters.bank import bank_groups
from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import find_sites
from pidep.artifacts import BankRecord, MergedRecord
from pidep.backbones.load import load_any_backbone
from pidep.deployment.release import release_bank
from pidep.errors import PidepError, ServingError, UsageError
from pidep.experts.mixed import MixedExpert
from pidep.export import Recipe, Source, export_merged, load_recipe
from pidep.export.config_pbtxt import read_config
from pidep.export.graph import export_bank_graph, export_merged_graph
from pidep.export.tensorrt import compile_engine, find_library
from pidep.export.tensorrt.profile import optimisation_profile
from pidep.files.digest import file_digest
from pidep.runtime import Answer, Bank, Merged
from pidep.serving import ExpertStore
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK, noisy

pytestmark = pytest.mark.slow  # engines are compiled
tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for x86-64")


def recipe(**changes: Any) -> Recipe:
    """The shipped recipe for two GPUs, one before and one after TensorRT's support of fp8."""
    capabilities = {"compute_capabilities": ("8.0", "12.0")}
    return load_recipe("tensorrt-rtx-fp16").model_copy(update={**capabilities, **changes})


def bank_graph(backbone: Any, path: Path, kinds: Iterable[str], *, half: bool) -> None:
    groups = [
        group
        for kind in kinds
        for group in bank_groups(
            backbone.model, find_sites(backbone.model, kind=kind), kind=kind, size=2
        )
    ]
    export_bank_graph(backbone, groups, path, opset=20, half=half)


@pytest.fixture(scope="module")
def bank(shallow: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of all five kinds in fp16."""
    path = tmp_path_factory.mktemp("bank") / "model.onnx"
    bank_graph(shallow, path, KINDS, half=True)
    return path


def test_a_bank_of_all_kinds_is_compiled(bank: Path, tmp_path: Path) -> None:
    found = compile_engine(bank, tmp_path / "one.plan", recipe())
    assert found.digest == file_digest(tmp_path / "one.plan")
    assert found.graph_digest == file_digest(bank)
    assert (found.library, found.compute_capabilities) == ("tensorrt_rtx", ("8.0", "12.0"))
    assert found.profile["experts"] == (1, 9, 65)


def profile_of(graph: Path) -> dict[str, list[Any]]:
    """Input to its smallest, usual and largest shape, of a graph that TensorRT reads again."""
    trt = find_library("tensorrt_rtx").api
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(graph))
    profile = recipe().profile
    assert profile is not None
    made = optimisation_profile(builder, network, profile)
    names = [network.get_input(number).name for number in range(network.num_inputs)]
    return {name: made.get_shape(name) for name in names}


@pytest.mark.timeout(600)  # a graph of all kinds and all layers is traced
@pytest.mark.parametrize(
    "name", ["minilm", pytest.param("pidep-mini", marks=pytest.mark.exhaustive)]
)
def test_engines_of_real_backbones(name: str, tmp_path: Path) -> None:
    backbone = load_any_backbone(name)
    bank_graph(backbone, tmp_path / "bank.onnx", KINDS, half=True)
    expert = noisy(backbone, "lora")
    export_merged_graph(backbone, expert, tmp_path / "merged.onnx", opset=20, half=True)
    for form in ("bank", "merged"):
        graph, plan = tmp_path / f"{form}.onnx", tmp_path / f"{form}.plan"
        found = compile_engine(graph, plan, recipe())
        assert found.compute_capabilities == ("8.0", "12.0")
        # The weights of the backbone in fp16, once for each capability or for both.
        assert plan.stat().st_size > graph.stat().st_size / 2
        shapes = profile_of(graph)
        assert set(shapes) == {one.name for one in onnx.load(graph).graph.input}
        assert [tuple(shape) for shape in shapes["input_ids"]] == [(1, 1), (8, 32), (64, 128)]
        assert ("visual" in shapes) == (name == "pidep-mini")
        experts = {kind for kind in KINDS if any(one.startswith(kind) for one in shapes)}
        assert experts == (set(KINDS) if form == "bank" else set())


def test_every_open_axis_has_its_sizes(bank: Path) -> None:
    shapes = profile_of(bank)
    assert [tuple(shape) for shape in shapes["input_ids"]] == [(1, 1), (8, 32), (64, 128)]
    # Experts are inputs: a swap changes no engine.
    smallest, _, largest = next(
        shape for name, shape in shapes.items() if name.startswith("lora_a")
    )
    assert (smallest[0], largest[0]) == (1, 65)
    in_graph = {one.name for one in onnx.load(bank).graph.input}
    assert set(shapes) == in_graph


def test_a_backbone_that_reads_images_is_compiled(mini: Any, tmp_path: Path) -> None:
    bank_graph(mini, tmp_path / "model.onnx", ["lora"], half=False)
    found = compile_engine(tmp_path / "model.onnx", tmp_path / "model.plan", recipe())
    assert found.profile["places"] == (0, 17, 17)  # batches without an image, too


def small_graph(path: Path, *, domain: str = "", axis: str = "batch") -> Path:
    """One node `double` over `x` `[axis, 4]`."""
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [axis, 4]) for name in ("x", "y")
    ]
    node = helper.make_node(
        "Relu" if not domain else "Twice", ["x"], ["y"], "double", domain=domain
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("other", 1)]
    graph = helper.make_graph([node], "small", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("graph", "changes", "message"),
    [
        (
            {"axis": "beams"},
            {},
            r"input 'x': its axis 0 \(beams\) has no sizes; a profile has batch, length",
        ),
        (
            {},
            {"compute_capabilities": ("9.0",)},
            r"compute_capabilities: tensorrt_rtx .* builds no engine for 9\.0; it offers .*8\.0",
        ),
        ({}, {"runtime": "tensorrt"}, "tensorrt not found: pip install tensorrt"),
    ],
)
def test_a_recipe_that_cannot_be_had_is_one_line(
    tmp_path: Path, graph: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    path = small_graph(tmp_path / "model.onnx", **graph)
    with pytest.raises(UsageError, match=message):
        compile_engine(path, tmp_path / "model.plan", recipe(**changes))
    assert not (tmp_path / "model.plan").exists()


def test_an_operator_that_tensorrt_lacks_is_named(tmp_path: Path) -> None:
    path = small_graph(tmp_path / "model.onnx", domain="other")
    with pytest.raises(PidepError, match=r"cannot read node 'double' \(Twice\)"):
        compile_engine(path, tmp_path / "model.plan", recipe())


def test_a_merged_model_has_its_engine(
    shallow: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(replace(noisy(shallow, "lora"), name="film"), TASK, ROWS)
    with caplog.at_level(logging.WARNING):
        exported = export_merged(source, tmp_path / "repo", recipe())
    # Without a GPU, nobody pretends that the engine ran.
    assert exported.parity["film"].engine_ran is False
    assert "the engine was not run, this machine lacks" in caplog.text
    version = exported.folder / "1"
    record = MergedRecord.read(version)
    assert record.engine is not None
    assert record.engine.digest == file_digest(version / "model.plan")
    with pytest.raises(ServingError, match=r"model\.plan: needs .*export with a recipe of ONNX"):
        Merged(version)
    assert len(Merged(version, use_engine=False).run(["good"])[0].scores) == 2
    (version / "model.plan").write_bytes(b"another engine")
    with pytest.raises(ServingError, match=r"model\.plan: digest .*, expected"):
        Merged(version)


def bank_sources(backbone: Any) -> list[Source]:
    """An expert of each kind, and a mixture of two LoRAs by reference."""
    experts = [replace(noisy(backbone, kind), name=kind) for kind in KINDS]
    (lora,) = (expert for expert in experts if expert.kind == "lora")
    parts = (lora, replace(lora, name="half", scaling=1.0))
    head = replace(parts[0], name="mixed", sites={})
    mixed = MixedExpert(head, parts, dict.fromkeys(parts[0].sites, (0.5, 0.5)))
    return [
        *(Source(expert, TASK, ROWS) for expert in experts),
        Source(head, TASK, ROWS, mixture=mixed),
    ]


def test_a_bank_has_its_engine(
    shallow: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = bank_sources(shallow)
    with caplog.at_level(logging.WARNING):
        exported = release_bank(sources, tmp_path / "repo", recipe())
    assert set(exported.parity) == {*KINDS, "mixed"}
    # Without a GPU, nobody pretends that the engine ran.
    assert {parity.engine_ran for parity in exported.parity.values()} == {False}
    assert "the engine was not run, this machine lacks" in caplog.text
    version = exported.folder / "1"
    record = BankRecord.read(version)
    assert record.engine is not None
    assert record.engine.digest == file_digest(version / "model.plan")
    assert record.engine.graph_digest == record.graph_digest == file_digest(version / "model.onnx")
    assert record.engine.compute_capabilities == ("8.0", "12.0")
    assert record.engine.profile["experts"] == (1, 9, 65)
    config = read_config(exported.folder / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("pidep_bank", "python", 64)
    assert [one.name for one in config.input] == ["TEXT", "COLUMNS", "EXPERT", "KEY"]
    with pytest.raises(ServingError, match=r"model\.plan: needs .*export with a recipe of ONNX"):
        Bank(version)
    bank = Bank(version, use_engine=False)
    residents = bank.build(ExpertStore(tmp_path / "expert_store").published())
    names = [source.expert.name for source in sources]
    for name, answer in zip(names, bank.run(residents, ["good"] * 6, names), strict=True):
        assert isinstance(answer, Answer), (name, answer)
    (version / "model.plan").write_bytes(b"another engine")
    with pytest.raises(ServingError, match=r"model\.plan: digest .*, expected"):
        Bank(version)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"experts": (1, 2, 4)}, r"its profile has room for 3 experts, found 7; give `profile`"),
        ({"mixed": (1, 1, 1)}, r"mixture 'mixed': has 2 parts, the profile of .* takes 1; give"),
    ],
)
def test_more_than_the_profile_takes_is_refused_first(
    shallow: Any, tmp_path: Path, profile: dict[str, Any], message: str
) -> None:
    given = recipe()
    assert given.profile is not None
    given = given.model_copy(update={"profile": given.profile.model_copy(update=profile)})
    with pytest.raises(UsageError, match=message):
        release_bank(bank_sources(shallow), tmp_path / "repo", given)
    assert not list(tmp_path.rglob("model.*"))


def test_a_bank_for_a_gpu_that_is_not_offered_is_refused_first(
    shallow: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"builds no engine for 9\.0; it offers .*8\.9"):
        release_bank(
            bank_sources(shallow), tmp_path / "repo", recipe(compute_capabilities=("9.0",))
        )
    with pytest.raises(UsageError, match="tensorrt not found: pip install tensorrt"):
        release_bank(bank_sources(shallow), tmp_path / "repo", load_recipe("tensorrt-fp32"))
    assert not list(tmp_path.rglob("model.*"))


def test_what_cannot_be_served_is_refused_first(backbone: Any, tmp_path: Path) -> None:
    source = Source(make_expert(backbone, sites=["*query"]), TASK, ROWS)
    with pytest.raises(UsageError, match="`platform=tensorrt`: runs no model of recipe 'tensorrt-"):
        export_merged(source, tmp_path / "repo", recipe(), platform="tensorrt")
    assert not list(tmp_path.rglob("model.*"))
