"""A merged model rolled to a new version on running servers, or put back.

The entry comes to its place in the repository in one step. Each server loads it over gRPC: a load
over HTTP would stall other traffic. A load that returns proves nothing (Triton Server says
`successfully loaded` also where the old code goes on), so each server is then asked until it shows
the new entry's digest. Where one does not, the old entry is put back, and loaded again.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import BANK_RECORD, CONFIG, ENTRY, ENTRY_PARAMETER, TEXT, VERSION
from pidep.errors import PidepError, ServingError, UsageError
from pidep.files.atomic_write import in_place, temporary_sibling
from pidep.files.cache_folder import locked
from pidep.serving.addresses import channel_options
from pidep.serving.launch_options import admin_headers
from pidep.serving.repository import has_stub, require_complete
from pidep.serving.request import check_address, failure

__all__ = ["Rolled", "roll_entry"]

_POLL_S = 0.02
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rolled:
    """A merged model that every server answers by."""

    model: str
    old_entry: str | None
    """Entry digest of the model before; None where there was none."""
    new_entry: str
    urls: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def roll_entry(
    entry: Path, repo: Path, urls: Sequence[str], *, key: str, timeout_s: float = 60.0
) -> Rolled:
    """Serve an entry of a merged model from a repository that servers run on.

    Args:
        entry: a model's folder that `pidep export --form merged` wrote. One that lies in `repo`
            already is loaded where it is, and nothing can be put back.
        repo: the servers' model repository.
        urls: gRPC addresses of all servers of the repository.
        key: of administrative calls.
        timeout_s: for all servers together to show the new entry.

    Raises:
        UsageError: no server, the entry is not complete, or it is a bank's.
        UnreachableError: nobody answers at an address.
        ServingError: a server refuses the key, or did not load or show the entry; the old one
            serves again.
    """
    started = time.monotonic()
    model, record = entry.name, _record_of(entry)
    if not urls:
        raise UsageError("`url`: give the gRPC address of each server of the repository")
    behind = MergedRecord.graph_model_of(entry)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(_Server.connected(url, key, started + timeout_s)) for url in urls
        ]
        # One roll at a time: the next one sees what this one has left.
        stack.enter_context(locked(repo))
        old = _entry_digest(repo / model)
        former = MergedRecord.graph_model_of(repo / model)
        with _placed(entry, repo, then=servers):
            for server in servers:
                if behind is not None:
                    server.load(behind)
                server.load(model)
                server.require(repo / model, record)
        # No front asks the former graph any more.
        if former is not None and former != behind:
            for server in servers:
                server.unload(former)
            shutil.rmtree(repo / former, ignore_errors=True)
    took = round(time.monotonic() - started, 4)
    return Rolled(model, old, record.entry_digest or "", tuple(urls), took)


def _record_of(entry: Path) -> MergedRecord:
    version = entry / VERSION
    if (version / BANK_RECORD).is_file():
        raise UsageError(
            f"{entry}: is a bank; its experts are rolled out by `pidep experts` and `pidep swap`"
        )
    if not (entry / CONFIG).is_file():
        raise UsageError(f"{entry}: no entry of a model; make it with pidep export --form merged")
    require_complete(entry)
    record = MergedRecord.read(version)
    behind = record.graph_model
    if behind is not None and not (entry.parent / behind / CONFIG).is_file():
        raise UsageError(f"{entry}: asks the model {behind}, which is missing; export it again")
    if record.entry_digest is None:
        raise UsageError(f"{entry}: has no entry digest; export the model again to get one")
    return record


def _entry_digest(entry: Path) -> str | None:
    try:
        return MergedRecord.read(entry / VERSION).entry_digest
    except ServingError:
        return None


@contextmanager
def _placed(entry: Path, repo: Path, *, then: Sequence[_Server]) -> Iterator[None]:
    """The entry, and the model that it asks, in their places; an error puts the old ones back."""
    if entry.resolve().parent == repo.resolve():
        yield
        return
    is_new = not (repo / entry.name).exists()
    behind = MergedRecord.graph_model_of(entry)
    try:
        with ExitStack() as stack:
            # The graph's model has its digest in its name: it replaces no other one.
            for name in (behind, entry.name):
                if name is not None:
                    stack.enter_context(_copied(entry.parent / name, repo / name))
            yield
    except BaseException:
        for server in then:
            server.restore(repo / entry.name, is_new=is_new)
            # The former front asks the former graph's model, which every server still has.
            if behind is not None and behind != MergedRecord.graph_model_of(repo / entry.name):
                server.unload(behind)
        raise


@contextmanager
def _copied(source: Path, target: Path) -> Iterator[None]:
    with temporary_sibling(target) as new:
        shutil.copytree(source, new, dirs_exist_ok=True, copy_function=shutil.copyfile)
        with in_place(target, new):
            yield


class _Server:
    """The administrative side of one server."""

    def __init__(self, client: Any, url: str, key: str, deadline: float) -> None:
        self._client, self.url, self._deadline = client, url, deadline
        self._headers = admin_headers(key, "grpc")

    @classmethod
    @contextmanager
    def connected(cls, url: str, key: str, deadline: float) -> Iterator[_Server]:
        """A server until the end of the block."""
        check_address(url)
        try:
            import tritonclient.grpc as triton
        except ImportError as error:
            raise UsageError("tritonclient not found: pip install 'pidep[client]'") from error
        with triton.InferenceServerClient(url, **channel_options(url)) as client:
            server = cls(client, url, key, deadline)
            server._require_key()
            yield server

    def _require_key(self) -> None:
        """Fail where the key opens nothing, before anything is changed."""
        try:
            self._call("", self._client.get_model_repository_index, headers=self._headers)
        except ServingError as error:
            if "restricted" in str(error):
                raise ServingError(
                    f"{self.url}: refuses the key of administrative calls; give the key that the "
                    "server was started with"
                ) from error
            raise

    def load(self, model: str) -> None:
        """Load a model, or load it again."""
        self._call(model, self._client.load_model, model, headers=self._headers)

    def unload(self, model: str) -> None:
        """Unload a model that nobody asks any more; a failure is logged."""
        try:
            self._call(model, self._client.unload_model, model, headers=self._headers)
        except PidepError as error:
            _log.warning("%s: %s stays loaded: %s", self.url, model, error, extra={"model": model})

    def require(self, entry: Path, record: MergedRecord) -> None:
        """Return when the server shows the entry's digest.

        Raises:
            ServingError: it does not in time.
        """
        shown: Callable[[str], str] = self._answered if has_stub(entry) else self._configured
        found = ""
        while True:
            found = shown(entry.name)
            if found == record.entry_digest:
                return
            if time.monotonic() > self._deadline:
                shows = f"shows entry {found[:19]}" if found else "shows no entry"
                raise ServingError(
                    f"{self.url}, model {entry.name}: {shows}, expected "
                    f"{(record.entry_digest or '')[:19]}; see the server's log"
                )
            time.sleep(_POLL_S)

    def restore(self, entry: Path, *, is_new: bool) -> None:
        """Serve what is in the repository again, as far as that works."""
        try:
            if is_new:
                self.unload(entry.name)
                return
            # Files count as new by a later time only, and these are older than what was loaded.
            for path in [entry, *entry.rglob("*")]:
                os.utime(path)
            self._deadline = time.monotonic() + 30
            self.load(entry.name)
        except PidepError as error:
            _log.error("%s: the old entry could not be loaded again: %s", self.url, error)

    def _answered(self, model: str) -> str:
        """The digest in an answer."""
        import numpy as np
        import tritonclient.grpc as triton

        row = triton.InferInput(TEXT, [1, 1], "BYTES")
        row.set_data_from_numpy(np.array([[b"which version answers?"]], dtype=object))
        outputs = [triton.InferRequestedOutput(ENTRY)]
        answer = self._call(model, self._client.infer, model, [row], outputs=outputs)
        return str(answer.as_numpy(ENTRY)[0, 0].decode())

    def _configured(self, model: str) -> str:
        """The digest in the loaded configuration."""
        config = self._call(model, self._client.get_model_config, model, headers=self._headers)
        return str(config.config.parameters[ENTRY_PARAMETER].string_value)

    def _call(self, model: str, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        left = max(self._deadline - time.monotonic(), 0.1)
        try:
            return method(*given, client_timeout=left, **named)
        except Exception as error:  # tritonclient raises what its transport raises
            raise failure(self.url, model, error, timeout_s=left) from error
