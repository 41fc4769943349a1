"""`pidep bundle`: valid files of each kind, that fit each other and the real server."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pidep import __version__
from pidep.artifacts import MergedRecord
from pidep.deployment.bundle import write_bundle
from pidep.deployment.settings import BundleSettings
from pidep.errors import UsageError
from pidep.export.config_pbtxt import merged_config
from pidep.export.recipe import shipped
from pidep.serving.server_versions import FLOOR
from tests.cli.run import Done, contents
from tests.serving.small_bank import write_served_bank, write_small_merged

KUBERNETES = "1.31"
FILES = [
    "Dockerfile",
    "compose.yaml",
    "grafana/dashboard.json",
    "kserve/inferenceservice.yaml",
    "kubernetes/deployment.yaml",
    "kubernetes/horizontalpodautoscaler.yaml",
    "kubernetes/networkpolicy.yaml",
    "kubernetes/poddisruptionbudget.yaml",
    "kubernetes/service.yaml",
    "kubernetes/volumes.yaml",
    "prometheus/adapter.yaml",
    "prometheus/rules.yaml",
    "wheels/README.md",
]


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return write_served_bank(tmp_path) / "pidep_bank"


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """A merged model of NVIDIA's onnxruntime backend."""
    entry = write_small_merged(tmp_path / "model_repo").parent
    config = merged_config("film", max_batch_size=8, platform="onnxruntime", num_labels=2)
    (entry / "config.pbtxt").write_text(config)
    return entry


def bundled(entry: Path, **settings: Any) -> Path:
    out = entry.parent.parent / "bundle"
    write_bundle(entry, BundleSettings(out=out, **settings))
    return out


def documents(out: Path, *parts: str) -> list[dict[str, Any]]:
    paths = sorted((out / Path(*parts)).glob("*.yaml"))
    return [one for path in paths for one in yaml.safe_load_all(path.read_text())]


def kind(out: Path, name: str) -> dict[str, Any]:
    (found,) = (one for one in documents(out, "kubernetes") if one["kind"] == name)
    return found


