"""Orchestration: export and publish as one step, and what this machine can do.

May import every room below it, never `pidep.cli` or `pidep.lab`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.deployment.doctor import Diagnosis, diagnose
    from pidep.deployment.release import release_bank, release_runs

__all__ = ["Diagnosis", "diagnose", "release_bank", "release_runs"]

__getattr__ = lazy_names(
    __name__,
    {
        "Diagnosis": "pidep.deployment.doctor",
        "diagnose": "pidep.deployment.doctor",
        "release_bank": "pidep.deployment.release",
        "release_runs": "pidep.deployment.release",
    },
)
