"""What a kind must define, and its errors for what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pidep.errors import ExpertError
from pidep.experts.kind import ExpertKind, Tensors
from pidep.experts.kinds import expert_kind


def test_a_kind_must_know_its_size() -> None:
    class Sizeless(ExpertKind):
        name = "sizeless"

    with pytest.raises(TypeError, match=r"abstract method '?size_of"):
        Sizeless()  # type: ignore[abstract]


def test_a_kind_without_a_peft_format_says_so() -> None:
    with pytest.raises(ExpertError, match="expert kind 'adapter': PEFT has no format for it"):
        expert_kind("adapter").read_peft(Path("nowhere"), {}, {})


def test_a_kind_that_no_bank_holds_says_so() -> None:
    class Merged(ExpertKind):
        name = "merged-only"

        def size_of(self, tensors: Tensors) -> int:
            return 1

    with pytest.raises(ExpertError, match="expert kind 'merged-only': no bank holds it; export it"):
        Merged().bank_groups({"layer": {"scale": (4,)}})
