"""Adapters by hub id: a small hub of our own on the loopback answers as the real one does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pidep.errors import ExpertError
from pidep.tuning.adapter_hub import hub_folder, is_hub_id
from tests.tuning.test_import_peft import Train, adopt, peft_model

__all__ = ["adopt", "peft_model"]  # fixtures

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One repository `me/film`, with its files at one commit."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        content = b""
        if path.startswith("/api/models/me/film/revision/"):
            names = [{"rfilename": name} for name in self.files]
            content = json.dumps({"id": "me/film", "sha": COMMIT, "siblings": names}).encode()
        elif path.startswith("/api/models/me/film/tree/"):
            content = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in self.files.items()
                ]
            ).encode()
        elif path.startswith("/me/film/resolve/") and path.rpartition("/")[2] in self.files:
            content = self.files[path.rpartition("/")[2]]
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_a_hub_id_is() -> None:
    assert is_hub_id("me/film")
    assert is_hub_id("me/film@v1.0")
    for other in ("film", "/me/film", "./film", "a/b/c", "me/film@", "../film"):
        assert not is_hub_id(other)


def test_an_adapter_is_taken_from_the_hub(
    hub: str, peft_model: Train, adopt: Any, tmp_path: Path
) -> None:
    """Only the two files are downloaded; another process, because the address is read once."""
    peft_model().save_pretrained(tmp_path / "lora")
    Hub.files = {path.name: path.read_bytes() for path in (tmp_path / "lora").iterdir()}
    Hub.files["adapter_model.bin"] = b"pickle"
    code = (
        "import sys; from pidep.tuning.adapter_hub import hub_folder; print(hub_folder('me/film'))"
    )
    cache = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not [path for path in Hub.asked if path.endswith(".bin")]
    assert adopt(folder).digest == adopt(tmp_path / "lora").digest


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of huggingface_hub, which reads it and asks nobody."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def keep(cache: Path, name: str, model: Any, *, revision: str = "main") -> Path:
    """An adapter in the cache, as a download leaves it; gives its folder."""
    place = cache / f"models--{name.replace('/', '--')}"
    model.save_pretrained(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / revision).write_text(COMMIT)
    return place / "snapshots" / COMMIT


def test_an_adapter_is_imported_by_its_id(kept: Path, peft_model: Train, adopt: Any) -> None:
    folder = keep(kept, "me/film", peft_model(), revision="v1")
    found = adopt(Path("me/film@v1"))
    assert found.digest == adopt(folder).digest
    assert found.provenance["imported_from"] == "peft"
    with pytest.raises(ExpertError, match="me/film@v2: no such folder, and no adapter of this id"):
        adopt(Path("me/film@v2"))


def test_a_head_of_its_own_is_refused_by_name(kept: Path, peft_model: Train, adopt: Any) -> None:
    """`modules_to_save`: an expert scores against the texts of its labels."""
    keep(kept, "me/head", peft_model(modules_to_save=["pooler"]))
    with pytest.raises(ExpertError, match=r"modules_to_save=\['pooler'\] is not supported: these"):
        adopt(Path("me/head"))
    assert not Path("out").exists()


def test_a_folder_comes_before_an_id(kept: Path, peft_model: Train, adopt: Any) -> None:
    keep(kept, "me/film", peft_model())
    other = peft_model(r=2)
    other.save_pretrained("me/film")
    assert adopt(Path("me/film")).rank == 2


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*arguments: Any, **more: Any) -> None:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ExpertError, match=r"me/film: no such folder, and no adapter .*no route\)"):
        hub_folder("me/film")
