"""Images through the real Triton Server: text, image and both in one batch, and wrong images."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pidep.adapters.mixture import Mixture, attached
from pidep.deployment.release import release_bank
from pidep.errors import ServingError, UsageError
from pidep.export import Source, export_merged, load_recipe
from pidep.inputs.row import Input, Row, as_row
from pidep.serving.client import Client, Request
from pidep.serving.server import TritonServer, free_ports
from pidep.serving.swap import swap_expert
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from tests.conftest import make_expert, picture, png

pytestmark = pytest.mark.server
TASK = Task.model_validate(
    {
        "name": "seen",
        "labels": {"negative": "n", "positive": "p"},
        "input": "",
        "image": "image",
        "data": {"path": "x.jsonl"},
    }
)
ROWS: list[Input] = [
    "a fine day",
    Row("", png(0)),
    Row("is this an anchor?", png(1)),
    Row("", png(2)),
]
NAMES = ("words", "sees", "asks", "sees")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    from pidep.backbones.load import load_backbone

    backbone = load_backbone("pidep-mini")
    repo = tmp_path_factory.mktemp("served") / "model_repo"
    sites = ("encoder.layer.5.attention.*",)
    experts = {
        name: make_expert(backbone, name=name, seed=seed, scaling=0.5, sites=sites)
        for seed, name in enumerate(sorted(set(NAMES)))
    }
    sources = [Source(expert, TASK, Split(ROWS, [0, 1, 0, 1])) for expert in experts.values()]
    sources.append(choosing(backbone, sites))
    experts["chooses"] = sources[-1].expert
    exported = release_bank(sources, repo, load_recipe("onnx-cpu"))
    export_merged(sources[1], repo, load_recipe("onnx-cpu"))
    with TritonServer(repo, free_ports()) as server:
        yield server, repo, experts, backbone, exported


CANDIDATES: tuple[Input, ...] = ("an anchor", Row("", png(6)), "a fine day")


def choosing(backbone: Any, sites: tuple[str, ...]) -> Source:
    """An expert without labels: its rows bring their own candidates."""
    expert = replace(
        make_expert(backbone, name="chooses", seed=7, scaling=0.5, sites=sites),
        labels=(),
        label_texts=(),
    )
    expert = replace(expert, label_embeddings=np.zeros((0, backbone.hidden_size), np.float32))
    task = Task.model_validate(
        {"name": "chooses", "candidates": "choices", "data": {"path": "x.jsonl"}}
    )
    rows: list[Input] = [
        Row("something", candidates=CANDIDATES),
        Row("good", candidates=CANDIDATES[:2]),
    ]
    return Source(expert, task, Split(rows, [0, 1]))


def requests() -> list[Request]:
    return [
        Request(row.text, name, row.image)
        for row, name in zip(map(as_row, ROWS), NAMES, strict=True)
    ]  # type: ignore[arg-type]


def expected(backbone: Any, expert: Any, row: Input) -> dict[str, float]:
    import torch

    with attached(backbone.model, Mixture.of([expert])):
        embedding = backbone.encode([row], max_length=expert.max_length)[0]
    scores = torch.softmax(
        expert.logit_scale * torch.from_numpy(expert.label_embeddings) @ embedding, 0
    )
    return dict(zip(expert.labels, scores.tolist(), strict=True))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_text_an_image_and_both_in_one_batch_of_three_experts(served, protocol) -> None:  # type: ignore[no-untyped-def]
    server, _, experts, backbone, exported = served
    assert all(parity.argmax_flips == 0 for parity in exported.parity.values())
    with Client(
        server.grpc_url if protocol == "grpc" else server.http_url, protocol=protocol
    ) as client:
        for row, asked, found in zip(ROWS, requests(), client.infer(requests()), strict=True):
            assert found.digest == experts[asked.expert].digest
            assert found.scores == pytest.approx(
                expected(backbone, experts[asked.expert], row), abs=2e-4
            )
            assert client.infer([asked])[0].scores == pytest.approx(found.scores, abs=1e-4)


def test_a_merged_model_sees_the_same(served) -> None:  # type: ignore[no-untyped-def]
    server, _, experts, _, _ = served
    merged = list(experts)[1]
    row = Request("what is it", merged, png(3))
    with Client(server.grpc_url) as bank, Client(server.grpc_url, model=merged) as alone:
        assert bank.infer([row])[0].scores == pytest.approx(alone.infer([row])[0].scores, abs=1e-4)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def modes() -> dict[str, bytes]:
    rgb = Image.fromarray(picture(5))
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    return {
        "palette": encoded(rgb.quantize(32)),
        "transparent palette": encoded(rgb.quantize(32), transparency=0),
        "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "16 bits": encoded(deep),
        "one bit": encoded(rgb.convert("1")),
        "grey with alpha": encoded(rgb.convert("LA")),
        "gif": encoded(rgb, "GIF"),
    }


@pytest.mark.parametrize("mode", sorted(modes()))
def test_every_mode_is_answered_as_in_training(served, mode) -> None:  # type: ignore[no-untyped-def]
    server, _, experts, backbone, _ = served
    image = modes()[mode]
    with Client(server.grpc_url) as client:
        (found,) = client.infer([Request("", "sees", image)])
    assert found.scores == pytest.approx(
        expected(backbone, experts["sees"], Row("", image)), abs=2e-4
    )


def bomb(width: int = 100_000, height: int = 100_000) -> bytes:
    """A PNG of 100,000 × 100,000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("text", "image", "message"),
    [
        (
            "",
            b"this is no image",
            "row 2: expected PNG, JPEG.* found something else; convert it or remove the row",
        ),
        ("a word", png(0)[:300], "row 2: the pixels cannot be decoded .* it is damaged"),
        ("", bomb(), "row 2: expected at most 67108864 pixels, found "),
        ("", None, "row 2: expected a text, an image or both, found neither"),
    ],
)
def test_a_wrong_row_is_named_and_the_server_goes_on(served, text, image, message) -> None:  # type: ignore[no-untyped-def]
    server, _, _, _, _ = served
    with Client(server.grpc_url) as client:
        with pytest.raises(ServingError, match=message):
            client.infer([Request("good", "words"), Request(text, "sees", image)])
        assert client.infer(requests())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([bomb(8192, 8192)], r"row 1: .* pixels of image \(max_image_pixels\), found 67108864"),
        (
            [bomb(4000, 3000 + number) for number in range(3)],
            r"\(max_request_image_pixels\), found 36012000 in the first 3 rows; send fewer rows",
        ),
        ([png(0), png(1) + bytes(2**24)], r"row 2: .* bytes of image \(max_image_bytes\), found"),
        ([png(0) + bytes(2**24 - 50_000)] * 3, r"\(max_request_image_bytes\), found"),
    ],
    ids=["pixels", "pixels of a request", "bytes", "bytes of a request"],
)
def test_images_over_a_limit_are_refused_before_they_are_decoded(  # type: ignore[no-untyped-def]
    served, protocol, images, message
) -> None:
    server, *_ = served
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with Client(url, protocol=protocol) as client:
        with pytest.raises(ServingError, match=message):
            client.infer([Request("", "sees", image) for image in images])
        assert client.infer(requests())


