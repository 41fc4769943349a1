"""A task file's YAML. Words stay as they are written: `no`, `0` and `1.0` are labels, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pidep.errors import TaskError

__all__ = ["read_task_yaml"]

_TEXT, _NULL, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
_MOST = 100_000
"""The largest number of values in a task file."""


def read_task_yaml(path: Path) -> Any:
    """The content of a task file. Every value is a text or null; `Task` turns some into numbers.

    Raises:
        TaskError: the file cannot be read, is no YAML, or has a key twice.
    """
    loader = None
    try:
        # Safe: YAML's full loader builds arbitrary Python objects.
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        for one in _nodes(node, path):
            _keep_words(one, path)
        return loader.construct_document(node)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TaskError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    except RecursionError:
        raise TaskError(f"{path}: not readable as YAML (nested too deeply)") from None
    finally:
        if loader is not None:
            loader.dispose()


def _nodes(root: Any, path: Path) -> Iterator[Any]:
    """Every node. A node with aliases comes once for each of its places."""
    waiting = [root]
    for _ in range(_MOST):
        if not waiting:
            return
        node = waiting.pop()
        yield node
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
    # A few lines of aliases can stand for billions of values.
    raise TaskError(f"{path}: holds more than {_MOST:,} values; a task file holds no rows")


def _refuse_twice(mapping: Any, path: Path) -> None:
    """Refuse a repeated key: YAML would keep the last one without a word."""
    seen: set[str] = set()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise TaskError(
                    f"{path}, line {line}: key {key.value!r} is there twice; remove one of the two"
                )
            seen.add(key.value)


def _keep_words(node: Any, path: Path) -> None:
    """Make texts of scalars, so that `no` is not false and `0` is not a number."""
    if isinstance(node, yaml.ScalarNode) and node.tag not in (_NULL, _MERGE):
        node.tag = _TEXT
    elif isinstance(node, yaml.MappingNode):
        _refuse_twice(node, path)
        for key, _ in node.value:
            if key.tag == _NULL:
                key.tag = _TEXT  # a label may be called null
