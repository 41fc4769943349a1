"""Encoder-decoders in int8 and fp16: what is quantised, and answers near PyTorch's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pidep.adapters.mixture import Mixture, attached
from pidep.artifacts import BankRecord, MergedRecord
from pidep.artifacts.gate_report import GateReport
from pidep.artifacts.names import BACKBONE
from pidep.artifacts.parity import GeneratedParity, Parity
from pidep.deployment.release import release_bank
from pidep.errors import ParityError, UsageError
from pidep.export import (
    Quantisation,
    Recipe,
    Tolerance,
    export_merged,
    load_recipe,
    quantise,
    sensitivity,
)
from pidep.export.compile import compile_merged
from pidep.export.parity import check_parity
from pidep.export.sequence_feeds import sequence_feeds
from pidep.files.digest import file_digest
from pidep.inputs.decoding import Decoding
from pidep.inputs.row import Row
from pidep.runtime import Bank, Merged
from pidep.runtime.answer import Answer
from pidep.runtime.session import open_session
from tests.backbones.tiny_models import loaded
from tests.cli.run import untouched
from tests.export.examples import int8_recipe
from tests.export.sequences import TEXTS, free_source, labelled_source, noisy_expert

pytestmark = pytest.mark.slow  # graphs are compiled

# Random weights have no clear answers: texts of tiny models differ as soon as a logit does.
LOOSE = Tolerance(max_abs=2.0, argmax_flips=5, metric_drop=1.0, other_texts=1.0)
NEAR = {"int8": 1.0, "fp16": 2e-2}
"""Of a log-probability: far below what the experts do."""
KINDS = ("lora", "adapter", "bitfit", "prefix")
GRAPHS = ("encoder.onnx", "decoder.onnx")
CANDIDATES = ("red", "the green cat", "yes")


def recipe(precision: str) -> Recipe:
    if precision == "int8":
        return int8_recipe(tolerance=LOOSE)
    return load_recipe("onnx-cuda-fp16").model_copy(update={"tolerance": LOOSE})


def torch_scores(backbone: Any, expert: Any, rows: list[Any], texts: Any) -> np.ndarray:
    with attached(backbone.model, None if expert is None else Mixture.of([expert])):
        return np.asarray(backbone.score(rows, list(texts), max_length=16).detach())


def quantised(version: Path) -> list[int]:
    """Products in int8 of each graph, counted in the files."""
    nodes = [onnx.load(version / name, load_external_data=False).graph.node for name in GRAPHS]
    return [sum(node.op_type == "MatMulInteger" for node in some) for some in nodes]


def counted(record: Any) -> list[int | None]:
    sequence = record.sequence
    return [sequence.encoder_quantised_products, sequence.decoder_quantised_products]


def cache_type(version: Path) -> int:
    """The type of the decoder's keys and values; its logits are fp32 always."""
    graph = onnx.load(version / "decoder.onnx", load_external_data=False).graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.output)}
    assert types["logits"] == onnx.TensorProto.FLOAT
    (found,) = {types[name] for name in ("past_key_0", "key_0", "cross_value_1", "value_1")}
    return int(found)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("name", ["T5", "Florence-2"])
