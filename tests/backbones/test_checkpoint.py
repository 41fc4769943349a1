"""Checkpoints that are not whole, or not what they seem, are refused in one line."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pidep
from pidep.adapters.places import skeleton
from pidep.backbones.checkpoint import position_limit
from pidep.backbones.encoder import Encoder, encoder_of, load_encoder
from pidep.backbones.load import load_any_backbone
from pidep.backbones.seq2seq import TextToText
from pidep.errors import BackboneError
from tests.backbones.tiny_models import save_model

REPOSITORY = Path(pidep.__file__).parent.parent
TEXTS = ["the film was very good", "awful"]


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def rename(folder: Path, new_name: Callable[[str], str]) -> None:
    """Write the weights under other names."""
    path = folder / "model.safetensors"
    weights = {new_name(name): value for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def change(folder: Path, **entries: Any) -> None:
    """Change entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


# Weights.


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "bert.", "_orig_mod.bert.", "module._orig_mod.", "0.auto_model."],
)
def test_prefixes_of_wrappers_are_taken_off(copy: Path, tiny: Encoder, prefix: str) -> None:
    rename(copy, lambda name: prefix + name)
    assert load_encoder(copy).digest == tiny.digest


def test_weights_of_other_names_are_not_drawn_at_random(copy: Path) -> None:
    rename(copy, lambda name: f"student.{name}")
    with pytest.raises(
        BackboneError,
        match=r"weights of BertModel are not there, e.g. embeddings.LayerNorm.bias "
        r"\(the checkpoint has \d+ others, e.g. student.embeddings.LayerNorm.bias\); save",
    ):
        load_encoder(copy)


def test_one_weight_that_is_missing(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 weights of .*encoder.layer.1.output.dense.weight"):
        load_encoder(copy)


def test_weights_of_another_shape(copy: Path) -> None:
    change(copy, intermediate_size=64)
    with pytest.raises(BackboneError, match="expected 'minilm', a folder or a hub id"):
        load_encoder(copy)


def test_weights_that_are_not_finite(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.0.output.dense.bias"][3] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"encoder.layer.0.output.dense.bias holds NaN or Inf"):
        load_encoder(copy)


def test_an_encoder_decoder_that_is_not_finite(tmp_path: Path) -> None:
    path = save_model(tmp_path, "T5") / "model.safetensors"
    weights = load_file(path)
    weights["shared.weight"][1] = torch.inf
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"shared.weight holds NaN or Inf"):
        load_any_backbone(str(tmp_path))


def test_an_adapter_beside_the_weights_is_no_part_of_a_backbone(copy: Path) -> None:
    import peft
    from transformers import AutoModel, AutoTokenizer

    config = peft.LoraConfig(r=2, target_modules=["query"])
    model = peft.get_peft_model(AutoModel.from_pretrained(copy), config)
    with pytest.raises(BackboneError, match="holds an adapter of PEFT; give its base as"):
        encoder_of(model, AutoTokenizer.from_pretrained(copy))
    model.save_pretrained(copy)
    with pytest.raises(BackboneError, match=r"holds an adapter of PEFT; .* with pidep import"):
        load_encoder(copy)


def test_a_pooler_decides_nothing(copy: Path, tiny: Encoder) -> None:
    path = copy / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    # As checkpoints of masked-language models are: transformers draws the pooler at every load.
    one, two = load_encoder(copy), load_encoder(copy)
    assert not torch.equal(*(b.model.get_parameter("pooler.dense.weight") for b in (one, two)))
    assert one.digest == two.digest == tiny.digest


# The digest.


def test_the_arithmetic_is_in_the_digest(copy: Path, tiny: Encoder) -> None:
    change(copy, hidden_act="relu")
    assert load_encoder(copy).digest != tiny.digest


def exchange(words: dict[str, int], one: str, two: str) -> None:
    words[one], words[two] = words[two], words[one]


def test_the_tokenizer_is_in_the_digest(copy: Path, tiny: Encoder) -> None:
    (copy / "vocab.txt").unlink()
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    exchange(content["model"]["vocab"], "good", "bad")
    path.write_text(json.dumps(content))
    assert load_encoder(copy).digest != tiny.digest


@pytest.mark.parametrize("name", ["T5"])
def test_an_encoder_decoder_has_its_tokenizer_in_the_digest(name: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "one", name)
    before = load_any_backbone(str(folder)).digest
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"yes"', '"swap"', 1).replace('"no"', '"yes"', 1))
    assert load_any_backbone(str(folder)).digest != before


# Tokenizers.


def test_a_folder_without_tokenizer_files(copy: Path) -> None:
    for path in (*copy.glob("tok*"), copy / "vocab.txt"):
        path.unlink()
    with pytest.raises(BackboneError, match="knows no word, only special tokens; copy the tok"):
        load_encoder(copy)


def test_a_tokenizer_with_more_tokens_than_embeddings(copy: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for folder, given, expected in (
        (copy, "good", r"has 16 tokens, the model has 15 embeddings"),
        (save_model(tmp_path / "t5", "T5"), "yes", r"tokens, the model has \d+ embeddings"),
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"[{given}{place}]" for place in range(1)])
        tokenizer.save_pretrained(folder)
        with pytest.raises(BackboneError, match=expected):
            load_any_backbone(str(folder))


# Positions.


def roberta() -> Any:
    import transformers

    return transformers.RobertaModel(
        transformers.RobertaConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=12,
            pad_token_id=1,
        )
    ).eval()


