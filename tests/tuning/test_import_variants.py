"""Every variant of PEFT's LoRA that pidep honours answers as PEFT; every other is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pidep.errors import ExpertError
from tests.tuning.test_import_peft import Train, adopt, ours, peft_model, theirs

__all__ = ["adopt", "peft_model"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*", "ignore::UserWarning:torch.*")

HONOURED: dict[str, dict[str, Any]] = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "drawn": {"init_lora_weights": False},
    "every linear": {"target_modules": "all-linear"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["pooler.dense", "key"]},
    "a pattern of names": {"target_modules": r".*layer\.1\..*(query|dense)", "r": 2},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layer"},
    "a list of layers": {"layers_to_transform": 0, "layers_pattern": ["layer"]},
    "dropout": {"lora_dropout": 0.5},
    "task type": {"task_type": "FEATURE_EXTRACTION", "inference_mode": True},
    "tying": {"ensure_weight_tying": True},
    "velora": {"velora_config": {"num_groups": 4}},
    "qalora's group": {"qalora_group_size": 4},
    "alpha of a fraction": {"lora_alpha": 3, "r": 7},
}


@pytest.mark.parametrize("settings", HONOURED.values(), ids=HONOURED)
def test_what_is_honoured_answers_as_peft(
    settings: dict[str, Any], peft_model: Train, adopt: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    model = peft_model(**settings)
    want = theirs(model, tiny_folder)
    model.save_pretrained(tmp_path / "lora")
    torch.testing.assert_close(ours(adopt(tmp_path / "lora")), want, atol=1e-5, rtol=0)
    with model.disable_adapter():  # the adapter acts
        assert (theirs(model, tiny_folder) - want).abs().amax() > 1e-3


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_that_changes_the_backbone_is_taken_once_it_is_converted(
    start: str, peft_model: Train, adopt: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """PEFT's own conversion makes a LoRA of twice the rank for the backbone as it was."""
    import peft
    from transformers import AutoModel

    base = AutoModel.from_pretrained(tiny_folder)
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=start)
    model = peft.get_peft_model(base, config).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape) * 0.3
    model.save_pretrained(tmp_path / "raw")
    want = theirs(model, tiny_folder)
    with pytest.raises(
        ExpertError, match=f"init_lora_weights='{start}' is not.*path_initial_model"
    ):
        adopt(tmp_path / "raw")
    model.save_pretrained(
        tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    found = adopt(tmp_path / "lora")
    assert found.rank == 8
    torch.testing.assert_close(ours(found), want, atol=1e-5, rtol=0)


REFUSED: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "bias='all'": {"bias": "all"},
    "bias='lora_only'": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["pooler"]},
    "trainable_token_indices": {"trainable_token_indices": {"word_embeddings": [1]}},
    "target_parameters": {
        "target_modules": [],
        "target_parameters": ["encoder.layer.0.intermediate.dense.weight"],
    },
    "use_bdlora": {"use_bdlora": {"target_modules_bd_a": ["query", "value"], "nblocks": 2}},
    "use_qalora": {"use_qalora": True, "qalora_group_size": 4},
    "kasa_config": {"kasa_config": {}},
    "embedding": {"target_modules": ["word_embeddings"]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(
    name: str, peft_model: Train, adopt: Any, tmp_path: Path
) -> None:
    peft_model(**REFUSED[name]).save_pretrained(tmp_path / "lora")
    with pytest.raises(ExpertError, match=name):
        adopt(tmp_path / "lora")
    assert not (tmp_path / "out").exists()


def test_the_head_of_a_classifier_is_refused_with_the_way_out(
    peft_model: Train, adopt: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """PEFT adds the head to modules_to_save by itself."""
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    peft_model(base, task_type="SEQ_CLS").save_pretrained(tmp_path / "lora")
    with pytest.raises(
        ExpertError, match=r"modules_to_save=\['classifier', 'score'\] is not.*texts"
    ):
        adopt(tmp_path / "lora")
