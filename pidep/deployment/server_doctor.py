"""`pidep doctor --url` as a function: what is wrong with a running server, and how to mend it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.manifest import Manifest
from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import BANK, BANK_RECORD, CONFIG, VERSION
from pidep.errors import ServingError
from pidep.export.config_pbtxt import read_config
from pidep.serving.addresses import is_loopback
from pidep.serving.batcher import most_rows
from pidep.serving.client import Client, Request
from pidep.serving.request import Protocol, check_address
from pidep.serving.server_versions import FLOOR, advisories_of, is_below_floor
from pidep.serving.visitor import DOORS, Door, Visitor, is_seen_beyond_loopback, page

__all__ = [
    "CLOUD_PORT",
    "FOLLOWS_WITHIN_S",
    "Finding",
    "Level",
    "cache_finding",
    "diagnose_server",
    "require_healthy",
]

Level: TypeAlias = Literal["ok", "warning", "fault"]

_METRICS_PORT = 8002
CLOUD_PORT = 8080
"""Where the services of SageMaker and Vertex AI listen, unless they are told otherwise."""
FOLLOWS_WITHIN_S = 2.0
"""How long the server may take to see a change of the store; it looks every few milliseconds."""
_PAUSE_S = 0.05
_CLOSE = (
    "start Triton Server with --http-restricted-api and --grpc-restricted-protocol for this group "
    "(pidep serve does)"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """What was looked at."""
    level: Level
    """`fault`: it is wrong. `warning`: it may be wrong, or cannot be seen from here."""
    found: str
    mend: str = ""
    """What to do; empty where nothing is to be done."""

    def to_json(self) -> dict[str, str]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class _Expected:
    """What the folder of a published model says; empty without a folder."""

    folder: Path | None = None
    entry: str = ""
    """Digest of the entry."""
    store: Path | None = None
    """The expert store of a bank."""

    @classmethod
    def of(cls, folder: Path | None) -> _Expected:
        if folder is None:
            return cls()
        version = folder / VERSION
        if (version / BANK_RECORD).is_file():
            bank = BankRecord.read(version)
            return cls(folder, bank.entry_digest or "", bank.store(version))
        return cls(folder, MergedRecord.read(version).entry_digest or "")


def diagnose_server(
    url: str,
    *,
    protocol: Protocol = "grpc",
    model: str = BANK,
    entry: str | Path | None = None,
    metrics: str | None = None,
    timeout_s: float = 5.0,
) -> list[Finding]:
    """Look at a running server as a client without its key does. Nothing on it is changed.

    Args:
        url: host:port of `protocol`. Doors that the other protocol opens are not seen.
        entry: folder of the published model, such as `model_repo/pidep_bank`. The server must
            serve this entry, and the revision of the store that it names. Its name replaces
            `model`.
        metrics: host:port of the metrics; port 8002 of the same host when absent.
        timeout_s: of each call.

    Returns:
        One finding for each check, in a fixed order. Where nobody answers, that alone.

    Raises:
        UsageError: not an address, no such protocol, or tritonclient is not installed.
        ServingError: `entry` is not a published model.
    """
    folder = None if entry is None else Path(entry)
    expected = _Expected.of(folder)
    if folder is not None:
        model = folder.resolve().name
    with Visitor(url, protocol=protocol, model=model, timeout_s=timeout_s) as visitor:
        metrics = metrics or f"{visitor.host}:{_METRICS_PORT}"
        check_address(metrics)
        try:
            version = visitor.version()
        except ServingError as error:
            mend = "start the server, or correct `url` and `protocol`"
            return [Finding("reachable", "fault", str(error), mend)]
        return list(_findings(visitor, expected, version, metrics))


def require_healthy(findings: Sequence[Finding]) -> None:
    """Raise where a finding is a fault.

    Raises:
        ServingError: names the first fault.
    """
    faults = [one for one in findings if one.level == "fault"]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        mend = f"; {faults[0].mend}" if faults[0].mend else ""
        raise ServingError(f"{faults[0].check}: {faults[0].found}{mend}{more}")


def _findings(
    visitor: Visitor, expected: _Expected, version: str, metrics: str
) -> Iterator[Finding]:
    yield Finding("reachable", "ok", f"{visitor.url} answers over {visitor.protocol}")
    place, beyond = _addresses(visitor, metrics)
    yield _version(version, is_public=beyond)
    yield place
    yield from _model(visitor, expected)
    for door in DOORS:
        yield _door(visitor, door)
    yield _clouds(visitor)
    # After the model's own checks: a bank registers its metrics with its first batch.
    host, _, port = metrics.rpartition(":")
    shown = page(host, int(port), "metrics", timeout_s=visitor.timeout_s)
    config = _config(visitor, expected)
    yield cache_finding(visitor.model, config, shown.body)
    yield _queue(config)
    yield _metrics(visitor.model, metrics, shown.status, shown.body)


def _addresses(visitor: Visitor, metrics: str) -> tuple[Finding, bool]:
    """Who can reach the server, and whether other machines can."""
    if not is_loopback(visitor.host):
        found = f"clients reach it at {visitor.host}; Triton Server has no authentication"
        return Finding(
            "addresses", "warning", found, "let a proxy or a network policy guard it"
        ), True
    ports = {visitor.port, int(metrics.rpartition(":")[2])}
    seen = {port: is_seen_beyond_loopback(port) for port in sorted(ports)}
    if public := [str(port) for port, is_public in seen.items() if is_public]:
        found = f"other machines reach port {' and '.join(public)} of this one"
        mend = "listen at 127.0.0.1 (--http-address, --grpc-address, --metrics-address)"
        return Finding("addresses", "warning", found, f"{mend}, or guard it by a firewall"), True
    if seen[visitor.port] is None:
        found = f"asked at {visitor.host}; its other addresses cannot be seen from here"
        return Finding("addresses", "ok", found), False
    return Finding("addresses", "ok", "only this machine reaches it"), False


def _version(version: str, *, is_public: bool) -> Finding:
    if not is_below_floor(version):
        return Finding("version", "ok", f"Triton Server {version}")
    known = "; ".join(
        f"before {one.fixed_in.release}: {one.text}" for one in advisories_of(version)
    )
    found = f"Triton Server {version} is older than {FLOOR.version}{known and f' ({known})'}"
    mend = f"production needs NVIDIA's container {FLOOR.release} or newer"
    if is_public:
        return Finding("version", "fault", found, mend)
    return Finding("version", "warning", found, f"keep it on loopback; {mend}")


def _model(visitor: Visitor, expected: _Expected) -> Iterator[Finding]:
    """Whether the model is loaded, answers, and serves what was published."""
    again = f"load {visitor.model!r} again, and read the server's log"
    try:
        if not visitor.is_ready():
            found = f"{visitor.model!r} is not ready"
            yield Finding("model", "fault", found, f"correct `model`, or {again}")
            return
    except ServingError as error:
        yield Finding("model", "fault", str(error), f"correct `model`, or {again}")
        return
    try:
        with Client(
            visitor.url,
            protocol=visitor.protocol,
            model=visitor.model,
            timeout_s=visitor.timeout_s,
            retries=0,
        ) as client:
            checks = _bank if visitor.model == BANK else _merged
            yield from checks(client, visitor.model, expected)
    except ServingError as error:
        found = f"ready, and does not answer: {error}"
        yield Finding("model", "fault", found, f"{again}; a model whose process died stays ready")


def _bank(client: Client, model: str, expected: _Expected) -> Iterator[Finding]:
    status, manifest = _settled(client, expected)
    yield Finding("model", "ok", f"{model!r} is ready and answers")
    yield _entry(status["entry"], expected)
    yield _revision(status, manifest, expected)
    yield from _experts(status, manifest)


def _settled(client: Client, expected: _Expected) -> tuple[dict[str, Any], Manifest | None]:
    """The server's state and the store's manifest, once they agree or the time is over."""
    deadline = time.monotonic() + FOLLOWS_WITHIN_S
    while True:
        manifest = Manifest.read(expected.store) if expected.store else None
        status = client.status()
        # A change that is made at this moment is no fault.
        agrees = manifest is None or status["revision"] == manifest.revision
        if agrees or time.monotonic() > deadline:
            return status, manifest
        time.sleep(_PAUSE_S)


def _merged(client: Client, model: str, expected: _Expected) -> Iterator[Finding]:
    backend = "" if expected.folder is None else read_config(expected.folder / CONFIG).backend
    if backend and backend != "python":
        found = f"{model!r} is ready; the {backend} backend runs it, so no answer names its digest"
        yield Finding("model", "ok", found)
        return
    (answer,) = client.infer([Request("which expert answers?")])
    yield Finding("model", "ok", f"{model!r} is ready and answers with {answer.digest[:19]}")
    yield _entry(answer.entry, expected)


def _entry(served: str, expected: _Expected) -> Finding:
    if expected.folder is None:
        mend = "give `entry`, the folder that was published, to compare"
        return Finding("entry", "warning", f"serves {served[:19]}; not compared", mend)
    if served != expected.entry:
        found = f"serves {served[:19]}, {expected.folder} is {expected.entry[:19]}"
        return Finding("entry", "fault", found, "load the model again, or mount this repository")
    return Finding("entry", "ok", f"serves {served[:19]}, as published")


def _revision(status: dict[str, Any], manifest: Manifest | None, expected: _Expected) -> Finding:
    served = f"serves revision {status['revision']}"
    if status["fault"]:
        found = f"{served}; the store: {status['fault']}"
        return Finding("revision", "fault", found, "restore the store's manifest")
    if not status["ready"]:
        found = f"{served}; has not looked at its store for {status['silent_s']:.0f} s"
        return Finding("revision", "fault", found, "load the model again")
    if manifest is None:
        mend = "give `entry`, the folder that was published, to compare with its store"
        return Finding("revision", "warning", f"{served}; not compared with the store", mend)
    if status["revision"] != manifest.revision:
        found = f"{served}, the store {expected.store} is at {manifest.revision}"
        return Finding("revision", "fault", found, "mount this store, and read the server's log")
    return Finding("revision", "ok", f"{served}, as the store")


def _experts(status: dict[str, Any], manifest: Manifest | None) -> Iterator[Finding]:
    served, refused = status["served"], status["refused"]
    wanted = {} if manifest is None else manifest.aliases
    for name in sorted({*served, *refused, *wanted}):
        check, plain = f"expert {name}", name.partition("@")[0]
        again = f"publish it again (pidep swap), or pidep experts rollback {plain}"
        old = f"{served[name][:19]} still serves" if name in served else "nothing is served"
        if name in refused:
            why = f"{refused[name]['digest'][:19]} is refused ({refused[name]['reason']})"
            yield Finding(check, "fault", f"{why}; {old}", again)
        elif name in wanted and served.get(name) != wanted[name]:
            found = f"the store names {wanted[name][:19]}; {old}"
            yield Finding(check, "fault", found, "read the server's log")
        else:
            yield Finding(check, "ok", f"serves {served[name][:19]}")


def _door(visitor: Visitor, door: Door) -> Finding:
    check, state = f"door {door.name}", visitor.state(door)
    if state == "closed":
        return Finding(check, "ok", f"closed over {visitor.protocol}")
    if state == "unknown":
        found = f"no answer over {visitor.protocol}"
        return Finding(check, "warning", found, "ask again when the server is less busy")
    found = f"open over {visitor.protocol}: any client can {door.danger}"
    return Finding(check, "fault" if door.is_grave else "warning", found, _CLOSE)


def _clouds(visitor: Visitor) -> Finding:
    """The services of SageMaker and Vertex AI know no key."""
    open_at = [
        f"{visitor.host}:{port}/{path}"
        for port in sorted({CLOUD_PORT, *([visitor.port] * (visitor.protocol == "http"))})
        for path in ("ping", "models", "v1/models")
        if 0 < page(visitor.host, port, path, timeout_s=visitor.timeout_s).status < 400
    ]
    if open_at:
        mend = "start Triton Server with --allow-sagemaker=false --allow-vertex-ai=false"
        found = f"a service without a key answers at {', '.join(open_at)}"
        return Finding("SageMaker and Vertex AI", "fault", found, mend)
    return Finding("SageMaker and Vertex AI", "ok", f"not at port {CLOUD_PORT}")


def _config(visitor: Visitor, expected: _Expected) -> Any | None:
    """The model's configuration, of the server or of the folder."""
    live = visitor.config()
    if live is not None or expected.folder is None:
        return live
    return read_config(expected.folder / CONFIG)


