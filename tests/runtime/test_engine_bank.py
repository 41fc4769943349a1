"""A bank whose graph TensorRT runs: experts lie where the engine reads them. The GPU is played."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.adapters.kinds import KINDS
from pidep.artifacts import BankRecord
from pidep.artifacts.engine import EngineRecord
from pidep.artifacts.names import BACKBONE
from pidep.errors import AnswerError, ExpertError, ServingError
from pidep.experts.mixed import MixedExpert
from pidep.export import load_recipe
from pidep.export.recipe import Profile
from pidep.files.digest import file_digest
from pidep.inputs.row import Input, Row
from pidep.runtime import Answer, Bank
from pidep.runtime.arena import NoRoomError
from tests.conftest import png, save_tiny, tiny_mini
from tests.export.examples import noisy
from tests.runtime.exported import export_bank_folder
from tests.runtime.played_gpu import PlayedGpu

pytestmark = pytest.mark.slow  # a graph is compiled

ROWS: list[Input] = ["the film was good", Row("bad film", png(1)), "a very bad film"]
RECIPE = load_recipe("tensorrt-rtx-fp16")
PROFILE = Profile(batch=(1, 4, 16), length=(1, 8, 16), experts=(1, 4, 9), mixed=(1, 1, 2))


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from pidep.backbones.load import load_backbone

    return tiny_mini(load_backbone(str(save_tiny(tmp_path_factory.mktemp("tiny"), num_layers=1))))


@pytest.fixture(scope="module")
def entry(mini: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds in one graph, and its played engine."""
    folder = export_bank_folder(mini, tmp_path_factory.mktemp("repo"), kinds=list(KINDS))
    shutil.copyfile(folder / "model.onnx", folder / "model.plan")
    digest = file_digest(folder / "model.onnx")
    engine = EngineRecord(
        digest=digest,
        graph_digest=digest,
        library="tensorrt_rtx",
        library_version="1.7.1.116",
        compute_capabilities=("8.9",),
        profile=PROFILE.sizes(),
    )
    BankRecord.read(folder).model_copy(update={"engine": engine}).write(folder)
    return folder


@pytest.fixture
def gpu(entry: Path, monkeypatch: pytest.MonkeyPatch) -> PlayedGpu:
    engine = BankRecord.read(entry).engine
    assert engine is not None
    played = PlayedGpu(engine)
    for module in ("engine", "slot_memory"):
        monkeypatch.setattr(f"pidep.runtime.{module}.import_module", played.import_module)
    return played


@pytest.fixture
def bank(entry: Path, gpu: PlayedGpu) -> Bank:
    found = Bank(entry)
    assert found.place_of_experts == "engine"
    return found


@pytest.fixture(scope="module")
def experts(mini: Any) -> dict[str, Any]:
    """One of each kind, and a mixture."""
    found: dict[str, Any] = {kind: replace(noisy(mini, kind), max_length=16) for kind in KINDS}
    parts = (found["lora"], replace(found["lora"], name="half", scaling=0.5))
    alphas = dict.fromkeys(parts[0].sites, (0.25, 0.75))
    return {**found, "mixed": MixedExpert(replace(parts[0], sites={}), parts, alphas)}


def embeddings(bank: Bank, residents: Any, rows: list[Input], names: list[str]) -> np.ndarray:
    found = bank.run(residents, rows, names)
    assert all(isinstance(answer, Answer) for answer in found), found
    return np.array([answer.embedding for answer in found])  # type: ignore[union-attr]


def test_it_answers_as_the_graph_does(bank: Bank, entry: Path, experts: dict[str, Any]) -> None:
    graph = Bank(entry, use_engine=False)
    residents, others = bank.build(experts), graph.build(experts)
    names = [BACKBONE, *experts]
    rows = [row for row in ROWS[:2] for _ in names]
    found = embeddings(bank, residents, rows, names * 2)
    expected = embeddings(graph, others, rows, names * 2)
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert len({one.tobytes() for one in expected}) == len(expected)
    assert not bank.probe(residents, list(experts))