def mpnet() -> Any:
    import transformers

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return transformers.MPNetModel(
        transformers.MPNetConfig(
            vocab_size=20, intermediate_size=8, max_position_embeddings=12, **size
        )
    ).eval()


@pytest.mark.parametrize(
    ("make", "limit"),
    [(roberta, 10), (mpnet, 10), (lambda: None, 32)],
    ids=["roberta", "mpnet", "bert"],
)
def test_a_text_of_the_limit_fits_and_one_more_does_not(
    make: Callable[[], Any], limit: int, tiny: Encoder
) -> None:
    model = make() or tiny.model
    assert position_limit(model) == limit

    def run(length: int) -> Tensor:
        ids = torch.full((1, length), 7)
        with torch.no_grad():
            states: Tensor = model(input_ids=ids, attention_mask=ids.sign()).last_hidden_state
        return states

    assert run(limit).shape[1] == limit
    with pytest.raises((IndexError, RuntimeError)):
        run(limit + 1)


# Names and places.


def test_a_folder_is_found_from_other_places(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(copy.parent)
    backbone = load_any_backbone(copy.name)
    assert backbone.name == str(copy)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_any_backbone(backbone.name).digest == backbone.digest


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    for name in (str(tmp_path / "gone"), "./gone", "a/b/gone"):
        with pytest.raises(BackboneError, match="no such folder; give the place where it lies now"):
            load_any_backbone(name)


# Code.


def own_code(folder: Path, mark: Path, **classes: str) -> None:
    """Give a checkpoint code that leaves a mark where it runs."""
    change(folder, model_type="mine", auto_map=classes)
    (folder / "mine.py").write_text(
        f"open({str(mark)!r}, 'w').write('ran')\n"
        "from transformers import BertConfig, BertModel\n"
        "class Config(BertConfig): model_type = 'mine'\n"
        "class Model(BertModel): config_class = Config\n"
    )


@pytest.mark.parametrize(
    "classes",
    [
        {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"},
        {"AutoConfig": "mine.Config", "AutoModelForSeq2SeqLM": "mine.Model"},
    ],
)
def test_code_of_a_checkpoint_never_runs(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: dict[str, str]
) -> None:
    mark = tmp_path / "ran"
    own_code(copy, mark, **classes)
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(BackboneError, match="holds Python code of its own, which pidep does not"):
        load_any_backbone(str(copy))
    assert not asked
    assert not mark.exists()


def test_every_load_says_that_no_code_of_a_checkpoint_runs() -> None:
    """`trust_remote_code=False` at every call: transformers asks on the terminal without it."""
    calls = 0
    for folder in ("pidep", "benchmarks", "tools", "examples"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                # An adapter's class gets a model that is loaded already.
                if getattr(node.func.value, "id", "") == "PeftModel":
                    continue
                if node.func.attr in ("from_pretrained", "from_config"):
                    calls += 1
                    said = {one.arg: ast.unparse(one.value) for one in node.keywords}
                    assert said.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
    assert calls >= 5


def test_a_skeleton_runs_no_code_of_the_checkpoint(copy: Path, tmp_path: Path) -> None:
    own_code(copy, tmp_path / "ran", AutoConfig="mine.Config", AutoModel="mine.Model")
    with pytest.raises(BackboneError, match="holds Python code of its own, which pidep does not"):
        skeleton(copy)
    assert not (tmp_path / "ran").exists()


def test_two_joined_encoders_have_the_positions_of_their_tables() -> None:
    import transformers

    joined = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        *(roberta().config for _ in range(2)),
        decoder_start_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    calls = TextToText(transformers.EncoderDecoderModel(joined))
    assert calls.positions == 10
