"""CLIP and SigLIP through the real Triton Server: a bank, a merged model, and a swap."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.deployment.release import release_bank
from pidep.errors import ServingError
from pidep.export import Source, export_merged, load_recipe
from pidep.inputs.row import Row, as_row
from pidep.serving.client import Client, Request
from pidep.serving.server import TritonServer, free_ports
from pidep.serving.swap import swap_expert
from pidep.tasks.data import Split
from tests.backbones.two_tower_models import save_two_towers
from tests.conftest import make_expert, png
from tests.export.two_towers import ROWS, TASK, expected, experts_of

pytestmark = pytest.mark.server
NAMES = ("both", "image", "text", "both", "prefix", "image")


@pytest.fixture(scope="module", params=["CLIP", "SigLIP"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from pidep.backbones.load import load_backbone

    root = tmp_path_factory.mktemp("served")
    backbone = load_backbone(str(save_two_towers(root / "model", request.param)))
    experts = {name: one for name, one in experts_of(backbone).items() if name in NAMES}
    rows, recipe = Split(ROWS, [0, 1, 1, 0, 1, 0]), load_recipe("onnx-cpu")
    sources = [Source(expert, TASK, rows) for expert in experts.values()]
    release_bank(sources, root / "model_repo", recipe, keep_rows=True)
    export_merged(sources[0], root / "model_repo", recipe)
    with TritonServer(root / "model_repo", free_ports()) as server:
        yield server, root / "model_repo", experts, backbone


def asked() -> list[Request]:
    return [
        Request(row.text, name, row.image)  # type: ignore[arg-type]
        for row, name in zip(map(as_row, ROWS), NAMES, strict=True)
    ]


def scores(backbone: Any, expert: Any, row: Any) -> dict[str, float]:
    logits = expected(backbone, expert, row)[1]
    exponents = np.exp(logits - logits.max())
    return dict(zip(expert.labels, (exponents / exponents.sum()).tolist(), strict=True))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_texts_images_and_both_of_several_experts_in_one_batch(served: Any, protocol: str) -> None:
    server, _, experts, backbone = served
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with Client(url, protocol=protocol) as client:
        together = client.infer(asked())
        for row, one, found in zip(ROWS, asked(), together, strict=True):
            expert = experts[one.expert]
            assert found.digest == expert.digest
            assert found.scores == pytest.approx(scores(backbone, expert, row), abs=2e-4)
            assert client.infer([one])[0].scores == pytest.approx(found.scores, abs=1e-4)


def test_a_merged_model_answers_the_same(served: Any) -> None:
    server, _, experts, backbone = served
    with Client(server.grpc_url, model="both") as client:
        for row in ROWS:
            whole = as_row(row)
            (found,) = client.infer([Request(whole.text, "both", whole.image)])  # type: ignore[arg-type]
            want = scores(backbone, experts["both"], row)
            assert found.scores == pytest.approx(want, abs=2e-4)


def test_candidates_are_texts_and_images(served: Any) -> None:
    server, _, experts, backbone = served
    candidates: list[Any] = ["a cat", png(5), "big dog"]
    choices = [
        Request("", "", one) if isinstance(one, bytes) else Request(one) for one in candidates
    ]
    with Client(server.grpc_url) as client:
        found = client.choose(Request("a red cat", "both"), choices)
    rows = [Row(image=one) if isinstance(one, bytes) else one for one in candidates]
    query = expected(backbone, experts["both"], "a red cat")[0]
    cosines = [float(expected(backbone, None, row)[0] @ query) for row in rows]
    assert list(found.scores.values()) == pytest.approx(cosines, abs=1e-4)


def test_a_wrong_image_is_named_and_the_server_goes_on(served: Any) -> None:
    server, *_ = served
    with Client(server.grpc_url) as client:
        with pytest.raises(ServingError, match="row 2: expected PNG, JPEG"):
            client.infer([Request("a cat", "both"), Request("", "both", b"no image")])
        assert client.infer(asked())


def test_a_swap_replaces_both_towers_at_once(served: Any) -> None:
    server, repo, experts, backbone = served
    new = replace(experts["both"], sites=make_expert(backbone, seed=11, rank=1).sites)
    rows = [ROWS[0], ROWS[1], ROWS[2]]
    with Client(server.grpc_url) as client:
        assert swap_expert("both", new, repo, server.grpc_url).new_digest == new.digest
        for row in rows:
            whole = as_row(row)
            (found,) = client.infer([Request(whole.text, "both", whole.image)])  # type: ignore[arg-type]
            assert found.digest == new.digest
            assert found.scores == pytest.approx(scores(backbone, new, row), abs=2e-4)
        # An expert of the image tower alone passes the probe of the server.
        image = replace(
            experts["image"],
            sites=make_expert(backbone, seed=12, rank=2, sites=["vision_model.*"]).sites,
        )
        assert swap_expert("image", image, repo, server.grpc_url).new_digest == image.digest
        # One that changes nothing is refused, and the old one goes on.
        idle = replace(
            image,
            sites={
                site: {name: np.zeros_like(array) for name, array in tensors.items()}
                for site, tensors in image.sites.items()
            },
        )
        with pytest.raises(ServingError, match="changes nothing"):
            swap_expert("image", idle, repo, server.grpc_url)
        assert client.infer([Request("", "image", png(0))])[0].digest == image.digest
    for name in ("both", "image"):
        swap_expert(name, experts[name], repo, server.grpc_url)


def test_verify_and_infer_from_the_command_line(served: Any, tmp_path: Path) -> None:
    server, repo, experts, _ = served
    command = [sys.executable, "-m", "pidep"]
    done = subprocess.run(
        [*command, "verify", str(repo / "pidep_bank"), "--url", server.grpc_url],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "a.png").write_bytes(png(0))
    picture = ["--image", str(tmp_path / "a.png"), "--json"]
    done = subprocess.run(
        [*command, "infer", "--url", server.grpc_url, "--expert", "image", *picture],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert experts["image"].digest in done.stdout
