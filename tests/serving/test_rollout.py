"""Canary and shadow inside the served model: shares, keys, counts, and candidates that fail."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.artifacts.manifest import Canary, Manifest, Route
from pidep.inputs.row import Row
from pidep.serving import ExpertStore, routes
from pidep.serving.rollout import Rollout, content_key, rollouts_of, versions_of
from pidep.serving.triton_model import TritonPythonModel
from tests.serving import backend_utils
from tests.serving.experts import small_expert
from tests.serving.rolled_out import LONG, ask, failing_expert, model_of, status
from tests.serving.small_bank import write_small_bank

A, B, C = (small_expert(seed=seed) for seed in range(3))


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    write_small_bank(tmp_path / "repo")
    store = ExpertStore(tmp_path / "expert_store")
    routes.add(store, "film", A)
    routes.add(store, "book", C)
    return store


@pytest.fixture
def model(
    store: ExpertStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TritonPythonModel]:
    model = model_of(tmp_path / "repo", monkeypatch)
    yield model
    model.finalize()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def follow(model: TritonPythonModel, store: ExpertStore) -> None:
    """Wait until the model follows the store's manifest."""
    until(lambda: status(model)["revision"] == store.manifest().revision)


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("canary", [B.digest, C.digest])
def test_the_share_is_within_the_binomial_band(weight: float, canary: str) -> None:
    rollout, number = Rollout("film", A.digest, canary, weight), 20_000
    found = sum(rollout.role(b"user-%d" % at) == "canary" for at in range(number))
    # 99.9 % of binomial samples lie within 3.29 standard deviations.
    assert abs(found - number * weight) <= 3.29 * math.sqrt(number * weight * (1 - weight))


