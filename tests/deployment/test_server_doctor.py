"""`pidep doctor --url`: one healthy server, and servers with every fault that it looks for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pidep.artifacts import BankRecord, MergedRecord
from pidep.artifacts.manifest import Manifest
from pidep.deployment import server_doctor
from pidep.deployment.server_doctor import Finding, diagnose_server, require_healthy
from pidep.errors import ServingError, UsageError
from pidep.export.config_pbtxt import merged_config, read_config
from pidep.export.recipe import shipped
from pidep.serving import ExpertStore, TritonServer, free_ports
from pidep.serving.readiness import require_ready
from pidep.serving.request import Protocol
from pidep.serving.visitor import DOORS, page
from tests.cli.run import Done, nobody
from tests.deployment.deployed import Deployed, deployed
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_served_bank, write_small_merged

PROTOCOLS: list[Protocol] = ["grpc", "http"]
by_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
DOOR_CHECKS = [f"door {door.name}" for door in DOORS]
CHECKS = [
    *("reachable", "version", "addresses", "model", "entry", "revision"),
    *("expert book", "expert film", *DOOR_CHECKS),
    *("SageMaker and Vertex AI", "response cache", "queue", "metrics"),
]


@pytest.fixture(autouse=True)
def cloud_port(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of a cloud's service: another program of this machine may have the usual one."""
    port = free_ports().http
    monkeypatch.setattr(server_doctor, "CLOUD_PORT", port)
    return port


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in findings}


def levels(findings: list[Finding], *but: str) -> dict[str, str]:
    """What is not as it should be."""
    return {one.check: one.level for one in findings if one.level != "ok" and one.check not in but}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """As `pidep serve` starts it."""
    repo = write_served_bank(tmp_path_factory.mktemp("healthy"))
    with TritonServer(repo, free_ports()) as server:
        yield server


def diagnosed(server: TritonServer, protocol: Protocol = "grpc") -> list[Finding]:
    return diagnose_server(
        server.grpc_url if protocol == "grpc" else server.http_url,
        protocol=protocol,
        entry=server.repo / "pidep_bank",
        metrics=f"127.0.0.1:{server.ports.metrics}",
    )


@pytest.mark.server
@by_protocol
def test_a_healthy_server_has_no_fault(healthy: TritonServer, protocol: Protocol) -> None:
    found = diagnosed(healthy, protocol)
    assert [one.check for one in found] == CHECKS
    # The packaged server is 2.51: good enough for loopback, and too old for more.
    assert levels(found) == {"version": "warning"}
    shown = by_check(found)
    assert "2.51.0 is older than 2.71.0" in shown["version"].found
    assert "CVE-2025-23319" in shown["version"].found
    assert "CVE-2026-24207" in shown["version"].found
    assert shown["queue"].found == f"holds at most {5 * 64} rows"
    assert shown["addresses"].found == "only this machine reaches it"
    assert shown["revision"].found == "serves revision 2, as the store"
    assert all(one.mend for one in found if one.level != "ok")
    require_healthy(found)


@pytest.mark.server
def test_without_the_folder_it_says_what_it_cannot_see(healthy: TritonServer) -> None:
    found = diagnose_server(healthy.grpc_url, metrics=nobody())
    seen = {"entry", "revision", "response cache", "queue", "metrics"}
    assert levels(found, "version") == dict.fromkeys(seen, "warning")
    assert "give `entry`" in by_check(found)["queue"].mend


@pytest.mark.server
def test_nothing_is_changed_by_the_visit(healthy: TritonServer) -> None:
    before = Manifest.read(healthy.repo.parent / "expert_store")
    diagnosed(healthy, "http")
    assert healthy.ask("pidep_bank", timeout_s=5)
    assert Manifest.read(healthy.repo.parent / "expert_store") == before
    assert by_check(diagnosed(healthy))["model"].level == "ok"


@pytest.mark.server
def test_the_command_prints_a_line_a_check_and_fails_on_a_fault(
    healthy: TritonServer, inside: Callable[..., Done]
) -> None:
    entry, metrics = healthy.repo / "pidep_bank", f"127.0.0.1:{healthy.ports.metrics}"
    given = ("--url", healthy.grpc_url, "--entry", entry, "--metrics", metrics)
    done = inside("doctor", *map(str, given))
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) == len(CHECKS)
    assert lines[0] == f"ok       reachable: {healthy.grpc_url} answers over grpc"
    assert lines[1].startswith("warning  version: Triton Server 2.51.0 is older than 2.71.0")
    found = json.loads(inside("doctor", *map(str, given), "--json").out)
    assert [(one["check"], one["level"]) for one in found][1] == ("version", "warning")
    assert set(found[0]) == {"check", "level", "found", "mend"}
    wrong = inside("doctor", "--url", healthy.grpc_url, "--model", "nobody")
    assert wrong.code == 1
    assert wrong.err.startswith("pidep: model: ")
    assert "correct --model" in wrong.err
    assert any(line.startswith("fault    model: ") for line in wrong.out.splitlines())


