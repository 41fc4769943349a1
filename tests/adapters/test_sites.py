"""What `pidep sites` says about a backbone, from its config alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pidep.adapters.forward_facts import forward_facts
from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import find_sites
from pidep.adapters.places import parameters_of, skeleton, survey
from pidep.adapters.tested import EVERY, TESTED
from pidep.cli import main
from pidep.errors import BackboneError, ExpertError
from tests.adapters.small_experts import model_of
from tests.adapters.zoo import FITS, ZOO

BY_CONFIG = [name for name, architecture in ZOO.items() if not architecture.model_type]
"""Architectures that AutoModel builds from their config."""


@pytest.mark.parametrize("name", BY_CONFIG)
def test_a_config_is_enough(name: str, tmp_path: Path) -> None:
    ZOO[name].config().save_pretrained(tmp_path)
    bare, real = skeleton(tmp_path), model_of(name)
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    assert parameters_of(bare) == parameters_of(real)
    assert not forward_facts(bare).problem
    assert (forward_facts(bare).apart, forward_facts(bare).keys_and_values) == (
        forward_facts(real).apart,
        forward_facts(real).keys_and_values,
    )
    for kind, fits in FITS[name].items():
        if isinstance(fits, int):
            found = survey(bare, kind=kind, rank=3)
            assert found == survey(real, kind=kind, rank=3)
            assert [place.site for place in found.places] == find_sites(real, kind=kind)


@pytest.mark.parametrize("name", ZOO)
def test_the_command_knows_every_architecture(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = ZOO[name].config()
    config.architectures = [ZOO[name].model_type] if ZOO[name].model_type else None
    config.save_pretrained(tmp_path)
    code, out, err = run(monkeypatch, capfd, tmp_path)
    assert (code, err) == (0, "")
    family = ZOO[name].family
    assert ("ForConditionalGeneration, " in out.splitlines()[0]) == (
        family in ("encoder-decoder", "image and text to text")
    )
    for kind, fits in FITS[name].items():
        sites = "1 site" if fits == 1 else f"{fits} sites"
        expected = (
            rf"; {sites}, " if isinstance(fits, int) else f"has no .*{fits}.*; use another kind$"
        )
        assert re.search(f"^{kind}: .*{expected}", out, re.MULTILINE), (kind, out)


def test_layers_that_no_forward_pass_calls_are_only_taken_when_named() -> None:
    model = model_of("FLAVA")
    assert forward_facts(model).idle == {"image_projection", "text_projection"}
    assert not forward_facts(model).idle & set(find_sites(model))
    assert find_sites(model, ["text_projection"]) == ["text_projection"]


def test_attention_over_channels_takes_no_prefix() -> None:
    """The keys of channel attention are as wide as the image has tokens."""
    assert not [
        site for site in find_sites(model_of("Florence-2"), kind="prefix") if "channel" in site
    ]


def test_a_survey_counts_what_an_expert_holds() -> None:
    place = survey(model_of("Llama"), ["*.0.self_attn"], kind="prefix", rank=3).places[0]
    assert (place.site, place.module) == ("layers.0.self_attn", "LlamaAttention")
    assert place.shapes == {"key": (3, 16), "value": (3, 16)}  # two of four heads: grouped queries
    assert place.parameters == 96


def test_layers_whose_samples_stay_apart() -> None:
    apart = forward_facts(model_of("DeBERTa-v2")).apart
    assert apart is not None
    assert "encoder.layer.0.attention.self.value_proj" in apart
    assert not apart & {
        "encoder.layer.0.attention.self.query_proj",
        "encoder.layer.0.attention.self.key_proj",
        "encoder.LayerNorm",
    }
    assert "decoder.layers.0.fc1" in (
        forward_facts(model_of("OPT")).apart or ()
    )  # flattened, and each sample still has its share of the rows


def test_probing_a_model_leaves_no_trace() -> None:
    model = ZOO["BERT"].build()
    model.get_submodule("encoder.layer.0").train()
    modes = {name: module.training for name, module in model.named_modules()}
    random = torch.random.get_rng_state()
    forward_facts(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.config._attn_implementation == "sdpa"
    shuffling = ZOO["ViLT"].build()  # ViLT draws the order of its patches at random
    random = torch.random.get_rng_state()
    forward_facts(shuffling)
    assert torch.equal(torch.random.get_rng_state(), random)


class Odd(nn.Module):
    """A model that is not from transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(8, 2, 12, batch_first=True) for _ in range(2)]
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_backbone_that_is_not_of_transformers() -> None:
    assert find_sites(Odd(), ["layers.0.*"]) == [
        "layers.0.linear1",
        "layers.0.linear2",
    ]  # nn.MultiheadAttention reads out_proj's weight and never calls it
    assert "layers.0.norm1" in find_sites(Odd(), kind="bitfit")
    with pytest.raises(
        ExpertError,
        match=(
            r"prefix experts: Odd does not run on a tiny input \(it takes no input_ids and no "
            r"pixel_values"
        ),
    ):
        find_sites(Odd(), kind="prefix")
    with pytest.raises(ExpertError, match=r"prompt experts: Odd has no input embeddings"):
        find_sites(Odd(), kind="prompt")


def test_scores_with_a_cap_take_no_prefix() -> None:
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
    )
    model = transformers.Gemma2Model(config)
    with pytest.raises(
        ExpertError, match=r"prefix experts: Gemma2Model has no attention that goes through"
    ):
        find_sites(model, kind="prefix")
    assert len(find_sites(model)) == 14