def cache_finding(model: str, config: Any | None, metrics: str) -> Finding:
    """Whether the response cache is on.

    Args:
        config: the model's configuration as protobuf; None where it cannot be seen.
        metrics: the server's metrics; empty where they cannot be seen.
    """
    on = config is not None and config.response_cache.enable
    counted = any(
        line.startswith("nv_cache") and f'model="{model}"' in line for line in metrics.splitlines()
    )
    if on or counted:
        found = "on: after a swap the old expert's answers come back"
        mend = f"take response_cache out of {CONFIG}, and --cache-config from the command"
        return Finding("response cache", "fault", found, mend)
    if config is None and not metrics:
        return Finding("response cache", "warning", "cannot be seen", "give `entry` or `metrics`")
    return Finding("response cache", "ok", "off")


def _queue(config: Any | None) -> Finding:
    if config is None:
        found = "the model's configuration cannot be seen"
        return Finding("queue", "warning", found, "give `entry`, the folder that was published")
    if config.backend == "python":
        if config.HasField("dynamic_batching"):
            mend = (
                f"take dynamic_batching out of {CONFIG}, or export again: pidep forms the batches"
            )
            found = "Triton Server's own batcher is on: it can let clients wait for half a second"
            return Finding("queue", "warning", found, mend)
        return Finding("queue", "ok", f"holds at most {most_rows(config.max_batch_size)} rows")
    size = config.dynamic_batching.default_queue_policy.max_queue_size
    if not size:
        mend = f"set dynamic_batching.default_queue_policy.max_queue_size in {CONFIG}"
        found = "has no bound: under overload requests wait, and memory grows"
        return Finding("queue", "warning", found, mend)
    return Finding("queue", "ok", f"holds at most {size} requests")


def _metrics(model: str, url: str, status: int, body: str) -> Finding:
    if status != 200:
        found = f"nobody answers at {url}" if not status else f"{url} answers with {status}"
        return Finding("metrics", "warning", found, "give `metrics`, and let Prometheus reach it")
    own = {line.partition("{")[0] for line in body.splitlines() if f'model="{model}"' in line}
    pidep = sum(name.startswith("pidep_") for name in own)
    if not own:
        found = f"{url} has none of {model!r}"
        return Finding("metrics", "warning", found, "is this the same server? Correct `metrics`")
    return Finding("metrics", "ok", f"{url} has {len(own)} series of {model!r}, {pidep} of pidep")
