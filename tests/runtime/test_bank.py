"""The bank through a real exported graph of a tiny backbone."""

from pathlib import Path

import numpy as np
import pytest

from pidep.errors import ExpertError, ServingError
from pidep.experts.folder import write_expert
from pidep.runtime.bank import Answer, Bank, Generation
from pidep.runtime.reader import Question
from pidep.serving.store import ExpertStore
from pidep.serving.watcher import Watcher
from tests.conftest import make_expert
from tests.runtime.exported import export_bank_folder

pytestmark = pytest.mark.slow  # a graph is compiled

TEXTS = ["the film was good", "awful", "a very bad film was the great film", "great"]


@pytest.fixture(scope="session")
def bank_folder(tiny_folder, tmp_path_factory) -> Path:
    from pidep.backbones.load import load_backbone

    return export_bank_folder(load_backbone(str(tiny_folder)), tmp_path_factory.mktemp("repo"))


def answers(bank: Bank, generation: Generation, texts: list[str], names: list[str]) -> list[Answer]:
    found = bank.run(generation, [Question(text) for text in texts], names)
    assert all(isinstance(answer, Answer) for answer in found)
    return found  # type: ignore[return-value]


def test_mixed_batch_equals_the_rows_alone(tiny, bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    generation = bank.build({"a": make_expert(tiny, seed=1), "b": make_expert(tiny, seed=2, rank=4, scaling=0.5)})
    names = ["a", "b", "b", "a"]
    together = answers(bank, generation, TEXTS, names)
    for text, name, mixed in zip(TEXTS, names, together, strict=True):
        (alone,) = answers(bank, generation, [text], [name])
        np.testing.assert_allclose(mixed.scores, alone.scores, atol=1e-5, rtol=0)
        assert mixed.digest == alone.digest
    assert np.abs(together[0].scores - answers(bank, generation, TEXTS[:1], ["b"])[0].scores).max() > 1e-3


def test_bank_equals_pytorch(tiny, bank_folder: Path) -> None:
    import torch

    from pidep.adapters.mixture import Mixture, attached

    expert = make_expert(tiny, seed=3)
    bank = Bank(bank_folder)
    with attached(tiny.model, Mixture.of([expert])):
        logits = 20.0 * tiny.encode(TEXTS, max_length=12) @ torch.from_numpy(expert.label_embeddings).T
    found = answers(bank, bank.build({"x": expert}), TEXTS, ["x"] * 4)
    np.testing.assert_allclose([answer.scores for answer in found], torch.softmax(logits, 1).numpy(), atol=1e-5, rtol=0)


def test_an_unknown_expert_is_that_rows_error_only(tiny, bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    first, second = bank.run(bank.build({"a": make_expert(tiny)}), [Question(text) for text in TEXTS[:2]], ["nope", "a"])
    assert isinstance(first, ExpertError)
    assert "unknown expert 'nope'; this server has: a" in str(first)
    assert isinstance(second, Answer)


def test_rows_of_unchanged_experts_are_kept(tiny, bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    one = bank.build({"a": make_expert(tiny, seed=1)})
    two = bank.build({"0": make_expert(tiny, seed=2), "a": make_expert(tiny, seed=1)}, one)
    assert two.rows == {"0": 1, "a": 2}
    for name, array in one.factors.items():
        assert np.array_equal(array[1], two.factors[name][2])


def test_experts_that_do_not_fit_are_refused(tiny, bank_folder: Path) -> None:
    from dataclasses import replace

    bank = Bank(bank_folder)
    with pytest.raises(ExpertError, match="made for another backbone"):
        bank.build({"a": replace(make_expert(tiny), backbone_digest="sha256:0")})
    with pytest.raises(ExpertError, match="rank 5 and width 16, the bank needs rank <= 4"):
        bank.build({"a": make_expert(tiny, rank=5)})


def test_a_changed_graph_is_refused(bank_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bank_folder, tmp_path / "1")
    with open(tmp_path / "1" / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ServingError, match=r"model\.onnx: digest .* expected"):
        Bank(tmp_path / "1")


def test_watcher_follows_and_survives_a_broken_version(tiny, bank_folder: Path, tmp_path: Path) -> None:
    store = ExpertStore(tmp_path / "store")
    old = store.publish(make_expert(tiny, seed=1), "a")
    watcher = Watcher(Bank(bank_folder), store)
    watcher.refresh()
    assert watcher.generation.digests == {"a": old}
    new = store.publish(make_expert(tiny, seed=2), "a")
    weights = store.version(new) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    watcher.refresh()
    assert watcher.generation.digests == {"a": old}
    weights.write_bytes(whole)
    store.publish(make_expert(tiny, seed=3, name="b"), "b")
    watcher.refresh()
    assert watcher.generation.digests["a"] == new


def test_publishing_again_changes_nothing_and_repairs_damage(tiny, tmp_path: Path) -> None:
    store = ExpertStore(tmp_path / "store")
    expert = make_expert(tiny)
    digest = store.publish(expert, "a")
    before = store.manifest()
    assert store.publish(expert, "a") == digest
    assert store.manifest() == before
    (store.version(digest) / "labels.safetensors").write_bytes(b"")
    store.publish(expert, "a")
    assert store.load(digest).digest == digest


def test_a_version_of_another_digest_is_refused(tiny, tmp_path: Path) -> None:
    store = ExpertStore(tmp_path / "store")
    digest = store.publish(make_expert(tiny), "a")
    write_expert(make_expert(tiny, seed=9), store.version(digest))
    with pytest.raises(ExpertError, match="publish it again"):
        store.load(digest)