@pytest.mark.server
def test_another_entry_and_a_store_that_is_not_followed_are_faults(
    healthy: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was started on a copy."""
    monkeypatch.setattr(server_doctor, "FOLLOWS_WITHIN_S", 0.2)
    repo = write_served_bank(tmp_path)
    store = ExpertStore(tmp_path / "expert_store")
    newest = store.publish(small_expert(seed=7), "film")
    record = repo / "pidep_bank" / "1" / "bank.json"
    values = json.loads(record.read_text())
    values["max_positions"] = 9
    BankRecord.model_validate(values).sealed(record.parent).write(record.parent)
    found = diagnose_server(
        healthy.grpc_url,
        entry=repo / "pidep_bank",
        metrics=f"127.0.0.1:{healthy.ports.metrics}",
    )
    faults = dict.fromkeys(("entry", "revision", "expert film"), "fault")
    assert levels(found, "version") == faults
    assert f"the store names {newest.new[:19]}" in by_check(found)["expert film"].found
    assert "is at 3" in by_check(found)["revision"].found


@pytest.mark.server
def test_a_refused_version_is_named_with_the_one_that_still_serves(tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    store = ExpertStore(tmp_path / "expert_store")
    with TritonServer(repo, free_ports()) as server:
        served = store.manifest().aliases["film"]
        bad = small_expert(seed=5)
        with store.staged({"film": bad}) as commit:
            # After it was written and read back, as a disk damages it.
            damaged = store.version(bad.digest) / "adapter_model.safetensors"
            content = damaged.read_bytes()
            damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            commit()
        found = by_check(diagnosed(server))
    assert f"{bad.digest[:19]} is refused" in found["expert film"].found
    assert f"{served[:19]} still serves" in found["expert film"].found
    assert found["expert book"].level == "ok"
    assert found["model"].level == "ok"


@pytest.mark.server
def test_a_merged_model_is_compared_by_its_entry(tmp_path: Path) -> None:
    version = write_small_merged(tmp_path / "model_repo")
    config = merged_config("film", max_batch_size=8, platform="python", num_labels=2)
    (version.parent / "config.pbtxt").write_text(config)
    shutil.copyfile(shipped("model.py"), version / "model.py")
    with TritonServer(tmp_path / "model_repo", free_ports()) as server:
        given = {"entry": version.parent, "metrics": f"127.0.0.1:{server.ports.metrics}"}
        found = diagnose_server(server.grpc_url, **given)
        require_ready(version.parent, server.http_url)
        record = MergedRecord.read(version)
        record.model_copy(update={"max_length": 3}).sealed(version).write(version)
        other = diagnose_server(server.grpc_url, **given)
        with pytest.raises(ServingError, match="is served, the repository has"):
            require_ready(version.parent, server.http_url)
    assert levels(found) == {"version": "warning"}
    assert "answers with sha256:film" in by_check(found)["model"].found
    assert levels(other, "version", "queue") == {"entry": "fault"}


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployed, int]]:
    """Every door open, a cache, a queue without a bound, SageMaker's service; and its port."""
    folder, port = tmp_path_factory.mktemp("open"), free_ports().http
    repo = caching_bank(folder)
    options = (
        "--cache-config=local,size=1048576",
        *("--allow-sagemaker=true", f"--sagemaker-port={port}"),
        "--trace-config=level=OFF",
    )
    with deployed(repo.parent, *options, host="0.0.0.0") as server:
        yield server, port


def caching_bank(folder: Path) -> Path:
    """A repository whose bank has a response cache, and Triton Server's own batcher."""
    repo = write_served_bank(folder)
    config = repo / "pidep_bank" / "config.pbtxt"
    model = read_config(config)
    model.response_cache.enable = True
    model.dynamic_batching.SetInParent()
    config.write_text(str(model))
    return repo


@pytest.mark.server
@by_protocol
def test_a_server_that_is_open_has_all_its_faults_named(
    open_server: tuple[Deployed, int], protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, port = open_server
    monkeypatch.setattr(server_doctor, "CLOUD_PORT", port)
    found = diagnose_server(
        server.url(protocol), protocol=protocol, entry=server.entry, metrics=server.metrics
    )
    assert levels(found) == {
        # An old server that other machines reach is no test server any more.
        "version": "fault",
        "addresses": "warning",
        **dict.fromkeys(DOOR_CHECKS[:4], "fault"),
        **dict.fromkeys(DOOR_CHECKS[4:], "warning"),
        "SageMaker and Vertex AI": "fault",
        "response cache": "fault",
        "queue": "warning",
    }
    with pytest.raises(ServingError, match=r"^version: .*\(and 6 more\)$"):
        require_healthy(found)


@pytest.mark.server
def test_the_cache_is_seen_without_the_folder(open_server: tuple[Deployed, int]) -> None:
    server, _ = open_server
    found = by_check(diagnose_server(server.url("grpc"), metrics=server.metrics))
    assert found["response cache"].level == "fault"
    # Where the configuration is closed to clients, the metrics still tell.
    shown = page("127.0.0.1", server.ports.metrics, "metrics", timeout_s=5).body
    assert server_doctor.cache_finding("pidep_bank", None, shown).level == "fault"
    assert server_doctor.cache_finding("another", None, shown).level == "ok"


@by_protocol
def test_nobody_is_one_fault(protocol: Protocol) -> None:
    (found,) = diagnose_server(nobody(), protocol=protocol, timeout_s=2)
    assert (found.check, found.level) == ("reachable", "fault")
    with pytest.raises(ServingError, match="start the server, or correct `url`"):
        require_healthy([found])


def test_wrong_arguments_are_named_before_anything_is_asked(
    tmp_path: Path, inside: Callable[..., Done]
) -> None:
    with pytest.raises(UsageError, match="not a server address"):
        diagnose_server("localhost")
    with pytest.raises(ServingError, match=r"merged\.json: no such file"):
        diagnose_server(nobody(), entry=tmp_path)
    done = inside("doctor", "--entry", str(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert "--entry: is about a running server; give --url as well" in done.err
