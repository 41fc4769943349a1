"""A bundle's own arguments, probe and metrics, with the real Triton Server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pidep.deployment.bundle import write_bundle
from pidep.deployment.server_doctor import diagnose_server
from pidep.deployment.settings import BundleSettings
from pidep.serving import Client, Request
from pidep.serving.visitor import page
from tests.deployment.deployed import Deployed, deployed
from tests.serving.small_bank import write_served_bank

pytestmark = pytest.mark.server

WORDS = re.compile(r"[a-z_][a-z0-9_:]*")
RECORDED = {"pidep_queue_seconds"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployed, Path]]:
    """A server with the options of the bundle's Deployment, and the bundle."""
    folder = tmp_path_factory.mktemp("bundled")
    write_served_bank(folder)
    out = folder / "bundle"
    write_bundle(folder / "model_repo" / "pidep_bank", BundleSettings(out=out))
    (container,) = pod(out)["containers"]
    options = [
        one.replace("$(PIDEP_ADMIN_KEY)", "secret")
        for one in container["args"]
        # The helper names these itself.
        if not one.startswith(("--model-repository=", "--exit-timeout-secs="))
    ]
    with deployed(folder, *options, own_options=False) as server:
        yield server, out


def pod(out: Path) -> dict[str, Any]:
    text = (out / "kubernetes" / "deployment.yaml").read_text()
    return dict(yaml.safe_load(text)["spec"]["template"]["spec"])


def test_its_options_leave_no_door_open(served: tuple[Deployed, Path]) -> None:
    server, _ = served
    found = diagnose_server(
        server.url("http"), protocol="http", entry=server.entry, metrics=server.metrics
    )
    assert {one.check: one.level for one in found if one.level != "ok"} == {"version": "warning"}


def test_its_probes_run(served: tuple[Deployed, Path]) -> None:
    server, out = served
    (container,) = pod(out)["containers"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = container[name]["exec"]["command"]
        here = [sys.executable, *command[1:]]
        here[3] = here[3].replace("/srv/pidep/model_repo", str(server.repo))
        assert here[3] == str(server.entry)
        here[4] = here[4].replace("127.0.0.1:8000", server.url("http"))
        done = subprocess.run(here, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def exported(server: Deployed) -> set[str]:
    """Names of the series that the server exports, and their kinds' endings."""
    with Client(server.url("grpc")) as client:
        client.infer([Request("good film", "film")])
        client.infer([Request("good film", "nobody")], all_or_nothing=False)
        # Counted after its replies, and before those of the next batch.
        client.infer([Request("good film", "film")])
    body = page("127.0.0.1", server.ports.metrics, "metrics", timeout_s=5).body
    return {re.split(r"[{ ]", line)[0] for line in body.splitlines() if line[:1] != "#"}


def test_rules_and_dashboard_name_metrics_that_the_server_exports(
    served: tuple[Deployed, Path],
) -> None:
    server, out = served
    groups = yaml.safe_load((out / "prometheus" / "rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    board = json.loads((out / "grafana" / "dashboard.json").read_text())
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["expr"] for one in board["annotations"]["list"]]
    # Labels and their values are no metrics.
    words = {
        word
        for text in asked
        for word in WORDS.findall(re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", "", text))
    }
    named = {word for word in words if word.startswith(("nv_", "pidep_"))}
    assert named - RECORDED <= exported(server)
    assert {rule["record"] for rule in rules if "record" in rule} == RECORDED
    functions = {"sum", "max", "min", "rate", "increase", "changes", "absent", "clamp_min", "or"}
    assert words - named <= {*functions, "histogram_quantile", "e6"}


def test_rules_and_dashboard_have_the_shape_of_their_programs(
    served: tuple[Deployed, Path],
) -> None:
    _, out = served
    (group,) = yaml.safe_load((out / "prometheus" / "rules.yaml").read_text())["groups"]
    assert set(group) == {"name", "rules"}
    for rule in group["rules"]:
        if "record" in rule:
            assert set(rule) == {"record", "expr"}
            continue
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
    for text in (rule["expr"] for rule in group["rules"]):
        assert text.count("(") == text.count(")")
        assert text.count("{") == text.count("}")
    hpa = yaml.safe_load((out / "kubernetes" / "horizontalpodautoscaler.yaml").read_text())
    (metric,) = hpa["spec"]["metrics"]
    (offered,) = yaml.safe_load((out / "prometheus" / "adapter.yaml").read_text())["rules"][
        "custom"
    ]
    assert metric["pods"]["metric"]["name"] == offered["name"]["as"] == "pidep_queue_seconds"
    board = json.loads((out / "grafana" / "dashboard.json").read_text())
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= board.keys()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    for panel in board["panels"]:
        assert panel["type"] == "timeseries"
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
