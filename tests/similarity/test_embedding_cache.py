from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidep.files.cache_file import read_cached, write_cached
from pidep.similarity import embedding_cache
from pidep.similarity.embedding_cache import cached_fisher
from pidep.similarity.fisher import diagonal_fisher
from tests.conftest import make_expert

TEXTS, LABELS = ["good film", "bad film", "a great film"], [1, 0, 1]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the experts whose Fisher was really computed."""
    names: list[str] = []

    def spy(backbone, expert, *arguments, **options):
        names.append(expert.name)
        return diagonal_fisher(backbone, expert, *arguments, **options)

    monkeypatch.setattr(embedding_cache, "diagonal_fisher", spy)
    return names


def test_a_hit_computes_nothing(tiny, tmp_path: Path, computed: list[str]) -> None:
    expert = make_expert(tiny)
    first = cached_fisher(tmp_path, tiny, expert, TEXTS, LABELS, data_digest="d")
    second = cached_fisher(
        tmp_path, tiny, replace(expert, name="renamed"), TEXTS, LABELS, data_digest="d"
    )
    assert computed == ["film"]
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(
        next(iter(first.values())),
        next(iter(diagonal_fisher(tiny, expert, TEXTS, LABELS).values())),
    )


def test_whatever_decides_the_numbers_is_part_of_the_key(
    tiny, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = make_expert(tiny)

    def ask(expert=expert, texts=TEXTS, labels=LABELS, data_digest="d", **options) -> None:
        cached_fisher(tmp_path, tiny, expert, texts, labels, data_digest=data_digest, **options)

    ask()
    ask(batch_size=1)  # the batch size changes only the time here
    assert len(computed) == 1
    ask(expert=make_expert(tiny, seed=1))
    ask(data_digest="other")
    ask(texts=TEXTS[:2], labels=LABELS[:2])
    ask(kind="true")
    ask(kind="true", seed=1)
    ask(kind="batch_squared")
    ask(kind="batch_squared", batch_size=2)
    assert len(computed) == 8
    monkeypatch.setattr(embedding_cache, "FORMAT", 2)
    ask()
    monkeypatch.setattr(tiny, "digest", "sha256:another")
    ask()
    assert len(computed) == 10


def test_adding_a_task_costs_one_embedding(tiny, tmp_path: Path, computed: list[str]) -> None:
    pool = [make_expert(tiny, name=f"task{seed}", seed=seed) for seed in range(3)]
    for known in (pool, [*pool, make_expert(tiny, name="new", seed=9)]):
        for expert in known:
            cached_fisher(tmp_path, tiny, expert, TEXTS, LABELS, data_digest=expert.name)
    assert computed == ["task0", "task1", "task2", "new"]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "text", "swapped"])
def test_damage_is_computed_again_never_trusted(
    tiny, tmp_path: Path, computed: list[str], damage: str
) -> None:
    expert = make_expert(tiny)
    first = cached_fisher(tmp_path, tiny, expert, TEXTS, LABELS, data_digest="d")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    if damage == "swapped":  # a sound file under another file's name
        cached_fisher(tmp_path, tiny, expert, TEXTS, LABELS, data_digest="e")
        (other,) = set(tmp_path.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
        computed.pop()
    else:
        flipped = bytearray(data)
        flipped[-5] ^= 1
        path.write_bytes(
            {
                "flipped": bytes(flipped),
                "truncated": data[:-9],
                "empty": b"",
                "text": b"not safetensors",
            }[damage]
        )
    again = cached_fisher(tmp_path, tiny, expert, TEXTS, LABELS, data_digest="d")
    assert computed == ["film", "film"]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert path.read_bytes() == data


def test_a_folder_that_cannot_be_written_costs_time_only(
    tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    found = cached_fisher(
        tmp_path / "file", tiny, make_expert(tiny), TEXTS, LABELS, data_digest="d"
    )
    assert found
    assert "not cached" in caplog.text


def test_a_cache_file_belongs_to_its_key(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_cached(path, {"a": np.arange(3)}, key="one")
    found = read_cached(path, key="one")
    assert found is not None
    assert found["a"].tolist() == [0, 1, 2]
    assert read_cached(path, key="two") is None
    assert read_cached(tmp_path / "missing", key="one") is None
