"""A front before a graph in a backend of Triton Server, and rolls of merged models.

The packaged server has no onnxruntime backend. A model of the Python backend stands in its place:
it runs the same file by ONNX Runtime and takes and gives the same tensors.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from pydantic import ValidationError

from pidep.artifacts import MergedRecord
from pidep.deployment.verify import verify_entry
from pidep.errors import ServingError, UsageError
from pidep.export import Source, export_merged, load_recipe
from pidep.export.config_pbtxt import read_config
from pidep.export.front import export_front
from pidep.serving.client import Client, Request
from pidep.serving.roll import roll_entry
from pidep.serving.server import TritonServer, free_ports
from tests.cli.run import assert_refused, pidep
from tests.export.examples import ROWS, TASK, noisy, torch_scores

pytestmark = pytest.mark.server
KEY = "0123456789abcdef"
TEXTS = ["the film was good", "awful", "a very bad film was the great film"]
BACKEND = """
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {
            name: utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("input_ids", "attention_mask")
        }
        (logits,) = self.session.run(["logits"], feeds)
        return utils.InferenceResponse([utils.Tensor("logits", logits)])
"""


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from pidep.backbones.load import load_backbone
    from tests.conftest import save_tiny

    return load_backbone(str(save_tiny(tmp_path_factory.mktemp("shallow"), num_layers=1)))


@pytest.fixture(scope="module")
def experts(shallow: Any) -> dict[str, Any]:
    """Two versions of `film`."""
    return {kind: replace(noisy(shallow, kind), name="film") for kind in ("lora", "bitfit")}


def export(expert: Any, repo: Path, *, front: bool = True) -> Path:
    """The entry in a repository; its graph's model runs in the stand-in."""
    source, recipe = Source(expert, TASK, ROWS), load_recipe("onnx-cpu")
    if not front:
        export_merged(source, repo, recipe)
        return repo / "film"
    export_front(source, repo, recipe, platform="onnxruntime", keep_rows=True)
    model = MergedRecord.read(repo / "film" / "1").graph_model
    assert model is not None
    config = read_config(repo / model / "config.pbtxt")
    assert (config.name, config.backend) == (model, "onnxruntime")
    assert not config.HasField("dynamic_batching")
    config.backend = "python"
    config.instance_group.add(count=1, kind="KIND_CPU")
    (repo / model / "config.pbtxt").write_text(text_format.MessageToString(config))
    (repo / model / "1" / "model.py").write_text(BACKEND)
    return repo / "film"


