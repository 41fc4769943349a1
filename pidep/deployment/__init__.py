"""Orchestration: export and publish as one step, and what a machine or a server can do.

May import every room below it, never `pidep.cli` or `pidep.lab`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.deployment.bundle.write import Bundle, write_bundle
    from pidep.deployment.doctor import Diagnosis, diagnose
    from pidep.deployment.release import release_bank, release_runs
    from pidep.deployment.server_doctor import Finding, diagnose_server
    from pidep.deployment.verify import ServedExpert, verify_entry

__all__ = [
    "Bundle",
    "Diagnosis",
    "Finding",
    "ServedExpert",
    "diagnose",
    "diagnose_server",
    "release_bank",
    "release_runs",
    "verify_entry",
    "write_bundle",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Bundle": "pidep.deployment.bundle.write",
        "Diagnosis": "pidep.deployment.doctor",
        "Finding": "pidep.deployment.server_doctor",
        "ServedExpert": "pidep.deployment.verify",
        "diagnose": "pidep.deployment.doctor",
        "diagnose_server": "pidep.deployment.server_doctor",
        "release_bank": "pidep.deployment.release",
        "release_runs": "pidep.deployment.release",
        "verify_entry": "pidep.deployment.verify",
        "write_bundle": "pidep.deployment.bundle.write",
    },
)
