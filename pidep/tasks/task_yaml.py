"""A task file's YAML. Words stay as they are written: `no`, `0` and `1.0` are labels, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pidep.errors import TaskError

__all__ = ["read_task_yaml"]

_TEXT, _NULL, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
_NUMBERS = ("test_fraction", "split_seed", "max_length")
"""Keys whose values are no texts."""


def read_task_yaml(path: Path) -> Any:
    """The content of a task file. Every value is a text, except null and the settings with numbers.

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
        _refuse_twice(node, path)
        _keep_words(node)
        return loader.construct_document(node)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TaskError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    except RecursionError:
        raise TaskError(f"{path}: not readable as YAML (nested too deeply)") from None
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_twice(node: Any, path: Path) -> None:
    """Refuse a mapping with a key twice, of which YAML would keep the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _refuse_twice(one, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise TaskError(
                    f"{path}, line {line}: key {key.value!r} is there twice; remove one of the two"
                )
            seen.add(key.value)
        _refuse_twice(value, path)


def _keep_words(node: Any) -> None:
    """Make texts of all scalars, so that `no` is not false and `0` is not a number."""
    if isinstance(node, yaml.ScalarNode) and node.tag not in (_NULL, _MERGE):
        node.tag = _TEXT
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _keep_words(one)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _as_key(key)
            if not (isinstance(key, yaml.ScalarNode) and key.value in _NUMBERS):
                _keep_words(value)


def _as_key(node: Any) -> None:
    if isinstance(node, yaml.ScalarNode) and node.tag != _MERGE:
        node.tag = _TEXT  # a label may be called null, too