def test_a_merged_model(tmp_path: Path, name: str, precision: str) -> None:
    backbone = loaded(name)
    expert = noisy_expert(backbone, "lora", name="colours")
    weights = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    rows: list[Any] = list(TEXTS)
    if name == "Florence-2":
        pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
        rows[1:3] = [Row("what is", pixels), Row("", pixels[::-1].copy())]
    exported = export_merged(labelled_source(expert, rows), tmp_path, recipe(precision))
    version = exported.folder / "1"
    record = MergedRecord.read(version)
    model = Merged(version)
    if precision == "int8":
        # Every Linear of 8 features or more on both sides. Of the decoder's part in the encoder's
        # graph there are keys and values; Florence-2's vocabulary is in no Linear of its own.
        assert counted(record) == quantised(version)
        assert all(counted(record))
        assert record.quantised_products == sum(quantised(version))
        assert cache_type(version) == onnx.TensorProto.FLOAT
    else:
        assert counted(record) == [None, None]
        assert cache_type(version) == onnx.TensorProto.FLOAT16
    found = [answer.logits for answer in model.run(rows)]
    wanted = torch_scores(backbone, expert, rows, expert.label_texts)
    assert 1e-5 < np.abs(found - wanted).max() < NEAR[precision]
    # Rows of all modes share a batch.
    beam = Row("a dog", decoding=Decoding("beam", 2, 5))
    assert all(isinstance(one, Answer) for one in model.run([*rows, beam]))
    # The backbone itself stays in fp32.
    now = backbone.model.state_dict()
    assert all(bool((now[key] == value).all()) for key, value in weights.items())


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_bank_of_all_kinds(tmp_path: Path, precision: str) -> None:
    bart = loaded("BART")
    experts = {
        kind: noisy_expert(bart, kind, name=kind, seed=at, free=kind == "prefix")
        for at, kind in enumerate(KINDS)
    }
    sources = [
        (free_source if one.max_answer_length else labelled_source)(one) for one in experts.values()
    ]
    exported = release_bank(sources, tmp_path / "repo", recipe(precision))
    bank = Bank(exported.folder / "1")
    assert isinstance(bank.record, BankRecord)
    expected = "tensor(float16)" if precision == "fp16" else "tensor(float)"
    inputs = {one.name: one.type for one in bank.session.get_inputs()}
    assert {inputs[group.input] for group in bank.groups if group.input in inputs} == {expected}
    if precision == "int8":
        # Six Linears of two layers in each, and keys and values of cross-attention in the
        # encoder's; the decoder has queries and outputs of it, and the vocabulary.
        assert counted(bank.record) == quantised(exported.folder / "1") == [16, 17]
        assert bank.record.quantised_products == 33
    residents = bank.build(experts)
    rows = [Row(text, candidates=CANDIDATES) for text in TEXTS]
    names = [*KINDS, BACKBONE]
    for at, (name, answer) in enumerate(zip(names, bank.run(residents, rows, names), strict=True)):
        assert isinstance(answer, Answer)
        wanted = torch_scores(bart, experts.get(name), TEXTS, CANDIDATES)[at]
        np.testing.assert_allclose(answer.logits, wanted, atol=NEAR[precision])
    texts = bank.run(residents, TEXTS, ["prefix"] * len(TEXTS))
    assert all(isinstance(one, Answer) and not one.labels for one in texts)


def measured(bound: float) -> Recipe:
    how = Quantisation(min_features=8, max_product_error=bound)
    return int8_recipe(tolerance=LOOSE, quantisation=how)


