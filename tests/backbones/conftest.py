"""Leaves combinations of models and kinds that repeat others to the exhaustive tests."""

from __future__ import annotations

import pytest

WITH_A_MODEL = {
    "test_a_row_is_scored_in_a_batch_as_alone": {"lora"},
    "test_greedy_is_the_argmax_step_by_step_without_a_cache": {"lora"},
    "test_constrained_is_the_likeliest_candidate": {"lora", "prefix"},
    "test_it_learns_target_texts": {"prefix"},
    "test_gradients_of_single_rows": {"adapter", "bitfit", "prefix", "prompt"},
}
"""Kinds for which one model is enough. A LoRA acts on each token alone, and all candidates are
compared by the same scores.
"""
STANDS_FOR = {"T5"}
ALSO = {
    ("test_gradients_of_single_rows", "Florence-2"),
    ("test_gradients_of_single_rows", "BLIP captions"),
}
"""Exceptions: a batch of images and texts, and a decoder that reads the prompt once for each
candidate of a row.
"""
UNFIT = {("T5", "bitfit"), ("BLIP captions", "prefix"), ("BLIP answers", "prefix")}
"""Models and kinds that do not go together; `tests/adapters` checks that they are refused."""


def _fits(item: pytest.Item) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    return (params.get("name"), params.get("kind")) not in UNFIT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _fits(item)]
    for item in items:
        test = getattr(item, "originalname", "")
        if test in WITH_A_MODEL:
            params = item.callspec.params  # type: ignore[attr-defined]
            name = params["name"]
            if (
                params["kind"] in WITH_A_MODEL[test]
                and name not in STANDS_FOR
                and (test, name) not in ALSO
            ):
                item.add_marker(pytest.mark.exhaustive)
