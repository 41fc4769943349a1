"""Routes: each operation is one step and repeats harmlessly; gc keeps what counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.artifacts.manifest import Canary, Manifest, Route
from pidep.artifacts.route_history import RouteHistory
from pidep.errors import ExpertError, PidepError, ServingError, UsageError
from pidep.experts.mixed import MixedExpert
from pidep.serving import ExpertStore, routes
from pidep.serving.collect import collect_garbage
from pidep.serving.history import changes_of
from pidep.serving.store import Replaced
from tests.cli.run import untouched
from tests.serving.experts import small_expert
from tests.serving.whole_store import check_whole

A, B, C, D = (small_expert(seed=seed) for seed in range(4))


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    store = ExpertStore(tmp_path / "store")
    routes.add(store, "film", A)
    return store


def stable(store: ExpertStore) -> str:
    return store.manifest().aliases["film"]


def test_a_manifest_with_candidates_is_of_schema_2_and_goes_back_to_1(store: ExpertStore) -> None:
    plain = json.loads(store.manifest_path.read_text())
    assert plain["schema"] == 1
    routes.set_canary(store, "film", B, weight=0.1)
    routes.set_shadow(store, "film", C)
    assert json.loads(store.manifest_path.read_text()) == {
        "schema": 2,
        "generation": 3,
        "aliases": {"film": A.digest},
        "canaries": {"film": {"digest": B.digest, "weight": 0.1}},
        "shadows": {"film": C.digest},
    }
    routes.end_shadow(store, "film")
    routes.end_canary(store, "film")
    assert json.loads(store.manifest_path.read_text()) == {**plain, "generation": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, r"damaged manifest \(content: .*schema 1 has no canaries"),
        ({"aliases": {}}, r"'film' has a candidate and no stable version"),
        ({"canaries": {"film": {"digest": "sha256:1", "weight": 1}}}, "less than 1"),
        ({"schema": 3}, r"damaged manifest \(schema: Input should be 1 or 2, found '3'\)"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    store: ExpertStore, change: dict[str, Any], message: str
) -> None:
    routes.set_canary(store, "film", B, weight=0.1)
    values = json.loads(store.manifest_path.read_text())
    store.manifest_path.write_text(json.dumps({**values, **change}))
    with pytest.raises(ServingError, match=message):
        store.manifest()


def test_add_refuses_a_name_that_is_served(store: ExpertStore) -> None:
    with untouched(store.folder), pytest.raises(ExpertError, match="'film': is served already"):
        routes.add(store, "film", B)
    with untouched(store.folder):
        assert not routes.add(store, "film", A).is_change


def test_a_canary_is_promoted_once(store: ExpertStore) -> None:
    done = routes.set_canary(store, "film", B, weight=0.25)
    assert done.after == Route(stable=A.digest, canary=Canary(digest=B.digest, weight=0.25))
    assert routes.promote_canary(store, "film").after == Route(stable=B.digest)
    with untouched(store.folder):
        assert not routes.promote_canary(store, "film").is_change
    routes.promote(store, "film", C)
    routes.end_canary(store, "film")
    routes.set_shadow(store, "film", D)
    with pytest.raises(ExpertError, match="'film' has no canary; start one with"):
        routes.promote_canary(store, "film")


def test_a_canary_that_was_replaced_is_not_promoted(store: ExpertStore) -> None:
    routes.set_canary(store, "film", B, weight=0.25)
    routes.set_canary(store, "film", C, weight=0.25)
    with untouched(store.folder), pytest.raises(ExpertError, match="another canary meanwhile"):
        routes.promote_canary(store, "film", expected=B.digest)
    with untouched(store.folder):
        routes.end_canary(store, "film", expected=B.digest)


def test_a_damaged_canary_is_not_promoted(store: ExpertStore) -> None:
    routes.set_canary(store, "film", B, weight=0.25)
    (store.version(B.digest) / "labels.safetensors").write_bytes(b"")
    with untouched(store.folder), pytest.raises(ExpertError):
        routes.promote_canary(store, "film")


@pytest.mark.parametrize("weight", [0.0, 1.0, -1.0, float("nan")])
def test_a_weight_is_a_share(store: ExpertStore, weight: float) -> None:
    with untouched(store.folder), pytest.raises(UsageError, match="`weight`: expected a share"):
        routes.set_canary(store, "film", B, weight=weight)


def test_a_candidate_must_differ(store: ExpertStore) -> None:
    with untouched(store.folder), pytest.raises(ExpertError, match="is the stable version of"):
        routes.set_canary(store, "film", A, weight=0.5)
    routes.set_shadow(store, "film", B)
    # A shadow that becomes the canary is no shadow any more.
    assert routes.set_canary(store, "film", B, weight=0.5).after == Route(
        stable=A.digest, canary=Canary(digest=B.digest, weight=0.5)
    )
    with pytest.raises(ExpertError, match="is the canary of 'film' already"):
        routes.set_shadow(store, "film", B)


def test_a_candidate_with_other_labels_needs_permission(store: ExpertStore) -> None:
    other = replace(B, labels=("bad", "good"))
    with untouched(store.folder), pytest.raises(ExpertError, match="`allow_new_labels`"):
        routes.set_canary(store, "film", other, weight=0.5)
    assert routes.set_canary(store, "film", other, weight=0.5, allow_new_labels=True).is_change


def test_rollback_goes_one_step_back_and_repeats_harmlessly(store: ExpertStore) -> None:
    routes.promote(store, "film", B)
    routes.promote(store, "film", C)
    routes.set_canary(store, "film", D, weight=0.5)
    assert routes.rollback(store, "film").after == Route(stable=B.digest)
    with untouched(store.folder):
        assert not routes.rollback(store, "film").is_change
    # C was left behind: after the next promotion, the way back is B, and then A.
    routes.promote(store, "film", D)
    assert routes.rollback(store, "film").new == B.digest
    assert routes.rollback(store, "film", to=A.digest[7:15]).new == A.digest
    with pytest.raises(ExpertError, match=r"`to=sha256:9999`: no versions in the history"):
        routes.rollback(store, "film", to="sha256:9999")


def test_a_first_version_has_no_way_back(store: ExpertStore) -> None:
    with untouched(store.folder), pytest.raises(ExpertError, match="'film' has no former version"):
        routes.rollback(store, "film")
    with pytest.raises(ExpertError, match=r"unknown name 'films'; .* \(did you mean 'film'\?\)"):
        routes.rollback(store, "films")


def test_a_swap_that_was_undone_is_no_way_back(store: ExpertStore) -> None:
    routes.promote(store, "film", B)
    assert store.put_back(store.publish(C, "film", action="swap"))
    assert routes.rollback(store, "film").new == A.digest


def test_putting_back_restores_the_whole_route(store: ExpertStore) -> None:
    before = routes.set_canary(store, "film", B, weight=0.5).after
    assert store.put_back(routes.promote_canary(store, "film"))
    assert store.manifest().routes["film"] == before


def test_a_name_that_was_removed_comes_back(store: ExpertStore) -> None:
    routes.promote(store, "film", B)
    assert routes.remove(store, "film").after is None
    with untouched(store.folder):
        assert not routes.remove(store, "film").is_change
    collect_garbage(store, keep=1)
    assert routes.rollback(store, "film").new == B.digest
    with pytest.raises(ExpertError, match="unknown name 'art'"):
        routes.remove(store, "art")


def test_a_rollback_to_a_lost_version_changes_nothing(store: ExpertStore) -> None:
    routes.promote(store, "film", B)
    shutil.rmtree(store.version(A.digest))
    with untouched(store.folder), pytest.raises(ExpertError):
        routes.rollback(store, "film")


def test_the_history_says_who_what_and_when(store: ExpertStore) -> None:
    routes.set_canary(store, "film", B, weight=0.5)
    first, second = changes_of(store.folder, "film", store.manifest())
    assert (first.action, first.before, first.revision) == ("add", None, 1)
    assert (second.action, second.before, second.revision) == ("canary", first.after, 2)
    assert "@" in second.by
    assert second.at.endswith("Z")


def test_a_history_is_bounded(store: ExpertStore) -> None:
    for number in range(60):
        routes.promote(store, "film", (B, A)[number % 2])
    changes = changes_of(store.folder, "film", store.manifest())
    assert len(changes) == 50
    assert changes[-1].revision == 61


def test_a_change_that_a_crash_cut_off_is_not_in_the_history(store: ExpertStore) -> None:
    """Also where a release without histories has reached the change's revision since."""
    whole = store.manifest()
    routes.promote(store, "film", B)
    whole.write(store.folder)
    assert [one.action for one in changes_of(store.folder, "film", store.manifest())] == ["add"]
    Manifest(revision=2, aliases={"film": A.digest, "art": A.digest}).write(store.folder)
    assert [one.action for one in changes_of(store.folder, "film", store.manifest())] == ["add"]
    routes.promote(store, "film", C)
    assert [one.action for one in changes_of(store.folder, "film", store.manifest())] == [
        "add",
        "promote",
    ]


