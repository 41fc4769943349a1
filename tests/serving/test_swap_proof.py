"""A swap under traffic of its own says what every request met."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pidep.artifacts import Manifest
from pidep.errors import ExpertError, ServingError, UsageError
from pidep.experts.folder import write_expert
from pidep.serving import Client, ExpertStore, TritonServer, free_ports, swap_expert
from pidep.serving.stubs import stubs_of
from pidep.serving.swap_proof import prove_swap
from tests.cli.run import pidep
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_served_bank

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(write_served_bank(tmp_path_factory.mktemp("served")), free_ports()) as found:
        yield found


def test_a_swap_costs_no_client_anything(server: TritonServer) -> None:
    expert = small_expert(seed=11)
    proof = prove_swap("film", expert, server.repo, server.grpc_url, seconds=0.4)
    proof.require_clean()
    assert (proof.lost, proof.other_versions, proof.errors) == (0, 0, ())
    assert proof.sent == sum(one.sent for one in proof.phases.values()) > 50
    before, after = proof.phases["before"], proof.phases["after"]
    assert set(before.digests) == {proof.swapped.old_digest}
    assert set(after.digests) == {expert.digest}
    assert 0 < before.p50_ms <= before.p99_ms
    # Other names are asked, too.
    assert sum(after.digests.values()) < after.sent
    assert all(found is not None and found > 1 for found in proof.memory_mib)


def test_a_new_name_is_asked_when_it_has_an_answer(server: TritonServer) -> None:
    expert = small_expert(name="fresh", seed=12)
    proof = prove_swap("fresh", expert, server.repo, server.grpc_url, seconds=0.2)
    assert proof.swapped.old_digest is None
    assert proof.lost == 0
    assert proof.phases["before"].digests == {}


def test_a_version_that_is_refused_ends_the_traffic(server: TritonServer) -> None:
    before, threads = small_expert(seed=11), threading.active_count()
    with pytest.raises(ExpertError, match="another backbone"):
        prove_swap(
            "film",
            replace(small_expert(), backbone_digest="sha256:other"),
            server.repo,
            server.grpc_url,
            seconds=0.2,
        )
    assert threading.active_count() <= threads
    with Client(server.grpc_url) as client:
        assert client.status()["served"]["film"] == before.digest


def test_a_lost_request_is_no_clean_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = write_served_bank(tmp_path)
    with TritonServer(repo, free_ports()) as server:

        def then_killed(*given: Any, **named: Any) -> Any:
            done = swap_expert(*given, **named)
            os.kill(stubs_of(server.pid)[0].pid, signal.SIGKILL)
            return done

        monkeypatch.setattr("pidep.serving.swap_proof.swap_expert", then_killed)
        proof = prove_swap(
            "film", small_expert(seed=4), repo, server.grpc_url, seconds=0.4, timeout_s=2.0
        )
    assert proof.phases["before"].lost == 0
    assert proof.lost > 0
    with pytest.raises(ServingError, match=r"of \d+ requests \d+ were lost and 0 answered"):
        proof.require_clean()


def test_an_answer_by_another_version_is_counted(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the store had never named the version that answers.
    unnamed = SimpleNamespace(read=lambda store: Manifest(revision=0, aliases={}))
    monkeypatch.setattr("pidep.serving.swap_proof.Manifest", unnamed)
    proof = prove_swap("film", small_expert(seed=13), server.repo, server.grpc_url, seconds=0.2)
    assert proof.other_versions > 0
    with pytest.raises(ServingError, match=r"0 were lost and \d+ answered by another version"):
        proof.require_clean()


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above 0"):
        prove_swap("film", small_expert(), tmp_path, "127.0.0.1:1", clients=0)


def test_the_command_shows_the_phases(server: TritonServer, tmp_path: Path) -> None:
    write_expert(small_expert(seed=14), tmp_path / "film")
    command = ["swap", "film", tmp_path / "film", "--repo", server.repo, "--url", server.grpc_url]
    done = pidep(*command, "--verify", "--seconds", "0.3", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "before" in done.out
    assert "MiB" in done.out
    held = ExpertStore(server.repo.parent / "expert_store").manifest().aliases["film"]
    assert held[:19] in done.out