@given(st.binary(max_size=40), st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_a_larger_weight_keeps_the_keys_of_the_canary(key: bytes, one: float, two: float) -> None:
    small, large = (Rollout("film", "s", "c", weight).role(key) for weight in sorted((one, two)))
    assert small == "stable" or large == "canary"


def test_another_canary_meets_other_keys() -> None:
    keys = [b"%d" % at for at in range(2000)]
    first, second = (
        {key for key in keys if Rollout("film", "s", canary, 0.1).role(key) == "canary"}
        for canary in (B.digest, C.digest)
    )
    assert len(first & second) < len(first) / 2


def test_the_content_is_the_key_of_a_row_without_one() -> None:
    rows = [Row("ab"), Row("a", columns={"b": 1}), Row("a", image=b"b"), Row("a"), Row("")]
    assert len({content_key(row) for row in rows}) == len(rows)
    assert content_key(Row("a", columns={"x": 1, "y": 2})) == content_key(
        Row("a", columns={"y": 2, "x": 1}, where="row 9")
    )


def test_the_names_of_versions_and_what_is_not_loaded() -> None:
    route = Route(stable="s", canary=Canary(digest="c", weight=0.5), shadow="d")
    manifest = Manifest.of(3, {"film": route, "book": Route(stable="b")})
    held = versions_of(manifest)
    assert held == {"book": "b", "film": "s", "film@canary": "c", "film@shadow": "d"}
    assert rollouts_of(manifest, held) == {"film": Rollout("film", "s", "c", 0.5, "d")}
    assert rollouts_of(manifest, {"film": "s", "film@shadow": "d"}) == {
        "film": Rollout("film", "s", None, 0.0, "d")
    }
    assert rollouts_of(manifest, {"film": "s"}) == {}


def test_rows_are_shared_by_weight_and_stay_by_key(
    model: TritonPythonModel, store: ExpertStore
) -> None:
    routes.set_canary(store, "film", B, weight=0.5)
    follow(model, store)
    keys = [f"user-{at}" for at in range(64)]
    first = ask(model, ["good"] * 64, "film", keys)
    assert set(first) == {A.digest, B.digest}
    assert ask(model, ["bad"] * 64, "film", keys) == first
    # Without keys, equal rows meet one version.
    assert len(set(ask(model, ["good film"] * 64, "film"))) == 1
    counted = status(model)["rollouts"]["film"]
    assert counted["stable"]["rows"] + counted["canary"]["rows"] == 192
    assert counted["canary"]["weight"] == 0.5
    assert sum(counted["canary"]["labels"].values()) == counted["canary"]["rows"]
    # Other names, and versions that are asked for by name, are not touched and not counted.
    assert set(ask(model, ["good"] * 64, "book", keys)) == {C.digest}
    assert set(ask(model, ["good"] * 3, "film@canary")) == {B.digest}
    assert set(ask(model, ["good"] * 3, "film@stable")) == {A.digest}
    assert status(model)["rollouts"]["film"] == counted
    routes.promote_canary(store, "film")
    follow(model, store)
    assert set(ask(model, ["good"] * 64, "film", keys)) == {B.digest}
    assert status(model)["rollouts"] == {}


def test_a_batch_of_many_names_and_states_is_answered_in_order(
    model: TritonPythonModel, store: ExpertStore
) -> None:
    routes.set_canary(store, "film", B, weight=0.5)
    follow(model, store)
    names = ["book", "film", "film@canary", "film", "film@stable", "@status", "@backbone"] * 3
    requests = [
        backend_utils.Request(
            {"TEXT": [b"good"], "EXPERT": [name.encode()], "KEY": [b"%d" % number]}
        )
        for number, name in enumerate(names)
    ]
    found = [
        one.arrays["DIGEST"][0, 0].decode() for one in backend_utils.responses(model, requests)
    ]
    alone = [
        backend_utils.responses(model, [one])[0].arrays["DIGEST"][0, 0].decode() for one in requests
    ]
    assert found == alone
    assert len(set(found)) >= 4


def test_keys_of_another_number_than_rows_are_refused(model: TritonPythonModel) -> None:
    tensors = {"TEXT": [b"a", b"a"], "EXPERT": [b"film"] * 2, "KEY": [b"1"]}
    (response,) = backend_utils.responses(model, [backend_utils.Request(tensors)])
    assert "the request has 2 rows, KEY 1; give one key a row" in response.error.text
    tensors["KEY"] = [b"1", b"1" * 70_000]
    (response,) = backend_utils.responses(model, [backend_utils.Request(tensors)])
    assert "row 2: expected at most 65536 bytes of text" in response.error.text


def test_a_canary_that_fails_is_counted_and_the_stable_version_answers(
    model: TritonPythonModel, store: ExpertStore
) -> None:
    bad = failing_expert()
    routes.set_canary(store, "film", bad, weight=0.5)
    follow(model, store)
    keys = [str(at) for at in range(40)]
    assert set(ask(model, ["good"] * 40, "film", keys)) == {A.digest, bad.digest}
    assert set(ask(model, [LONG] * 40, "film", keys)) == {A.digest}
    counted = status(model)["rollouts"]["film"]
    assert counted["canary"]["errors"] == counted["canary"]["rows"] / 2 > 5
    assert counted["stable"]["errors"] == 0


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_a_damaged_candidate_leaves_everything_else_served(
    model: TritonPythonModel, store: ExpertStore, role: str
) -> None:
    canary = Canary(digest=B.digest, weight=0.5)
    route = Route(stable=A.digest)
    broken = store.version(B.digest)
    broken.mkdir()
    (broken / "expert.json").write_text("{")
    candidate = {"canary": canary} if role == "canary" else {"shadow": B.digest}
    named = store.manifest().routing({"film": route.model_copy(update=candidate)})
    named.write(store.folder)
    follow(model, store)
    found = status(model)
    assert found["refused"][f"film@{role}"]["digest"] == B.digest
    assert found["rollouts"] == {}
    keys = [str(at) for at in range(40)]
    assert set(ask(model, ["good"] * 40, "film", keys)) == {A.digest}
    assert set(ask(model, ["good"] * 40, "book", keys)) == {C.digest}


def test_a_new_canary_that_is_refused_does_not_keep_the_former_one(
    model: TritonPythonModel, store: ExpertStore
) -> None:
    routes.set_canary(store, "film", B, weight=0.5)
    follow(model, store)
    store.publish(C, "art")
    version = store.version(C.digest) / "labels.safetensors"
    whole = version.read_bytes()
    routes.remove(store, "art")
    now = store.manifest()
    version.write_bytes(b"")
    route = Route(stable=A.digest, canary=Canary(digest=C.digest, weight=0.5))
    now.routing({"film": route, "book": None}).write(store.folder)
    follow(model, store)
    keys = [str(at) for at in range(40)]
    assert set(ask(model, ["good"] * 40, "film", keys)) == {A.digest}
    version.write_bytes(whole)
    until(lambda: set(ask(model, ["good"] * 40, "film", keys)) == {A.digest, C.digest})


def test_a_shadow_answers_nobody_and_is_compared(
    model: TritonPythonModel, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["good", "bad film", "the film", "a", "good good film", "film"]
    before = ask(model, texts, "film")
    flipped = failing_expert()
    routes.set_shadow(store, "film", flipped)
    follow(model, store)
    assert ask(model, texts, "film") == before == [A.digest] * 6
    own = labels(model, texts, "film@stable")
    others = labels(model, texts, "film@shadow")
    shadow = status(model)["rollouts"]["film"]["shadow"]
    differ = sum(one != other for one, other in zip(own, others, strict=True))
    assert (shadow["rows"], shadow["agree"], shadow["disagree"]) == (6, 6 - differ, differ)
    assert differ > 0
    assert shadow["digest"] == flipped.digest
    assert len(shadow["examples"]) == min(5, differ)
    example = shadow["examples"][-1]
    assert example["text"] in texts
    assert example["stable"] != example["shadow"]
    monkeypatch.setenv("PIDEP_SHADOW_EXAMPLES", "0")
    ask(model, texts, "film")
    assert status(model)["rollouts"]["film"]["shadow"]["examples"] == []
    # A shadow that fails is counted, and the answers stay.
    assert ask(model, [LONG], "film") == [A.digest]
    assert status(model)["rollouts"]["film"]["shadow"]["errors"] == 1


def labels(model: TritonPythonModel, texts: list[str], expert: str) -> list[bytes]:
    tensors = {"TEXT": [text.encode() for text in texts], "EXPERT": [expert.encode()] * len(texts)}
    (response,) = backend_utils.responses(model, [backend_utils.Request(tensors)])
    return list(np.asarray(response.arrays["LABEL"])[:, 0])