def test_a_version_of_a_release_without_histories_is_a_way_back(store: ExpertStore) -> None:
    """An older `pidep swap` has changed the name."""
    store.publish(B, "art")
    now = store.manifest()
    now.naming({"film": B.digest}).write(store.folder)
    assert routes.rollback(store, "film").new == A.digest


def test_a_damaged_history_stops_no_publication_but_every_removal(store: ExpertStore) -> None:
    RouteHistory.path(store.folder, "film").write_text("{")
    with pytest.raises(ServingError, match=r"film\.json: damaged history .*; restore or remove it"):
        collect_garbage(store)
    assert routes.promote(store, "film", B).is_change
    assert len(changes_of(store.folder, "film", store.manifest())) == 1


def test_garbage_is_what_nothing_names(store: ExpertStore) -> None:
    for expert in (B, C, D):
        routes.promote(store, "film", expert)
    left = store.versions / f".{'0' * 64}.left"
    left.mkdir()
    (store.versions / "notes").write_text("mine")
    found = collect_garbage(store, keep=1, dry_run=True)
    assert (set(found.removed), found.kept) == ({A.digest, B.digest}, 2)
    assert store.version(A.digest).is_dir()
    assert collect_garbage(store, keep=1) == found
    assert (found.leftovers, left.exists()) == (1, False)
    assert {path.name for path in store.versions.iterdir()} == {
        "notes",
        C.digest.removeprefix("sha256:"),
        D.digest.removeprefix("sha256:"),
    }
    assert collect_garbage(store, keep=1).removed == ()
    assert routes.rollback(store, "film").new == C.digest