@pytest.fixture(scope="module")
def entries(experts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The entry of each version, in a repository of its own."""
    folder = tmp_path_factory.mktemp("entries")
    return {kind: export(expert, folder / kind) for kind, expert in experts.items()}


@pytest.fixture(scope="module")
def served(
    entries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server of the version `lora`. Each test but the last one leaves that version."""
    repo = tmp_path_factory.mktemp("served") / "model_repo"
    shutil.copytree(entries["lora"].parent, repo)
    with TritonServer(repo, free_ports(), admin_key=KEY) as server:
        yield server


def models(server: TritonServer) -> set[str]:
    """The models of the repository; the server has loaded them, and no others."""
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(server.grpc_url) as admin:
        index = admin.get_model_repository_index(headers=server.admin_headers()).models
    loaded = {one.name for one in index if one.state == "READY"}
    assert loaded == {path.name for path in server.repo.iterdir() if path.is_dir()}
    return loaded


def digest(url: str) -> str:
    with Client(url, model="film") as client:
        return client.infer([Request("good film")])[0].digest


def test_texts_are_answered_through_the_graphs_model(
    served: TritonServer, shallow: Any, experts: dict[str, Any]
) -> None:
    expected = torch_scores(shallow, experts["lora"], TEXTS)
    with Client(served.grpc_url, model="film") as client:
        found = client.infer([Request(text) for text in TEXTS])
        shown = [list(one.scores.values()) for one in found]
        np.testing.assert_allclose(shown, expected, atol=1e-5, rtol=0)
        assert {one.digest for one in found} == {experts["lora"].digest}
        # A wrong row fails alone, as in every model of pidep.
        good, bad = client.infer([Request("good film"), Request(" ")], all_or_nothing=False)
    assert not good.error
    assert bad.error
    (verified,) = verify_entry(served.repo / "film", served.grpc_url)
    assert not verified.fault


def test_a_graphs_model_that_is_not_loaded_is_named(served: TritonServer) -> None:
    import tritonclient.grpc as triton

    model = MergedRecord.read(served.repo / "film" / "1").graph_model
    with triton.InferenceServerClient(served.grpc_url) as admin:
        key = served.admin_headers()
        admin.unload_model(model, headers=key)
        with Client(served.grpc_url, model="film", retries=0) as client:
            refused = pytest.raises(ServingError, match=f"model '{model}' is not loaded; try again")
            with refused:
                client.infer([Request("good film")])
        admin.load_model(model, headers=key)


def test_a_roll_under_load_loses_no_request(
    served: TritonServer, entries: dict[str, Path], experts: dict[str, Any]
) -> None:
    stop, seen = threading.Event(), list[str]()

    def ask() -> None:
        with Client(served.grpc_url, model="film", retries=0) as client:
            while not stop.is_set():
                seen.append(client.infer([Request("good film")])[0].digest)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for one in clients:
        one.start()
    done = [
        roll_entry(entries[kind], served.repo, [served.grpc_url], key=KEY)
        for kind in ("bitfit", "lora", "bitfit")
    ]
    assert digest(served.grpc_url) == experts["bitfit"].digest
    former = MergedRecord.read(served.repo / "film" / "1").graph_model
    done.append(roll_entry(entries["lora"], served.repo, [served.grpc_url], key=KEY))
    stop.set()
    for one in clients:
        one.join()
    # Each answer came from a whole pair of models, and none failed.
    assert set(seen) == {one.digest for one in experts.values()}
    assert [one.new_entry for one in done[:-1]] == [one.old_entry for one in done[1:]]
    record = MergedRecord.read(served.repo / "film" / "1")
    assert record.entry_digest == done[-1].new_entry
    # The former graph's model has gone from the repository and from the server.
    assert former != record.graph_model
    assert models(served) == {"film", str(record.graph_model)}


def test_a_version_that_cannot_be_loaded_is_put_back(
    served: TritonServer, entries: dict[str, Path], experts: dict[str, Any], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(entries["bitfit"].parent, broken)
    before = (served.repo / "film" / "1" / "merged.json").read_bytes()
    # Its digest is right, and its code fails.
    (broken / "film" / "1" / "model.py").write_text("raise RuntimeError('broken')")
    with pytest.raises(ServingError, match="broken"):
        roll_entry(broken / "film", served.repo, [served.grpc_url], key=KEY)
    assert digest(served.grpc_url) == experts["lora"].digest
    assert (served.repo / "film" / "1" / "merged.json").read_bytes() == before
    former = str(MergedRecord.read(served.repo / "film" / "1").graph_model)
    assert models(served) == {"film", former}


def test_another_graph_beside_the_front_is_put_back(
    served: TritonServer, entries: dict[str, Path], experts: dict[str, Any], tmp_path: Path
) -> None:
    # Triton's backend would run it, and its answers would carry the recorded digest.
    other = tmp_path / "other"
    shutil.copytree(entries["bitfit"].parent, other)
    model = str(MergedRecord.read(other / "film" / "1").graph_model)
    former = str(MergedRecord.read(entries["lora"] / "1").graph_model)
    graph = entries["lora"].parent / former / "1" / "model.onnx"
    shutil.copyfile(graph, other / model / "1" / "model.onnx")
    with pytest.raises(ServingError, match=r"model\.onnx: digest sha256:\w+, expected sha256:"):
        roll_entry(other / "film", served.repo, [served.grpc_url], key=KEY)
    assert digest(served.grpc_url) == experts["lora"].digest


def test_a_server_that_goes_on_with_the_old_entry_is_found_out(
    served: TritonServer, entries: dict[str, Path], experts: dict[str, Any], tmp_path: Path
) -> None:
    # Triton Server says `successfully loaded`, and yet another entry answers.
    liar = tmp_path / "liar"
    shutil.copytree(entries["bitfit"].parent, liar)
    version, served_version = liar / "film" / "1", served.repo / "film" / "1"
    old = MergedRecord.read(served_version).entry_digest
    lie = (
        "import pidep.serving.triton_model as module\n"
        "made = module._Respond.to\n"
        "module._Respond.to = lambda request, *, entry, width: made("
        f"request, entry={old!r}, width=width)\n"
    )
    (version / "model.py").write_text((version / "model.py").read_text() + lie)
    MergedRecord.read(version).sealed(version).write(version)
    with pytest.raises(ServingError, match=r"shows entry sha256:\w+, expected sha256:\w+; see"):
        roll_entry(liar / "film", served.repo, [served.grpc_url], key=KEY, timeout_s=5)
    assert digest(served.grpc_url) == experts["lora"].digest


def test_the_command_rolls_and_names_both_entries(
    served: TritonServer,
    entries: dict[str, Path],
    experts: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["roll", entries["bitfit"], "--repo", served.repo, "--url", served.grpc_url]
    done = pidep(*command, cwd=tmp_path)
    assert_refused(done, r"PIDEP_ADMIN_KEY: not set, and no --admin-key-file; give the", code=2)
    monkeypatch.setenv("PIDEP_ADMIN_KEY", "f" * 32)
    assert_refused(pidep(*command, cwd=tmp_path), r"127\.0\.0\.1:\d+: refuses the key of", code=1)
    assert digest(served.grpc_url) == experts["lora"].digest
    key_file = tmp_path / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(f"{KEY}\n")
    command += ["--admin-key-file", key_file]
    done = pidep(*command, cwd=tmp_path)
    assert_refused(
        done, r"--admin-key-file: PIDEP_ADMIN_KEY is set, too; give the key in one", code=2
    )
    monkeypatch.delenv("PIDEP_ADMIN_KEY")
    found = json.loads(pidep(*command, "--json", cwd=tmp_path).out)
    assert found["new_entry"] == MergedRecord.read(entries["bitfit"] / "1").entry_digest
    assert found["urls"] == [served.grpc_url]
    assert digest(served.grpc_url) == experts["bitfit"].digest
    roll_entry(entries["lora"], served.repo, [served.grpc_url], key=KEY)


def test_an_export_without_a_front_removes_the_former_graphs_model(
    entries: dict[str, Path], experts: dict[str, Any], tmp_path: Path
) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(entries["bitfit"].parent, repo)
    former = str(MergedRecord.read(repo / "film" / "1").graph_model)
    assert (repo / former).is_dir()
    export(experts["bitfit"], repo, front=False)
    assert [path.name for path in repo.iterdir()] == ["film"]


@pytest.mark.parametrize("model", ["..", ".", "a/b-graph-0123456789ab", "film", "film-graph-12"])
def test_a_front_names_no_path(entries: dict[str, Path], tmp_path: Path, model: str) -> None:
    """A roll and an export remove the folder of that name."""
    values = json.loads((entries["lora"] / "1" / "merged.json").read_text())
    with pytest.raises(ValidationError, match="graph_model"):
        MergedRecord.model_validate({**values, "graph_model": model})


def test_a_model_of_the_python_backend_is_rolled_too(
    served: TritonServer, experts: dict[str, Any], tmp_path: Path
) -> None:
    former = MergedRecord.read(served.repo / "film" / "1").graph_model
    entry = export(experts["bitfit"], tmp_path / "plain", front=False)
    roll_entry(entry, served.repo, [served.grpc_url], key=KEY)
    assert digest(served.grpc_url) == experts["bitfit"].digest
    assert not (served.repo / str(former)).exists()


def test_what_cannot_be_rolled_is_refused(entries: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no entry of a model"):
        roll_entry(tmp_path, tmp_path / "repo", ["127.0.0.1:1"], key=KEY)
    alone = tmp_path / "film"
    shutil.copytree(entries["lora"], alone)
    with pytest.raises(UsageError, match=r"asks the model film-graph-\w{12}, which is missing"):
        roll_entry(alone, tmp_path / "repo", ["127.0.0.1:1"], key=KEY)
    with pytest.raises(UsageError, match=r"asks the model film-graph-\w{12}, which is missing"):
        TritonServer(tmp_path, free_ports()).start()
    with pytest.raises(UsageError, match="at least 16 letters and digits"):
        TritonServer(tmp_path, free_ports(), admin_key="a,b")
