import shutil
from pathlib import Path

import numpy as np
import pytest

from pidep.artifacts.expert_record import ExpertRecord
from pidep.artifacts.names import EXPERT_RECORD
from pidep.errors import ExpertError
from pidep.similarity import index as index_module
from pidep.similarity.index import TaskIndex
from pidep.similarity.measures import TensorLayout, most_similar
from pidep.similarity.sketch import Sketcher
from tests.similarity.samples import structured_tasks, write_task

MANY = 400
TASKS = structured_tasks(MANY)


@pytest.fixture(scope="session")
def large_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with more tasks than a query compares exactly. Tests must not change it."""
    pool = tmp_path_factory.mktemp("pool")
    for name, embedding in TASKS.items():
        write_task(pool, name, embedding)
    TaskIndex.open(pool)
    return pool


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    for name in list(TASKS)[:12]:
        write_task(tmp_path, name, TASKS[name])
    return tmp_path


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets an entry for every sketch that is made."""
    calls: list[int] = []
    original = Sketcher.__call__

    def spy(self, vector):
        calls.append(len(vector))
        return original(self, vector)

    monkeypatch.setattr(Sketcher, "__call__", spy)
    return calls


def exact(target: dict[str, np.ndarray], leave_out: str) -> dict[str, float]:
    """The three most similar tasks, by the formula, over all tasks at once."""
    cosines = []
    for tensor, own in target.items():
        others = np.stack([embedding[tensor].ravel() for embedding in TASKS.values()]).astype(
            np.float64
        )
        share, rest = own.ravel() / (own.ravel() + others), others / (own.ravel() + others)
        cosines.append(
            (share * rest).sum(1) / np.linalg.norm(share, axis=1) / np.linalg.norm(rest, axis=1)
        )
    scores = dict(zip(TASKS, np.mean(cosines, 0).tolist(), strict=True))
    del scores[leave_out]
    return {name: scores[name] for name in sorted(scores, key=lambda name: -scores[name])[:3]}


def test_recall_at_3_against_exact(large_pool: Path) -> None:
    index = TaskIndex.open(large_pool)
    assert len(index) == MANY > index_module.WIDEST
    found = []
    for name in index.names[::16]:
        expected = exact(TASKS[name], name)
        near = index.top_k(TASKS[name], 3, exclude={name})
        assert [one.similarity for one in near] == sorted(
            (one.similarity for one in near), reverse=True
        )
        assert all(
            one.similarity == pytest.approx(expected[one.name])
            for one in near
            if one.name in expected
        )
        found.append(len(expected.keys() & {one.name for one in near}) / 3)
    assert np.mean(found) >= 0.95


def test_a_query_of_another_scale_finds_its_like(large_pool: Path) -> None:
    index = TaskIndex.open(large_pool)
    found = []
    for name in index.names[::20]:
        target = {tensor: array * np.float32(1e-11) for tensor, array in TASKS[name].items()}
        found.append(
            len(
                exact(target, name).keys()
                & {near.name for near in index.top_k(target, 3, exclude={name})}
            )
            / 3
        )
    assert np.mean(found) >= 0.95


