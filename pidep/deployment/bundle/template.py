"""Templates that stay plain YAML, JSON or Dockerfile: places, and lines under a condition.

    claimName: @{name}-store      a place
    - name: store  #?bank         a line that is there under the condition `bank` only

A place that is alone on its line may have a value of several lines; all are indented as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

__all__ = ["fill"]

_PLACE = re.compile(r"@\{(\w+)\}")
_ALONE = re.compile(r"( *)@\{(\w+)\}")
_CONDITION = re.compile(r"  #\?(\w+)$")


def fill(text: str, values: Mapping[str, str], conditions: Set[str]) -> str:
    """A template's text with its values.

    Args:
        values: name of a place to what stands there.
        conditions: those that hold.

    Raises:
        KeyError: a place has no value.

    >>> fill("a: @{x}\\nb: 1  #?gpu\\n", {"x": "7"}, set())
    'a: 7\\n'
    """
    lines: list[str] = []
    for line in text.splitlines():
        condition = _CONDITION.search(line)
        if condition is not None:
            if condition[1] not in conditions:
                continue
            line = line[: condition.start()]
        alone = _ALONE.fullmatch(line)
        if alone is not None:
            lines += [f"{alone[1]}{part}" for part in values[alone[2]].splitlines()]
        else:
            lines.append(_PLACE.sub(lambda place: values[place[1]], line))
    return "\n".join(lines) + "\n"
