"""Orchestration: export and publish as one step, and what this machine can do.

May import every room below it, never `pidep.cli` or `pidep.lab`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.deployment.doctor import Diagnosis, diagnose
    from pidep.deployment.release import release_bank, release_runs
    from pidep.deployment.verify import ServedExpert, verify_entry

__all__ = [
    "Diagnosis",
    "ServedExpert",
    "diagnose",
    "release_bank",
    "release_runs",
    "verify_entry",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Diagnosis": "pidep.deployment.doctor",
        "ServedExpert": "pidep.deployment.verify",
        "diagnose": "pidep.deployment.doctor",
        "release_bank": "pidep.deployment.release",
        "release_runs": "pidep.deployment.release",
        "verify_entry": "pidep.deployment.verify",
    },
)