def test_the_parts_of_a_mixture_are_no_garbage(store: ExpertStore) -> None:
    alphas = {"layer.0": [0.5, 0.5]}
    mixture = MixedExpert(head=replace(C, sites={}), parts=(B, C), alphas=alphas)
    routes.set_canary(store, "film", mixture, weight=0.5)
    assert collect_garbage(store).removed == ()
    assert store.load(mixture.digest).digest == mixture.digest
    record = store.version(mixture.digest) / "mixture.json"
    whole = record.read_text()
    record.write_text("{")
    with pytest.raises(ServingError, match="its parts are not known, so nothing is removed"):
        collect_garbage(store)
    record.write_text(whole)
    routes.end_canary(store, "film")
    assert len(collect_garbage(store).removed) == 3


def test_verify_names_what_is_damaged(store: ExpertStore) -> None:
    routes.promote(store, "film", B)
    routes.set_canary(store, "film", C, weight=0.5)
    routes.add(store, "book", B)
    (store.version(C.digest) / "labels.safetensors").write_bytes(b"")
    found = {one.digest: one for one in routes.verify(store)}
    assert found[B.digest].named_by == ("book", "film")
    assert found[A.digest].named_by == ("former",)
    assert [one.digest for one in found.values() if one.fault] == [C.digest]


Operation = Callable[[ExpertStore], Replaced]
NAMES = st.sampled_from(["film", "book"])
EXPERTS = st.sampled_from([A, B, C, D])
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(lambda n, e: lambda s: routes.add(s, n, e), NAMES, EXPERTS),
    st.builds(lambda n, e: lambda s: routes.promote(s, n, e), NAMES, EXPERTS),
    st.builds(lambda n: lambda s: routes.promote_canary(s, n), NAMES),
    st.builds(lambda n, e: lambda s: routes.set_canary(s, n, e, weight=0.5), NAMES, EXPERTS),
    st.builds(lambda n, e: lambda s: routes.set_shadow(s, n, e), NAMES, EXPERTS),
    st.builds(lambda n: lambda s: routes.end_canary(s, n), NAMES),
    st.builds(lambda n: lambda s: routes.end_shadow(s, n), NAMES),
    st.builds(lambda n: lambda s: routes.rollback(s, n), NAMES),
    st.builds(lambda n: lambda s: routes.remove(s, n), NAMES),
)


@settings(max_examples=20)
@given(st.lists(st.tuples(OPERATIONS, st.booleans()), min_size=3, max_size=8))
def test_any_operations_leave_a_whole_store(steps: list[tuple[Operation, bool]]) -> None:
    with TemporaryDirectory() as folder:
        store = ExpertStore(Path(folder) / "store")
        routes.add(store, "film", A)
        for operation, collect in steps:
            before = store.manifest()
            try:
                done = operation(store)
            except PidepError:
                assert store.manifest() == before
            else:
                assert store.manifest().revision == before.revision + done.is_change
                after = store.manifest()
                operation(store)  # again, as after a kill: nothing changes
                assert store.manifest() == after
            if collect:
                collect_garbage(store, keep=1)
            check_whole(store)
