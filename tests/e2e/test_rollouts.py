"""`pidep experts` with a real server: a canary is promoted, a bad one is taken back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pidep.experts.folder import write_expert
from pidep.serving import Client, ExpertStore, Request
from tests.cli.run import Done
from tests.cli.run import pidep as run
from tests.serving.experts import small_expert
from tests.serving.rolled_out import LONG, failing_expert
from tests.serving.served import serving
from tests.serving.small_bank import write_served_bank

pytestmark = pytest.mark.server


class Asking(threading.Thread):
    """Asks `film` with many keys until it is stopped; keeps every digest and every error."""

    def __init__(self, url: str, text: str) -> None:
        super().__init__()
        self.url, self.text = url, text
        self.stopped = threading.Event()
        self.digests: list[str] = []
        self.sent = 0

    def run(self) -> None:
        with Client(self.url) as client:
            while not self.stopped.is_set():
                rows = [Request(self.text, "film", key=f"{self.sent + at}") for at in range(16)]
                self.sent += len(rows)
                self.digests += [one.digest for one in client.infer(rows)]


def test_a_good_canary_is_promoted_and_a_bad_one_taken_back(tmp_path: Path) -> None:
    old = small_expert(seed=0)
    new, bad = small_expert(seed=5), failing_expert()
    write_expert(new, tmp_path / "new")
    write_expert(bad, tmp_path / "bad")
    store = ExpertStore(tmp_path / "expert_store")

    def experts(url: str, *arguments: str) -> Done:
        return run("experts", *arguments, "--url", url, cwd=tmp_path)

    with serving(write_served_bank(tmp_path)) as served:
        asking = Asking(served.url, LONG)
        asking.start()
        options = ["--weight", "0.5", "--auto", "--rows", "200", "--max-drift", "1"]
        options += ["--max-slowdown", "100"]
        failed = experts(served.url, "canary", "film", "bad", *options)
        assert (failed.code, failed.err.count("\n")) == (1, 1)
        assert f"canary of 'film' rolled back: {bad.digest[:19]}…" in failed.err
        assert store.manifest().aliases["film"] == old.digest
        assert set(asking.digests) == {old.digest}
        done = experts(served.url, "canary", "film", "new", *options)
        assert (done.code, done.err) == (0, "")
        assert f"→ {new.digest[:19]} (revision" in done.out
        asking.stopped.set()
        asking.join()
        assert len(asking.digests) == asking.sent > 400
        assert set(asking.digests) == {old.digest, new.digest}
        back = experts(served.url, "rollback", "film")
        assert back.code == 0
        with Client(served.url) as client:
            assert client.infer([Request("good", "film")])[0].digest == old.digest
