"""Options of Triton Server that hold wherever it runs: `pidep serve`, and the files of a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from pidep.serving.request import Protocol

__all__ = ["ADMIN_KEY", "ADMIN_KEY_VARIABLE", "admin_headers", "launch_options"]

ADMIN_KEY = "pidep-admin-key"
"""Header that holds the key of administrative calls."""
ADMIN_KEY_VARIABLE = "PIDEP_ADMIN_KEY"
"""Environment variable of the key, where its owner chooses it."""
_ADMINISTRATION = (
    "model-repository",
    "model-config",
    "shared-memory",
    "statistics",
    "trace",
    "logging",
)
"""Triton Server's groups of calls that need the key: all but inference, health and metadata."""


def admin_headers(key: str, protocol: Protocol) -> dict[str, str]:
    """The headers that permit administrative calls."""
    # Triton Server looks for a gRPC key under this prefix, and for an HTTP key without it.
    prefix = "triton-grpc-protocol-" if protocol == "grpc" else ""
    return {f"{prefix}{ADMIN_KEY}": key}


def launch_options(models: Sequence[str], *, key: str) -> list[str]:
    """The options, without the places of files and ports.

    Args:
        models: what is loaded.
        key: the secret of administrative calls, or what stands for it.

    >>> launch_options(["pidep_bank"], key="…")[1]
    '--load-model=pidep_bank'
    """
    # Without the key, any client (a web page in a browser, too) could load code of its own.
    restriction = f"{','.join(_ADMINISTRATION)}:{ADMIN_KEY}={key}"
    return [
        # Only what is named here is loaded; nothing is reloaded because a file has changed.
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        # Every configuration is written in full, so nothing is left to complete.
        "--disable-auto-complete-config",
        # Named, because AIP_MODE, a variable of Vertex AI, changes the defaults: it closes HTTP
        # and opens a service of its own that knows no key.
        *("--allow-http=true", "--allow-grpc=true", "--allow-metrics=true"),
        *("--allow-sagemaker=false", "--allow-vertex-ai=false"),
        f"--http-restricted-api={restriction}",
        f"--grpc-restricted-protocol={restriction}",
    ]
