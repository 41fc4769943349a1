"""`pidep experts`: what it prints, as text and JSON, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.experts.folder import write_expert
from pidep.serving import ExpertStore
from tests.cli.run import Done, nobody
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_small_bank

A, B = (small_expert(seed=seed) for seed in range(2))
SHORT = {"A": A.digest[:19], "B": B.digest[:19]}
Run = Callable[..., Done]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, and the experts `a`, `b` and `wide`, which the bank cannot hold."""
    write_small_bank(tmp_path / "model_repo")
    write_expert(A, tmp_path / "a")
    write_expert(B, tmp_path / "b")
    factors = {"lora_A": np.ones((5, 4), np.float32), "lora_B": np.ones((4, 5), np.float32)}
    write_expert(replace(A, sites={"layer.0": factors}), tmp_path / "wide")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def out(done: Done) -> str:
    assert (done.code, done.err) == (0, "")
    for name, digest in SHORT.items():
        done = Done(done.code, done.out.replace(digest, name), done.err)
    return done.out.strip()


def test_a_name_from_the_first_version_to_its_removal(work: Path, inside: Run) -> None:
    assert out(inside("experts", "list")) == ""
    assert out(inside("experts", "add", "film", "a")) == "film: not served → A (revision 1)"
    assert out(inside("experts", "add", "film", "a")) == "film: unchanged: A (revision 1)"
    started = inside("experts", "canary", "film", "b", "--weight", "0.25")
    assert out(started) == "film: A → A, canary B 25 % (revision 2)"
    assert out(inside("experts", "list")) == "film: A, canary B 25 %"
    assert out(inside("experts", "show", "film")) == "film: A, canary B 25 % (revision 2)"
    promoted = out(inside("experts", "promote", "film"))
    assert promoted == "film: A, canary B 25 % → B (revision 3)"
    assert (
        out(inside("experts", "shadow", "film", A.digest)) == "film: B → B, shadow A (revision 4)"
    )
    assert out(inside("experts", "rollback", "film")) == "film: B, shadow A → A (revision 5)"
    assert out(inside("experts", "promote", "film", "b")) == "film: A → B (revision 6)"
    lines = out(inside("experts", "verify")).splitlines()
    assert sorted(lines) == ["A former: whole", "B film: whole"]
    assert out(inside("experts", "remove", "film")) == "film: B → not served (revision 7)"
    assert out(inside("experts", "gc")).startswith("removed 0 versions, 0.0 MiB; 2 stay")
    actions = [line.split()[3] for line in out(inside("experts", "history", "film")).splitlines()]
    assert actions == ["remove:", "promote:", "rollback:", "shadow:", "promote:", "canary:", "add:"]


def test_json_says_what_the_text_says(work: Path, inside: Run) -> None:
    def found(*arguments: str) -> Any:
        done = inside("experts", *arguments, "--json")
        assert (done.code, done.err) == (0, "")
        return json.loads(done.out)

    route = {"stable": A.digest, "canary": None, "shadow": None}
    change = {"name": "film", "changed": True, "before": None, "after": route, "revision": 1}
    assert found("add", "film", "a") == change
    assert found("add", "film", "a") == {**change, "changed": False, "before": route}
    assert found("list") == {"revision": 1, "experts": {"film": route}}
    assert found("show", "film") == {"name": "film", "revision": 1, **route}
    assert found("verify") == [{"digest": A.digest, "named_by": ["film"], "fault": ""}]
    assert found("gc", "--dry-run")["removed"] == []
    (entry,) = found("history", "film")
    assert (entry["action"], entry["after"]) == ("add", route)


def test_a_damaged_version_ends_verify_with_1(work: Path, inside: Run) -> None:
    inside("experts", "add", "film", "a")
    store = ExpertStore(work / "expert_store")
    (store.version(A.digest) / "labels.safetensors").write_bytes(b"")
    done = inside("experts", "verify")
    assert (done.code, done.out.startswith(f"{A.digest[:19]} film: ")) == (1, True)
    assert "labels.safetensors" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["canary", "film", "b", "--weight", "2"], 2, "--weight: expected a share above 0"),
        (["canary", "film", "b", "--auto"], 2, "--auto: needs the servers that answer; give --url"),
        (["canary", "film", "b", "--auto", "--rows", "0"], 2, "--rows: expected at least 1"),
        (["canary", "film", "b", "--off"], 2, "--off: ends the canary of the name"),
        (["canary", "film"], 2, "RUN: expected the candidate, found none"),
        (["canary", "film", "wide"], 2, "rank 5"),
        (["shadow", "film"], 2, "RUN: expected the candidate, or --off"),
        (["promote", "film"], 2, "'film' has no canary"),
        (["promote", "films", "b"], 2, r"unknown name 'films'"),
        (["rollback", "film"], 2, "'film' has no former version"),
        (["rollback", "film", "--to", "ff"], 2, "--to ff: no versions in the history"),
        (["add", "film", "b"], 2, "'film': is served already"),
        (["add", "art", "elsewhere"], 2, "elsewhere"),
        (["promote", "film", "b", "--url", "nowhere"], 2, "nowhere: not a server address"),
        (["list", "--repo", "elsewhere"], 1, "make it with pidep export"),
    ],
)
def test_what_cannot_be_done_changes_nothing_and_is_one_line(
    work: Path, inside: Run, arguments: list[str], code: int, message: str
) -> None:
    inside("experts", "add", "film", "a")
    before = (work / "expert_store" / "manifest.json").read_bytes()
    done = inside("experts", *arguments)
    assert done.code == code
    assert done.err.startswith("pidep: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert (work / "expert_store" / "manifest.json").read_bytes() == before


def test_a_server_that_is_away_stops_a_change(work: Path, inside: Run) -> None:
    done = inside("experts", "add", "film", "a", "--url", nobody(), "--timeout", "1")
    assert (done.code, "is pidep serve running there" in done.err) == (1, True)
    assert not (work / "expert_store" / "manifest.json").exists()