@pytest.mark.parametrize(
    ("name", "form"), [("T5", "merged"), ("T5", "bank"), ("Florence-2", "merged")]
)
def test_the_products_that_lose_most_stay_in_fp32(
    tmp_path: Path, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "cache_folder", lambda: tmp_path / "cache")
    errors: list[dict[str, float]] = []
    measure = quantise.product_errors

    def worse(*given: Any) -> dict[str, float]:
        """As measured, and the worse half beyond the bound."""
        errors.append(measure(*given))
        middle = float(np.median(list(errors[-1].values())))
        return {key: one if one <= middle else 1e3 for key, one in errors[-1].items()}

    monkeypatch.setattr(quantise, "product_errors", worse)
    colours = noisy_expert(loaded(name), "lora", name="colours")
    free = noisy_expert(loaded(name), "lora", name="free", seed=3, free=True)
    rows: list[Any] = list(TEXTS)
    if name == "Florence-2":
        rows[1] = Row("what is", np.zeros((8, 8, 3), np.uint8))
    sources = [replace(labelled_source(colours), calibration=rows)]
    if form == "bank":  # one scores its labels, and the other generates
        sources.append(replace(free_source(free), calibration=TEXTS))
        folder = release_bank(sources, tmp_path / "repo", measured(10.0)).folder
        record: Any = BankRecord.read(folder / "1")
    else:
        folder = export_merged(sources[0], tmp_path / "repo", measured(10.0)).folder
        record = MergedRecord.read(folder / "1")
    encoder, decoder = errors
    for graph in (encoder, decoder):
        assert 0 < min(graph.values()) < max(graph.values()) < 1
    kept = [(len(graph) + 1) // 2 for graph in errors]
    assert quantised(folder / "1") == counted(record) == kept


def test_what_a_graph_was_given_can_be_run_again(tmp_path: Path) -> None:
    """The feeds are copies of what the session read, in fp32, a run each."""
    backbone = loaded("T5")
    colours = noisy_expert(backbone, "lora", name="colours")
    source = replace(labelled_source(colours), calibration=TEXTS)
    folder = export_merged(source, tmp_path, load_recipe("onnx-cpu")).folder / "1"
    record = MergedRecord.read(folder).sequence
    assert record is not None
    feeds = sequence_feeds(folder, record, None, [source])
    again = sequence_feeds(folder, record, None, [source])
    for name in GRAPHS:
        assert len(feeds[name]) == len(again[name]) > 0
        session = open_session(folder / name, file_digest(folder / name))
        for one, other in zip(feeds[name], again[name], strict=True):
            assert one.keys() == {given.name for given in session.get_inputs()}
            for key, array in one.items():
                np.testing.assert_array_equal(array, other[key])
            assert all(np.isfinite(found).all() for found in session.run(None, dict(one)))
    # The decoder reads the states of the encoder.
    encoder, decoder = (feeds[name][0] for name in GRAPHS)
    session = open_session(folder / GRAPHS[0], file_digest(folder / GRAPHS[0]))
    (states,) = session.run(["cross_key_0"], dict(encoder))
    rows = {row.tobytes() for row in states}
    assert {row.tobytes() for row in decoder["cross_key_0"]} <= rows


def test_texts_that_are_not_pytorchs_refuse_an_expert(tmp_path: Path) -> None:
    bart = loaded("BART")
    source = free_source(noisy_expert(bart, "lora", name="x", free=True))
    bounds = LOOSE.model_copy(update={"other_texts": 0.1})
    with untouched(tmp_path):
        with pytest.raises(
            ParityError,
            match=r"'x': share of other generated texts is 0\.\d+, the recipe allows 0\.1",
        ):
            export_merged(source, tmp_path, int8_recipe(tolerance=bounds))
    exported = export_merged(source, tmp_path, int8_recipe(tolerance=LOOSE))
    made = exported.parity["x"].generated
    assert made is not None
    assert (made.rows, made.metric) == (5, "accuracy")
    assert 0 <= made.same < 5
    page = (exported.folder / "gate_report.html").read_text()
    assert f"{made.same} of 5 are PyTorch" in page
    report = GateReport.read(exported.folder)
    assert report.other_texts == 1.0
    assert report.experts["x"].parity.generated == made


def test_an_expert_whose_texts_differ_is_left_to_fp32(tmp_path: Path) -> None:
    bart = loaded("BART")
    sources = [
        free_source(noisy_expert(bart, "lora", name="free", free=True)),
        labelled_source(noisy_expert(bart, "lora", name="labels", seed=1)),
    ]
    bounds = LOOSE.model_copy(update={"other_texts": 0.1})
    exported = release_bank(
        sources,
        tmp_path / "repo",
        int8_recipe(tolerance=bounds),
        fallback=load_recipe("onnx-cpu"),
    )
    assert list(exported.experts) == ["labels"]
    one = exported.left_out["free"]
    assert one.reason.startswith("share of other generated texts is ")
    (beside,) = exported.beside
    made = beside.parity["free"].generated
    assert made is not None
    assert (made.rows, made.same) == (5, 5)
    # The merged one decodes in fp32, and the bank in int8.
    assert counted(MergedRecord.read(beside.folder / "1")) == [None, None]
    assert counted(BankRecord.read(exported.folder / "1")) == [16, 17]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"same": 6}, r"share of other generated texts is 0\.25, the recipe allows 0\.125"),
        (
            {"metric_exported": 0.5},
            r"loss of rouge of generated texts is 0\.25, the recipe allows 0\.01",
        ),
    ],
)
def test_bounds_of_generated_texts(change: dict[str, Any], message: str) -> None:
    made = GeneratedParity(rows=8, same=7, metric="rouge", metric_torch=0.75, metric_exported=0.745)
    figures = Parity(
        rows=8,
        max_abs=1e-3,
        max_relative=1.0,
        argmax_flips=0,
        metric="accuracy",
        metric_torch=0.9,
        metric_exported=0.9,
        generated=made,
    )
    bounds = Tolerance(max_abs=1.0, argmax_flips=0, metric_drop=0.01, other_texts=0.125)
    check_parity("x", figures, bounds)
    worse = figures.model_copy(update={"generated": made.model_copy(update=change)})
    with pytest.raises(ParityError, match=message):
        check_parity("x", worse, bounds)


def test_what_an_encoder_decoder_cannot_have_is_refused(tmp_path: Path) -> None:
    source = labelled_source(noisy_expert(loaded("T5"), "lora", name="colours"))
    with untouched(tmp_path):
        with pytest.raises(UsageError, match=r"encoder\.onnx: .* is measured on training rows"):
            export_merged(source, tmp_path, measured(0.1))
        with pytest.raises(UsageError, match="is for tensorrt, and encoder-decoders are exported"):
            compile_merged(loaded("T5"), source, tmp_path, load_recipe("tensorrt-fp16"))