def test_few_embeddings_are_read_for_a_query(
    large_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = TaskIndex.open(large_pool)
    reads: list[Path] = []
    original = index_module.read_tensors
    monkeypatch.setattr(
        index_module, "read_tensors", lambda path: (reads.append(path), original(path))[1]
    )
    index.top_k(TASKS[index.names[0]], 3)
    assert 3 <= len(reads) < MANY / 4
    assert len(set(reads)) == len(reads)


def test_all_pairs_agree_with_single_queries(large_pool: Path) -> None:
    index = TaskIndex.open(large_pool)
    every = dict(index.all_top_k(3))
    assert list(every) == index.names
    recall = []
    for name in index.names[::20]:
        assert all(near.name != name for near in every[name])
        recall.append(
            len(exact(TASKS[name], name).keys() & {near.name for near in every[name]}) / 3
        )
        assert (
            every[name][0].similarity
            >= index.top_k(TASKS[name], 1, exclude={name})[0].similarity - 1e-12
        )
    assert np.mean(recall) >= 0.95


def test_a_small_pool_is_exact(pool: Path) -> None:
    index = TaskIndex.open(pool)
    others = {name: TASKS[name] for name in index.names[1:]}
    name = index.names[0]
    assert index.top_k(TASKS[name], 5, exclude={name}) == most_similar(TASKS[name], others, top_k=5)
    for task, near in index.all_top_k(20):
        assert near == most_similar(
            TASKS[task], {other: TASKS[other] for other in index.names if other != task}, top_k=20
        )


def test_only_what_is_new_or_changed_is_sketched(pool: Path, sketched: list[int]) -> None:
    names = TaskIndex.open(pool).names
    assert len(sketched) == 12
    TaskIndex.open(pool)
    assert len(sketched) == 12
    write_task(pool, "new", TASKS["task-0100"])
    assert "new" in TaskIndex.open(pool).names
    assert len(sketched) == 13
    write_task(pool, names[0], {name: array * 2 for name, array in TASKS["task-0101"].items()})
    TaskIndex.open(pool)
    assert len(sketched) == 14
    shutil.rmtree(pool / names[1])
    assert names[1] not in TaskIndex.open(pool).names
    TaskIndex.open(pool)
    assert len(sketched) == 14


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_sketch_file_is_made_again(pool: Path, sketched: list[int], damage: str) -> None:
    TaskIndex.open(pool)
    path = pool / ".sketches.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data if damage == "flipped" else data[:-100])
    TaskIndex.open(pool)
    assert len(sketched) == 24
    TaskIndex.open(pool)
    assert len(sketched) == 24


def test_adding_a_task_costs_one_sketch(pool: Path, sketched: list[int]) -> None:
    index = TaskIndex.open(pool)
    own = TASKS["task-0200"]
    assert index.top_k(own, 1)[0].similarity < 0.999
    write_task(pool, "twin", own)
    index.add("twin")
    assert len(sketched) == 14  # the short list of twelve, the query, and the new task
    near = index.top_k(own, 1)[0]
    assert (near.name, near.similarity) == ("twin", pytest.approx(1))
    write_task(pool, "twin", TASKS["task-0201"])
    index.add("twin")
    assert len(index) == 13
    assert index.top_k(own, 1)[0].similarity < 0.999
    assert TaskIndex.open(pool).names == index.names
    # two queries and one new sketch: opening the index again made no other
    assert len(sketched) == 17


def test_a_stale_sketch_never_changes_a_figure(pool: Path) -> None:
    index = TaskIndex.open(pool)
    write_task(pool, index.names[0], TASKS["task-0300"])
    near = {one.name: one.similarity for one in index.top_k(TASKS["task-0300"], 12)}
    assert near[index.names[0]] == pytest.approx(1)


def test_a_pool_that_cannot_be_written_still_answers(
    pool: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("pidep.files.cache_file.write_bytes", refuse)
    assert len(TaskIndex.open(pool).top_k(TASKS["task-0000"], 3)) == 3
    assert "not cached" in caplog.text


def test_what_does_not_belong_is_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="no expert with a task embedding"):
        TaskIndex.open(tmp_path / "absent")
    index = TaskIndex.open(pool)
    with pytest.raises(ExpertError, match="absent: no task embedding"):
        index.add("absent")
    write_task(pool, "narrow", {"x.lora_A": np.ones((1, 2), np.float32)})
    with pytest.raises(
        ExpertError,
        match=r"fisher\.safetensors: cannot be compared with 'narrow': .* different sites",
    ):
        TaskIndex.open(pool)
    shutil.rmtree(pool / "narrow")
    write_task(pool, "stranger", TASKS["task-0001"], backbone_digest="sha256:c")
    with pytest.raises(
        ExpertError, match=r"task-0000: expert of another backbone .* than 'stranger'"
    ):
        TaskIndex.open(pool)
    shutil.rmtree(pool / "stranger")
    record = ExpertRecord.read(pool / "task-0000" / EXPERT_RECORD)
    record.model_copy(update={"schema_version": 9}).write(pool / "task-0000" / EXPERT_RECORD)
    with pytest.raises(ExpertError, match=r"task-0000/expert\.json: schema 9, this pidep reads"):
        TaskIndex.open(pool)
    with pytest.raises(ExpertError, match="different sites"):
        index.top_k({"x": np.ones(3, np.float32)}, 1)


def test_sketch_distances_are_those_of_the_centred_logarithms() -> None:
    layout = TensorLayout.of(TASKS["task-0000"])
    sketcher = Sketcher(layout)
    ratios = []
    for left, right in [(f"task-{row:04}", f"task-{row + 50:04}") for row in range(100)]:
        first, second = (
            np.log(layout.vector(TASKS[name]).astype(np.float64)) for name in (left, right)
        )
        spread = np.mean([np.var(first[span] - second[span]) for span in layout.spans])
        distance = np.sum(
            (sketcher(layout.vector(TASKS[left])) - sketcher(layout.vector(TASKS[right]))) ** 2
        )
        ratios.append(distance / spread)
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert np.std(ratios) < 0.15


def test_a_sketch_is_the_same_everywhere() -> None:
    layout = TensorLayout.of({"s.x": np.ones(5, np.float32)})
    found = Sketcher(layout)(np.float32([1, 2, 4, 8, 16]))
    step = np.log(2) / 5**0.5
    pinned = {155: -2 * step, 175: -2 * step, 236: step, 244: step}
    assert {int(row): float(found[row]) for row in np.flatnonzero(found.round(4))} == pytest.approx(
        pinned, abs=1e-5
    )
    assert not Sketcher(layout)(np.zeros(5, np.float32)).any()
