"""Which Triton Server production needs, and what older ones lack."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["FLOOR", "Advisory", "Floor", "advisories_of", "is_below_floor"]


class Floor(NamedTuple):
    """A release of Triton Server under its two names."""

    version: str
    """What the server says about itself."""
    release: str
    """Tag of NVIDIA's container."""


class Advisory(NamedTuple):
    """A security bulletin of NVIDIA, and the first release that is not affected."""

    fixed_in: Floor
    text: str


FLOOR = Floor("2.71.0", "26.07")
"""The oldest server for production: NVIDIA's bulletins ask for it or a newer one."""
_BULLETIN = "nvidia.custhelp.com/app/answers/detail/a_id"
_ADVISORIES = (
    Advisory(
        Floor("2.59.1", "25.07"),
        f"code execution without a login, CVE-2025-23319 and others ({_BULLETIN}/5687)",
    ),
    Advisory(
        Floor("2.68.0", "26.04"),
        f"a way past authentication, CVE-2026-24207 and others ({_BULLETIN}/5828)",
    ),
)
"""The gravest bulletins. There are more: 57 concern 2.51.0."""


def is_below_floor(version: str) -> bool:
    """Whether a server is too old for production; also where its version cannot be read.

    >>> is_below_floor("2.51.0"), is_below_floor("2.71.0"), is_below_floor("dev")
    (True, False, True)
    """
    return _numbers(version) < _numbers(FLOOR.version)


def advisories_of(version: str) -> list[Advisory]:
    """The bulletins that concern a version.

    >>> [one.fixed_in.release for one in advisories_of("2.60.0")]
    ['26.04']
    """
    return [one for one in _ADVISORIES if _numbers(version) < _numbers(one.fixed_in.version)]


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()