def test_candidates_are_chosen_by_the_bare_backbone(served) -> None:  # type: ignore[no-untyped-def]
    server, _, experts, backbone, exported = served
    assert exported.parity["chooses"].argmax_flips == 0
    asked = [Request(row.text, "", row.image) for row in map(as_row, CANDIDATES)]  # type: ignore[arg-type]
    with Client(server.grpc_url) as client:
        found = client.choose(Request("something", "chooses"), asked)
        (plain,) = client.infer([Request("something", "chooses")])
        # more rows than a batch holds
        many = client.choose(Request("something", "chooses"), asked * 30)
        with pytest.raises(UsageError, match="expected at least one candidate, found none"):
            client.choose(Request("something", "chooses"), [])
    with attached(backbone.model, Mixture.of([experts["chooses"]])):
        query = backbone.encode(["something"], max_length=12)[0]
    cosines = backbone.encode(CANDIDATES, max_length=32) @ query
    assert list(found.scores.values()) == pytest.approx(cosines.tolist(), abs=1e-4)
    assert (found.label, found.digest) == (str(int(cosines.argmax())), experts["chooses"].digest)
    assert list(many.scores.values()) == pytest.approx(list(found.scores.values()) * 30, abs=1e-4)
    assert (plain.label, plain.scores, plain.digest) == ("", {}, experts["chooses"].digest)


def test_a_merged_model_needs_labels(served, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, _, _, backbone, _ = served
    with pytest.raises(
        UsageError, match=r"its rows bring their own candidates, .* use `form=bank`"
    ):
        export_merged(
            choosing(backbone, ("encoder.layer.5.attention.*",)),
            tmp_path / "repo",
            load_recipe("onnx-cpu"),
        )
    assert not (tmp_path / "repo").exists()


def test_images_from_the_command_line_and_a_swap(served, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    server, repo, experts, backbone, _ = served
    (tmp_path / "a.png").write_bytes(png(0))
    command = [sys.executable, "-m", "pidep", "infer", "--url", server.grpc_url]
    done = subprocess.run(
        [*command, "--expert", "sees", "--image", str(tmp_path / "a.png"), "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert experts["sees"].digest in done.stdout
    lines = (
        '{"text": "is it?", "image": "%s", "expert": "asks"}\n{"text": "a day", "expert": '
        '"words"}\n' % (tmp_path / "a.png")
    )
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.stdout.count('"digest"') == 2, done.stderr
    gone = subprocess.run(
        [*command, "--expert", "sees", "--image", str(tmp_path / "none.png")],
        capture_output=True,
        text=True,
    )
    assert gone.returncode == 2
    assert "none.png: expected an image file" in gone.stderr
    new = make_expert(
        backbone, name="sees", seed=9, scaling=0.5, sites=("encoder.layer.5.attention.*",)
    )
    assert swap_expert("sees", new, repo, server.grpc_url).new_digest == new.digest
    swap_expert("sees", experts["sees"], repo, server.grpc_url)


def test_an_expert_of_the_text_encoder_is_served_beside(served) -> None:  # type: ignore[no-untyped-def]
    from pidep.backbones.load import load_backbone

    server, repo, _, _, _ = served
    minilm = load_backbone("minilm")
    expert = make_expert(
        minilm, name="text-only", seed=4, scaling=0.5, sites=("encoder.layer.5.attention.*",)
    )
    swap_expert("text-only", expert, repo, server.grpc_url)
    with Client(server.grpc_url) as client:
        (found,) = client.infer([Request("a fine day", "text-only")])
    assert found.digest == expert.digest
    assert found.scores == pytest.approx(expected(minilm, expert, "a fine day"), abs=2e-4)
