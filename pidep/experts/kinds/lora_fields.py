"""What pidep makes of each field of PEFT's `LoraConfig`."""

from __future__ import annotations

from collections.abc import Mapping

from pidep.experts.peft_fields import COMMON, PeftField, honoured, refused, training

__all__ = ["LORA_FIELDS"]

_SITES = honoured("the names of the tensors say where it acts")
_PATTERN = honoured("`pidep import` makes an expert of one rank and one scaling", (None, {}))
_START = training("how the factors start")

LORA_FIELDS: Mapping[str, PeftField] = {
    **COMMON,
    "r": honoured("the rank"),
    "lora_alpha": honoured("the scaling is lora_alpha / r"),
    "use_rslora": honoured("the scaling is lora_alpha / √r"),
    # Import has made one rank of them. An expert's own folder may not have them: its digest covers
    # one scaling.
    "rank_pattern": _PATTERN,
    "alpha_pattern": _PATTERN,
    "target_modules": _SITES,
    "exclude_modules": _SITES,
    "layers_to_transform": _SITES,
    "layers_pattern": _SITES,
    "fan_in_fan_out": honoured("A is [r, in] and B [out, r] also at a Conv1D"),
    "lora_dropout": training("dropout"),
    "ensure_weight_tying": training(
        "ties what modules_to_save and embeddings have; those are refused by themselves"
    ),
    "init_lora_weights": refused(
        "this start changed the backbone's weights; save the adapter with "
        "save_pretrained(…, path_initial_model_for_weight_conversion=…), which makes a plain LoRA "
        "of it",
        # EVA and MiCA only choose where the factors start.
        (True, False, None, "gaussian", "orthogonal", "eva", "mica"),
    ),
    "eva_config": _START,
    "corda_config": _START,
    "loftq_config": _START,
    "lora_ga_config": _START,
    "velora_config": training("keeps fewer activations for the gradient"),
    "runtime_config": training("where DoRA's weights lie while it runs"),
    "megatron_config": training("how training was spread over devices"),
    "megatron_core": training("how training was spread over devices"),
    "qalora_group_size": honoured("read only with use_qalora, which is refused"),
    "bias": refused(
        "it trained biases beside the LoRA, and an expert has one kind; train it with bias='none'",
        ("none", None),
    ),
    "lora_bias": refused("B has a bias, which no LoRA expert has; train it without"),
    "use_dora": refused(
        "DoRA scales the rows of the backbone's weights, which is no low-rank update; train it "
        "without"
    ),
    "use_qalora": refused("QA-LoRA averages groups of inputs before A; train it without"),
    "use_bdlora": refused("A or B is block-diagonal; train it without"),
    "layer_replication": refused("it changes the layers of the backbone; train it without"),
    "trainable_token_indices": refused(
        "it trained rows of the token embeddings beside the LoRA; train it without"
    ),
    "target_parameters": refused(
        "it acts on parameters that are no Linear, such as those of experts of a layer; use "
        "target_modules"
    ),
    "alora_invocation_tokens": refused(
        "aLoRA acts only behind these tokens, and an expert acts on every token; train it without"
    ),
    "arrow_config": refused("Arrow routes tokens between several LoRAs; import each of them"),
    "kasa_config": refused("KaSA cuts the backbone's weights and scales each rank; train without"),
    "monteclora_config": refused("MonteCLoRA samples several factors; train it without"),
}
