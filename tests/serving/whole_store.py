"""What holds of a store whatever happened to it."""

from __future__ import annotations

from pidep.serving import ExpertStore
from pidep.serving.collect import window
from pidep.serving.history import histories

__all__ = ["check_whole"]


def check_whole(store: ExpertStore) -> None:
    """Whatever happened: all that is named can be read, and the histories end with the routes."""
    manifest = store.manifest()
    for digest in manifest.named | window(store, manifest, keep=1):
        assert store.load(digest).digest == digest
    for name, changes in histories(store.folder, manifest).items():
        # A first publication that was killed leaves a history without a change that counts.
        last = changes[-1].after if changes else None
        assert last == manifest.routes.get(name)
        assert [one.revision for one in changes] == sorted({one.revision for one in changes})