def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pidep", "sites", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    return int(str(ended.value.code or 0)), out, err


def test_the_command_lists_every_kind(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ZOO["T5"].config().save_pretrained(tmp_path)
    code, out, err = run(monkeypatch, capfd, tmp_path, "--rank", 2)
    assert (code, err) == (0, "")
    assert out.startswith(
        f"{tmp_path}: T5ForConditionalGeneration, 10,176 parameters; T5 is tested with lora, "
        "adapter, prefix, prompt\n"
    )
    assert re.search(
        r"^  encoder\.block\.\*\.layer\.\*\.SelfAttention\.q +2 × Linear  lora_A 2×16, lora_B "
        r"16×2 +128$",
        out,
        re.MULTILINE,
    )
    assert (
        "prompt: adds P virtual tokens to the input; 1 site, 32 parameters, 0.314% of the backbone"
        in out
    )
    assert (
        "bitfit: T5ForConditionalGeneration has no Linear or LayerNorm with a bias; use another "
        "kind\n" in out
    )
    starred = re.findall(r"^  (\S+\*\S*)", out, re.MULTILINE)
    assert all(
        find_sites(model_of("T5"), [name], kind="lora") for name in starred if name[-1] in "qkvo"
    )


def test_pattern_is_a_hidden_alias_of_sites(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ZOO["BERT"].config().save_pretrained(tmp_path)
    old, new = (
        run(monkeypatch, capfd, tmp_path, "--kind", "lora", option, "*query")
        for option in ("--pattern", "--sites")
    )
    assert old == new
    assert new[1].count("query") == 2
    assert "--pattern" not in run(monkeypatch, capfd, "--help")[1]


def test_size_is_a_hidden_alias_of_rank(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ZOO["BERT"].config().save_pretrained(tmp_path)
    old, new = (
        run(monkeypatch, capfd, tmp_path, "--kind", "lora", option, 3)
        for option in ("--size", "--rank")
    )
    assert old == new
    assert "lora_A 3×" in new[1]
    assert "--size" not in run(monkeypatch, capfd, "--help")[1]


def test_the_command_in_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ZOO["BERT"].config().save_pretrained(tmp_path)
    code, out, _ = run(monkeypatch, capfd, tmp_path, "--json")
    found = json.loads(out)
    assert (code, found["model"], found["parameters"]) == (
        0,
        "BertModel",
        parameters_of(model_of("BERT")),
    )
    assert [each["kind"] for each in found["kinds"]] == list(KINDS)
    assert found["tested"] == list(EVERY)
    for each in found["kinds"]:
        assert [site["site"] for site in each["sites"]] == find_sites(
            model_of("BERT"), kind=each["kind"]
        )
        assert each["parameters"] == sum(site["parameters"] for site in each["sites"])
        assert each["share"] == pytest.approx(each["parameters"] / found["parameters"])
    assert {each["kind"] for each in found["kinds"] if each["in_peft"]} == {
        "lora",
        "prefix",
        "prompt",
    }


def test_what_is_said_to_be_tested_is_what_the_zoo_covers(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    covered: dict[str, set[tuple[str, ...]]] = {}
    for name in ZOO:
        kinds = tuple(kind for kind in EVERY if isinstance(FITS[name][kind], int))
        covered.setdefault(model_of(name).config.model_type, set()).add(kinds)
    assert covered == {model_type: {found.kinds} for model_type, found in TESTED.items()}
    code, out, _ = run(monkeypatch, capfd, "--tested", "--json")
    assert (code, json.loads(out)["swin"]["kinds"]) == (0, ["lora", "adapter", "prefix", "bitfit"])
    _, out, _ = run(monkeypatch, capfd, "--tested")
    assert all(found.name in out for found in TESTED.values())


def test_another_architecture_is_said_not_to_be_tested(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from transformers import GemmaConfig

    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    GemmaConfig(vocab_size=32, head_dim=8, **small).save_pretrained(tmp_path)
    code, out, _ = run(monkeypatch, capfd, tmp_path)
    assert code == 0
    assert out.splitlines()[0].endswith(
        "parameters; an architecture that is not among the tested ones (pidep sites --tested)"
    )


def test_one_kind_lists_every_site(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ZOO["BERT"].config().save_pretrained(tmp_path)
    _, out, _ = run(
        monkeypatch, capfd, tmp_path, "--kind", "adapter", "--pattern", "pfeiffer", "--rank", 4
    )
    assert [line.split()[0] for line in out.splitlines()[3:]] == [
        "encoder.layer.0.output.dense",
        "encoder.layer.1.output.dense",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--kind", "bitfit"],
            r"bitfit experts: LlamaModel has no Linear or LayerNorm with a bias; use another kind",
        ),
        (
            ["--kind", "lorra"],
            r"sites: --kind: expected one of .*, found 'lorra' \(did you mean 'lora'\?\)",
        ),
        (
            ["--kind", "lora", "--sites", "h.*"],
            r"sites 'h\.\*': matches no Linear; this backbone has e\.g\. layers\.0\.self_attn",
        ),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    ZOO["Llama"].config().save_pretrained(tmp_path)
    code, out, err = run(monkeypatch, capfd, tmp_path, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"model_type": "nonsense"}', '{"model_type": "bert", "hidden_size": 7}']
)
def test_a_folder_without_a_usable_config(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        BackboneError,
        match=r"backbone '.*': expected 'minilm', a folder with a config\.json or a hub id; ",
    ):
        skeleton(tmp_path)
