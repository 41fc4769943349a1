"""Every field of the installed PEFT's configurations is honoured, of no effect, or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import ExpertError
from pidep.experts.kinds import expert_kind
from pidep.experts.peft_fields import require_harmless
from pidep.experts.peft_format import peft_types


def config_classes() -> dict[str, Any]:
    import peft

    return {
        "lora": peft.LoraConfig,
        "prefix": peft.PrefixTuningConfig,
        "prompt": peft.PromptTuningConfig,
    }


def test_every_kind_of_peft_has_a_table() -> None:
    assert peft_types().keys() == config_classes().keys()


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_the_table_has_every_field_and_no_other(kind: str) -> None:
    fields = {field.name for field in dataclasses.fields(config_classes()[kind])}
    assert set(expert_kind(kind).peft_fields) == fields


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_no_default_of_peft_is_refused(kind: str) -> None:
    config = config_classes()[kind]().to_dict()
    require_harmless(Path("adapter_config.json"), config, expert_kind(kind).peft_fields)


REFUSED = {
    "modules_to_save": ["classifier"],
    "bias": "all",
    "lora_bias": True,
    "use_dora": True,
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "layer_replication": [[0, 2]],
    "trainable_token_indices": {"word_embeddings": [1]},
    "target_parameters": ["experts.down_proj"],
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1e-4},
    "monteclora_config": {"num_samples": 2},
    "init_lora_weights": "corda",
    "rank_pattern": {"query": 2},
    "alpha_pattern": {"query": 2},
}
"""One value of each field that is not always honoured."""


def test_a_value_is_tried_of_each_field_that_can_be_refused() -> None:
    fields = expert_kind("lora").peft_fields
    assert REFUSED.keys() == {name for name, one in fields.items() if one.harmless is not None}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_with_the_reason(name: str) -> None:
    fields = expert_kind("lora").peft_fields
    with pytest.raises(ExpertError) as found:
        require_harmless(Path("a.json"), {"r": 8, name: REFUSED[name]}, fields)
    assert str(found.value) == (
        f"a.json: {name}={REFUSED[name]!r} is not supported: {fields[name].why}"
    )


def test_a_field_of_a_later_peft_is_refused_unless_it_is_unused() -> None:
    fields = expert_kind("prompt").peft_fields
    for unused in (None, False, [], {}):
        require_harmless(Path("a.json"), {"later": unused}, fields)
    with pytest.raises(ExpertError, match=r"a\.json: later=1\.5 is not supported: this pidep does"):
        require_harmless(Path("a.json"), {"later": 1.5}, fields)