def test_a_swap_writes_where_the_engine_reads(
    bank: Bank, gpu: PlayedGpu, experts: dict[str, Any]
) -> None:
    residents = bank.build({"film": experts["lora"]})
    rows, names = ROWS[:1], ["film"]
    before = embeddings(bank, residents, rows, names)
    again = embeddings(bank, residents, rows, names)
    assert gpu.launched == 1  # the first run of a shape is recorded, the second one launches it
    np.testing.assert_array_equal(before, again)
    swapped = bank.build({"film": experts["adapter"]})
    after = embeddings(bank, swapped, rows, names)
    # The same CUDA graph over the same addresses: another slot number is all that changes.
    assert gpu.launched == 2
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(embeddings(bank, residents, rows, names), before)


def test_there_is_room_for_as_many_as_the_profile_takes(
    bank: Bank, experts: dict[str, Any]
) -> None:
    assert (bank.arena.capacity, bank.arena.most) == (9, 8)
    many = {f"e{at}": replace(experts["lora"], scaling=1.0 + at) for at in range(9)}
    residents = bank.build(dict(list(many.items())[:8]))
    assert len({slot.number for one in residents.by_name.values() for slot in one.slots}) == 8
    with pytest.raises(NoRoomError, match="export with more `experts` in the recipe's profile"):
        bank.place(many["e8"])


def test_what_the_engine_does_not_take_is_refused(bank: Bank, experts: dict[str, Any]) -> None:
    parts = tuple(replace(experts["lora"], scaling=one) for one in (0.1, 0.2, 0.3))
    alphas = dict.fromkeys(parts[0].sites, (0.2, 0.3, 0.5))
    three = MixedExpert(replace(parts[0], sites={}), parts, alphas)
    with pytest.raises(ExpertError, match="a mixture of 3 parts: the bank's engine takes 2; fold"):
        bank.place(three)
    residents = bank.build({"film": replace(experts["lora"], max_length=32)})
    short, long = bank.run(residents, ["good", "good film " * 12], ["film"] * 2)
    assert isinstance(short, Answer)
    assert isinstance(long, AnswerError)
    assert "the engine takes (1, 1) to (16, 16); send fewer rows or shorter" in str(long)


def test_threads_take_turns(bank: Bank, experts: dict[str, Any]) -> None:
    residents = bank.build(experts)
    rows = [ROWS[at % 3] for at in range(40)]
    names = [list(experts)[at % len(experts)] for at in range(40)]
    expected = [
        embeddings(bank, residents, [row], [name]) for row, name in zip(rows, names, strict=True)
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda row, name: embeddings(bank, residents, [row], [name]), rows, names)
        )
    np.testing.assert_array_equal(found, expected)


def test_memory_is_given_back(entry: Path, gpu: PlayedGpu, experts: dict[str, Any]) -> None:
    bank = Bank(entry)
    bank.build(experts)
    experts_at = [value.data_ptr() for value in bank.arena.values().values()]
    assert set(experts_at) <= gpu.memory.keys()
    del bank
    assert not set(experts_at) & gpu.memory.keys()


class FullGpu:
    """As another one, with no memory left."""

    def __init__(self, gpu: PlayedGpu) -> None:
        self._gpu = gpu

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)

    def cudaMalloc(self, _: int) -> tuple[int, int]:
        return 2, 0


def test_a_full_gpu_is_said(entry: Path, gpu: PlayedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only arrays of experts; what a batch needs was allocated before.
    monkeypatch.setattr("pidep.runtime.slot_memory.import_module", lambda _: FullGpu(gpu))
    with pytest.raises(ServingError, match=r"9 slots of experts need \d+ MiB on the GPU: CUDA: 2"):
        Bank(entry)