def container(out: Path) -> dict[str, Any]:
    (found,) = kind(out, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_every_file_is_there_and_has_no_place_left(bank: Path) -> None:
    out = bundled(bank)
    found = {name: data for name, data in contents(out).items() if data is not None}
    assert sorted(found) == FILES
    for name, data in found.items():
        text = data.decode()
        assert not re.search(r"@\{|#\?", text), name
        assert not [line for line in text.splitlines() if line != line.rstrip()], name


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
@pytest.mark.parametrize("entry", ["bank", "native"])
def test_kubernetes_accepts_the_manifests(
    entry: str, accelerator: str, request: pytest.FixtureRequest
) -> None:
    out = bundled(request.getfixturevalue(entry), accelerator=accelerator)
    found = documents(out, "kubernetes")
    kinds = ["Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"]
    claims = ["PersistentVolumeClaim"] * (2 if entry == "bank" else 1)
    assert [one["kind"] for one in found] == [*kinds, "Service", *claims]
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    resources = container(out)["resources"]
    assert ("nvidia.com/gpu" in resources["limits"]) == (accelerator == "gpu")


@pytest.mark.parametrize("entry", ["bank", "native"])
def test_kserve_gets_a_pod_that_kubernetes_accepts(
    entry: str, request: pytest.FixtureRequest
) -> None:
    """KServe's own schema is not at hand: its predictor is a PodSpec with a few keys more."""
    out = bundled(request.getfixturevalue(entry))
    (service,) = documents(out, "kserve")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["kind"] == "InferenceService"
    predictor = dict(service["spec"]["predictor"])
    own = {"minReplicas", "maxReplicas", "labels", "annotations"}
    assert own <= predictor.keys()
    spec = {key: value for key, value in predictor.items() if key not in own}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    (mine,) = spec["containers"]
    assert mine["name"] == "kserve-container"
    theirs = container(out)
    same = ("args", "env", "startupProbe", "readinessProbe", "livenessProbe", "volumeMounts")
    assert all(mine[key] == theirs[key] for key in (*same, "resources", "securityContext"))


def test_labels_claims_and_ports_fit_each_other(bank: Path) -> None:
    out = bundled(bank, name="film-bank")
    deployment = kind(out, "Deployment")
    pod = deployment["spec"]["template"]
    label = {"app.kubernetes.io/name": "film-bank"}
    assert deployment["spec"]["selector"]["matchLabels"] == label == pod["metadata"]["labels"]
    for name in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = kind(out, name)["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector) == label
    assert kind(out, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "film-bank"
    claims = {
        one["metadata"]["name"]
        for one in documents(out, "kubernetes")
        if one["kind"] == "PersistentVolumeClaim"
    }
    volumes = pod["spec"]["volumes"]
    used = [one["persistentVolumeClaim"] for one in volumes if "persistentVolumeClaim" in one]
    assert {one["claimName"] for one in used} == claims
    assert all(one["readOnly"] for one in used)
    ports = {one["name"] for one in container(out)["ports"]}
    assert {one["targetPort"] for one in kind(out, "Service")["spec"]["ports"]} < ports
    asked = [
        one["port"]
        for rule in kind(out, "NetworkPolicy")["spec"]["ingress"]
        for one in rule["ports"]
    ]
    assert asked == [8000, 8001, 8002]
    metrics = kind(out, "NetworkPolicy")["spec"]["ingress"][1]["from"]
    assert metrics == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


def test_the_pod_has_no_right_that_it_does_not_need(bank: Path) -> None:
    out = bundled(bank)
    pod = kind(out, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container(out)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {
        one["mountPath"]: one.get("readOnly", False) for one in container(out)["volumeMounts"]
    }
    assert mounts == {
        "/srv/pidep/model_repo": True,
        "/srv/pidep/expert_store": True,
        "/tmp": False,
        "/dev/shm": False,
    }
    (service,) = yaml.safe_load((out / "compose.yaml").read_text())["services"].values()
    assert (service["read_only"], service["user"]) == (True, "1000:1000")
    assert [one["read_only"] for one in service["volumes"]] == [True, True]
    assert all(one.startswith("127.0.0.1:") for one in service["ports"])
    # The key is in no file.
    assert "${PIDEP_ADMIN_KEY}" in "".join(service["command"])
    assert "pidep-admin-key=$(PIDEP_ADMIN_KEY)" in "".join(container(out)["args"])


def test_the_image_is_at_the_floor_and_holds_what_the_entry_needs(bank: Path, native: Path) -> None:
    out = bundled(bank, accelerator="gpu")
    text = (out / "Dockerfile").read_text()
    assert f"FROM nvcr.io/nvidia/tritonserver:{FLOOR.release}-py3\n" in text
    assert f"'pidep[gpu]=={__version__}'" in text
    assert "USER 1000:1000" in text
    merged = native.parent.parent / "native"
    write_bundle(native, BundleSettings(out=merged))
    assert "pip" not in (merged / "Dockerfile").read_text()
    assert not (merged / "wheels").exists()
    with pytest.raises(UsageError, match=r"26\.06-py3 is older than 26\.07"):
        bundled(bank, triton_image="nvcr.io/nvidia/tritonserver:26.06-py3")


def test_compose_finds_the_folders_of_this_machine(bank: Path) -> None:
    out = bundled(bank)
    (service,) = yaml.safe_load((out / "compose.yaml").read_text())["services"].values()
    sources = [one["source"] for one in service["volumes"]]
    assert sources == [
        "${PIDEP_REPOSITORY:-../model_repo}",
        "${PIDEP_STORE:-../expert_store}",
    ]
    assert service["deploy"]["resources"]["limits"] == {"cpus": "2", "memory": "3g"}


def test_the_same_input_gives_the_same_bytes(bank: Path) -> None:
    first = contents(bundled(bank))
    assert contents(bundled(bank, overwrite=True)) == first


def test_nothing_is_replaced_unasked_and_nothing_foreign_is_lost(bank: Path) -> None:
    out = bundled(bank)
    (out / "wheels" / "pidep-1-py3-none-any.whl").write_bytes(b"wheel")
    before = contents(out)
    with pytest.raises(
        UsageError, match="is not empty; choose another folder, or give `overwrite`"
    ):
        bundled(bank)
    assert contents(out) == before
    bundled(bank, overwrite=True, name="other")
    assert (out / "wheels" / "pidep-1-py3-none-any.whl").read_bytes() == b"wheel"
    assert "other" in (out / "compose.yaml").read_text()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt is no file of a bundle, and would be lost"):
        bundled(bank, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_wrong_entry_is_refused_and_nothing_is_written(bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    (bank / "1" / "model.onnx").unlink()
    with pytest.raises(UsageError, match=r"version 1 lacks model\.onnx"):
        bundled(bank)
    with pytest.raises(UsageError, match=r"no bank\.json or merged\.json"):
        bundled(tmp_path / "model_repo" / "nothing")
    odd = write_served_bank(tmp_path / "odd$") / "pidep_bank"
    with pytest.raises(UsageError, match="a compose file takes no such character"):
        write_bundle(odd, BundleSettings(out=out))
    assert not out.exists()


def test_the_command_says_what_it_wrote(bank: Path, inside: Callable[..., Done]) -> None:
    out = bank.parent.parent / "made"
    done = inside("bundle", str(bank), "--out", str(out), "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {
        "out": str(out),
        "model": "pidep_bank",
        "image": f"pidep-bank:{__version__}",
        "files": FILES,
    }
    again = inside("bundle", str(bank), "--out", str(out))
    assert (again.code, again.out) == (2, "")
    assert "--out: " in again.err
    assert "give --overwrite" in again.err
    done = inside("bundle", str(bank), "--out", str(out), "--overwrite")
    assert (
        done.out.splitlines()[0] == f"{out}: {len(FILES)} files for image pidep-bank:{__version__}"
    )


def test_only_the_templates_are_in_their_folder() -> None:
    folder = files("pidep.deployment.bundle") / "files"
    assert {one.name for one in folder.iterdir()} == {name.split("/")[0] for name in FILES}


def test_a_front_is_loaded_with_its_graphs_model(native: Path) -> None:
    repo, version = native.parent, native / "1"
    graph = repo / "film-graph-0123456789ab"
    shutil.copytree(native, graph)
    MergedRecord.read(version).model_copy(update={"graph_model": graph.name}).sealed(version).write(
        version
    )
    (version / "model.onnx").unlink()
    shutil.copyfile(shipped("model.py"), version / "model.py")
    config = merged_config("film", max_batch_size=8, platform="python", num_labels=2)
    (native / "config.pbtxt").write_text(config)
    out = bundled(native)
    loaded = [one for one in container(out)["args"] if one.startswith("--load-model")]
    assert loaded == [f"--load-model={graph.name}", "--load-model=film"]
    # The front runs pidep's code.
    assert "pip install" in (out / "Dockerfile").read_text()
    shutil.rmtree(graph)
    with pytest.raises(UsageError, match=f"{graph.name}: no bank.json or merged.json"):
        write_bundle(native, BundleSettings(out=out, overwrite=True))


def test_traces_go_out_and_lines_are_json_where_asked_for(bank: Path, native: Path) -> None:
    silent = bundled(bank)
    assert kind(silent, "NetworkPolicy")["spec"]["egress"] == []
    assert "PIDEP_LOG_FORMAT" not in (silent / "compose.yaml").read_text()
    shutil.rmtree(silent)
    url = "http://collector.monitoring:4318/v1/traces"
    out = bundled(bank, trace_url=url, trace_rate=50, log_format="json")
    pod = container(out)
    (composed,) = yaml.safe_load((out / "compose.yaml").read_text())["services"].values()
    (service,) = documents(out, "kserve")
    served = service["spec"]["predictor"]["containers"][0]
    for arguments in (pod["args"], composed["command"], served["args"]):
        assert f"--trace-config=opentelemetry,url={url}" in arguments
        assert "--trace-config=rate=50" in arguments
        assert "--trace-config=opentelemetry,resource=service.name=pidep-bank" in arguments
    for variables in (pod["env"], served["env"]):
        assert {"name": "PIDEP_LOG_FORMAT", "value": "json"} in variables
    assert composed["environment"]["PIDEP_LOG_FORMAT"] == "json"
    policy = kind(out, "NetworkPolicy")
    ports = [one["port"] for rule in policy["spec"]["egress"] for one in rule["ports"]]
    assert ports == [4318, 53, 53]
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    kubernetes_validate.validate(kind(out, "Deployment"), KUBERNETES, strict=True)
    with pytest.raises(UsageError, match="`trace_url`: expected the address of a collector"):
        bundled(native, trace_url="collector:4318", overwrite=True)
