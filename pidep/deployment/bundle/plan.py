"""What a bundle must know of an entry: backend, packages, places, arguments and probes."""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pidep import __version__
from pidep.artifacts.bank import BankRecord
from pidep.artifacts.engine import EngineRecord
from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import BANK_RECORD, CONFIG, VERSION
from pidep.deployment.settings import BundleSettings
from pidep.errors import UsageError
from pidep.export.config_pbtxt import read_config
from pidep.serving.launch_options import launch_options
from pidep.serving.repository import require_complete
from pidep.serving.server_versions import FLOOR

__all__ = ["Plan", "plan_bundle"]

_ROOT = "/srv/pidep"
"""In the container: the repository is mounted below it, the store where the entry expects it."""
_HTTP = "127.0.0.1:8000"
_LABEL = 50
"""Most characters of a name: Kubernetes permits 63, and adds its own endings."""
_EXIT_WITHIN_S = 30
_SPARE_GIB = 2
_COPIES = 3
"""Of the graph, while it is loaded: the file, the parsed graph and the prepared weights."""


@dataclass(frozen=True)
class Plan:
    """What the templates get."""

    values: dict[str, str]
    """Name of a place to what stands there."""
    conditions: frozenset[str]
    """Of `bank`, `gpu`, `python`, `native`, `json`, `traced` and `untraced`."""


def plan_bundle(entry: Path, out: Path, settings: BundleSettings) -> Plan:
    """Read an entry and decide.

    Raises:
        UsageError: no complete entry, one whose path or store no container can have, or an image
            below the floor.
        ServingError: the record or the configuration is damaged.
    """
    entry = entry.resolve()
    require_complete(entry)
    version, model = entry / VERSION, entry.name
    config = read_config(entry / CONFIG)
    is_bank = (version / BANK_RECORD).is_file()
    record = BankRecord.read(version) if is_bank else MergedRecord.read(version)
    engine = record.engine
    is_python = config.backend == "python"
    gpu = settings.accelerator == "gpu" or engine is not None
    conditions = {"python" if is_python else "native"}
    conditions |= {"bank"} if is_bank else set()
    conditions |= {"gpu"} if gpu else set()
    repository = f"{_ROOT}/model_repo"
    name = settings.name or _label(model)
    behind = record.graph_model if isinstance(record, MergedRecord) else None
    models = [model] if behind is None else [behind, model]
    if behind is not None:
        require_complete(entry.parent / behind)
    conditions |= {"json"} if settings.log_format == "json" else set()
    conditions |= {"untraced"} if settings.tracing is None else {"traced"}
    traces = settings.tracing.options(name) if settings.tracing else []
    values = {
        "name": name,
        "model": model,
        "image": settings.image or f"{name}:{__version__}",
        "triton_image": _at_the_floor(settings.triton_image),
        # A front runs no graph itself.
        "package": _package(engine, gpu=gpu) if behind is None else _package(None, gpu=False),
        "repository": repository,
        "repository_here": _here(entry.parent, out),
        "arguments": _yaml(_arguments(models, repository, "$(PIDEP_ADMIN_KEY)", traces)),
        "arguments_compose": _yaml(_arguments(models, repository, "${PIDEP_ADMIN_KEY}", traces)),
        "cpus": str(settings.cpus),
        "memory_gib": str(settings.memory_gib or _memory_gib(entry.parent, models)),
        "storage_gib": str(settings.storage_gib),
        "replicas": str(settings.replicas),
        "max_replicas": str(max(settings.max_replicas, settings.replicas)),
        "queue_ms": str(settings.queue_ms),
        "slow_queue_seconds": f"{5 * settings.queue_ms / 1000:g}",
        "monitoring_namespace": settings.monitoring_namespace,
        **_probes(f"{repository}/{model}", model, is_python=is_python),
    }
    if settings.tracing is not None:
        values["trace_port"] = str(settings.tracing.port)
    if isinstance(record, BankRecord):
        values["store"] = _store(record.expert_store, f"{repository}/{model}/{VERSION}")
        values["store_here"] = _here(record.store(version), out)
    return Plan(values, frozenset(conditions))


def _label(model: str) -> str:
    """A model's name as Kubernetes permits names.

    >>> _label("pidep_bank")
    'pidep-bank'
    """
    return re.sub(r"[^a-z0-9]+", "-", model.lower())[:_LABEL].strip("-") or "pidep"


def _at_the_floor(image: str) -> str:
    """The image; refused where its tag is one of NVIDIA's below the floor."""
    tag = re.search(r":(\d\d\.\d\d)\b", image)
    if tag is not None and tag[1] < FLOOR.release:
        raise UsageError(
            f"`triton_image`: {image} is older than {FLOOR.release}, the first that NVIDIA's "
            "security bulletins leave standing; take that one or a newer one"
        )
    return image


def _package(engine: EngineRecord | None, *, gpu: bool) -> str:
    """What pip installs: pidep with the packages of what runs the graph."""
    extras = ["gpu" if gpu else "cpu"]
    if engine is not None:
        extras.append(engine.library.replace("_", "-"))
    return f"pidep[{','.join(extras)}]=={__version__}"


def _arguments(
    models: Sequence[str], repository: str, key: str, traces: Sequence[str]
) -> list[str]:
    """Of `tritonserver`. Whoever starts the container puts the key in."""
    return [
        f"--model-repository={repository}",
        *launch_options(models, key=key),
        f"--exit-timeout-secs={_EXIT_WITHIN_S}",
        *traces,
    ]


def _probes(entry: str, model: str, *, is_python: bool) -> dict[str, str]:
    """Probes of Kubernetes, and the health check of compose."""
    page = f"/v2/models/{model}/ready"
    if not is_python:
        opened = f"import urllib.request as r; r.urlopen('http://{_HTTP}{page}', timeout=4)"
        probe = _yaml({"httpGet": {"path": page, "port": "http"}})
        check = _yaml(["CMD", "python3", "-c", opened])
        return {"ready": probe, "alive": probe, "healthcheck": check}
    command = ["python3", "-m", "pidep.serving.readiness", entry, _HTTP]
    return {
        "ready": _yaml({"exec": {"command": command}}),
        "alive": _yaml({"exec": {"command": [*command, "--alive"]}}),
        "healthcheck": _yaml(["CMD", *command]),
    }


def _store(relative: str, version: str) -> str:
    """Where the store must be mounted, so that the entry's relative path leads there."""
    found = posixpath.normpath(posixpath.join(version, relative))
    if found == "/" or f"{version}/".startswith(f"{found}/"):
        raise UsageError(
            f"{version}: its store would be mounted at {found}, over the repository; export the "
            "bank with a `store` beside the repository"
        )
    return found


def _here(path: Path, out: Path) -> str:
    """A folder of this machine, relative to the bundle."""
    found = Path(os.path.relpath(path, out.resolve())).as_posix()
    if re.search(r"[^\w./ +@,=~-]", found):
        raise UsageError(f"{found}: a compose file takes no such character in a path; rename it")
    return found


def _memory_gib(repo: Path, models: Sequence[str]) -> int:
    """Enough for the graphs."""
    folders = [repo / model / VERSION for model in models]
    size = sum(
        path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file()
    )
    return _SPARE_GIB + math.ceil(_COPIES * size / 2**30)


class _Dumper(yaml.SafeDumper):
    """Indents the items of a list, as the templates do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """One level deeper."""
        super().increase_indent(flow, False)


def _yaml(value: object) -> str:
    """Lines of YAML; none is folded."""
    shown = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=10**6, allow_unicode=True)
    return str(shown).rstrip()
