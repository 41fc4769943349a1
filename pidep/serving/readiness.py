"""Whether the server of this machine answers, and serves what its store says: a probe's command.

    python3 -m pidep.serving.readiness ENTRY HOST:PORT [--alive]

Exit code 0 means yes. Triton Server's own `ready` stays true after a model's process died, and it
does not know the store. The probe asks the model itself over HTTP, and imports no tritonclient.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.manifest import Manifest
from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import (
    BANK_RECORD,
    ENTRY,
    EXPERT,
    LABEL,
    PROBE_ID,
    STATUS,
    TEXT,
    VERSION,
)
from pidep.errors import PidepError, ServingError, UnreachableError

__all__ = ["require_alive", "require_ready"]

_TIMEOUT_S = 4.0
"""Below the five seconds that the bundle's probes permit."""


def require_ready(entry: Path, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
    """Return where the server serves the entry, at the revision of its store or a later one.

    A version that the server refuses keeps it ready: the name's old version serves, and all other
    names do. `pidep doctor` and the metrics tell.

    Args:
        entry: a model's folder in the repository, such as `/srv/pidep/model_repo/pidep_bank`.
        url: HTTP address, host:port.

    Raises:
        UnreachableError: nobody answers.
        ServingError: another entry or an older revision is served, or the store is not followed.
    """
    version = entry / VERSION
    if not (version / BANK_RECORD).is_file():
        answer = _ask(entry.resolve().name, url, is_bank=False, timeout_s=timeout_s)
        _require_entry(answer[ENTRY], MergedRecord.read(version).entry_digest)
        return
    record = BankRecord.read(version)
    # Read first: a change after it makes the server newer, never older.
    manifest = Manifest.read(record.store(version))
    answer = _ask(entry.resolve().name, url, is_bank=True, timeout_s=timeout_s)
    status: dict[str, Any] = json.loads(answer[LABEL])
    _require_entry(status["entry"], record.entry_digest)
    if status["fault"] or not status["ready"]:
        silent = f"it has not looked for {status['silent_s']:.0f} s"
        raise ServingError(f"the store is not followed: {status['fault'] or silent}")
    if (status["revision"] or 0) < manifest.revision:
        raise ServingError(
            f"revision {status['revision']} is served, the store is at {manifest.revision}"
        )


def require_alive(entry: Path, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
    """Return where the model answers, whatever it serves.

    Raises:
        UnreachableError: nobody answers, or the model's process has ended.
    """
    is_bank = (entry / VERSION / BANK_RECORD).is_file()
    _ask(entry.resolve().name, url, is_bank=is_bank, timeout_s=timeout_s)


def _ask(model: str, url: str, *, is_bank: bool, timeout_s: float) -> dict[str, str]:
    """The text outputs of an answer: a bank's state, or the label of a row."""
    rows = {TEXT: "which version answers?", **({EXPERT: STATUS} if is_bank else {})}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in rows.items()
    ]
    outputs = [{"name": name} for name in (LABEL, ENTRY)]
    host, _, port = url.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)
    try:
        body = json.dumps({"id": PROBE_ID, "inputs": inputs, "outputs": outputs})
        connection.request("POST", f"/v2/models/{quote(model)}/infer", body)
        response = connection.getresponse()
        content = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url}, model {model}: no answer ({error})") from error
    finally:
        connection.close()
    if response.status != 200:
        found = str(content.get("error", ""))[:200]
        raise UnreachableError(f"{url}, model {model}: {response.status} {found}")
    return {one["name"]: one["data"][0] for one in content["outputs"]}


def _require_entry(served: str, expected: str | None) -> None:
    if expected is not None and served != expected:
        raise ServingError(f"entry {served[:19]} is served, the repository has {expected[:19]}")


def main() -> int:
    """Exit code for a probe; the reason is a line on standard error, which Kubernetes shows."""
    parser = argparse.ArgumentParser(prog="python3 -m pidep.serving.readiness")
    parser.add_argument("entry", type=Path)
    parser.add_argument("url")
    parser.add_argument("--alive", action="store_true")
    given = parser.parse_args()
    try:
        (require_alive if given.alive else require_ready)(given.entry, given.url)
    except PidepError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
