"""No silent base: what an expert brings and no graph reads is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pidep.adapters.bank import bank_groups
from pidep.adapters.mixture import find_sites
from pidep.deployment.release import release_bank
from pidep.errors import ExpertError, ParityError
from pidep.experts.bank import fill_row, pack
from pidep.experts.kinds import expert_kind
from pidep.export import Source, export_merged, load_recipe
from pidep.export.bound import require_inputs, require_packed
from pidep.export.folded import require_folded
from pidep.export.graph import export_bank_graph, export_merged_graph
from pidep.runtime.session import open_session
from tests.cli.run import untouched
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK, noisy

pytestmark = pytest.mark.slow  # graphs are compiled
QUERY = "encoder.layer.0.attention.self.query"
KINDS = ("lora", "adapter", "prefix", "prompt", "bitfit")


@pytest.mark.parametrize("release", [release_bank, export_merged])
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_renamed_site_is_refused_by_name(
    shallow: Any, tmp_path: Path, release: Any, kind: str
) -> None:
    expert = noisy(shallow, kind)
    sites = {site.replace("layer.0", "layer.7"): tensors for site, tensors in expert.sites.items()}
    source = Source(replace(expert, sites=sites), TASK, ROWS)
    message = (
        rf"^expert '{kind}': (key, value|lora_A, lora_B) at 'encoder\.layer\.7\..*' would be bound "
        r"to nothing, the backbone has no .* \(did you mean 'encoder\.layer\.0\..*'\?\); rename"
    )
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path), pytest.raises(ExpertError, match=message):
        release(
            [source] if release is release_bank else source,
            tmp_path / "repo",
            load_recipe("onnx-cpu"),
        )


@pytest.fixture(scope="module")
def bank_graph(shallow: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A graph of all kinds, with its groups."""
    groups = []
    for kind in KINDS:
        expert = noisy(shallow, kind)
        groups += bank_groups(shallow.model, list(expert.sites), kind=kind, size=expert.rank)
    path = tmp_path_factory.mktemp("bank") / "model.onnx"
    export_bank_graph(shallow, groups, path, opset=20)
    return path, groups


def test_a_whole_graph_of_all_kinds_passes(bank_graph: tuple[Path, Any]) -> None:
    require_inputs(*bank_graph)


def test_a_prefix_in_every_layer_passes(tiny: Any, tmp_path: Path) -> None:
    """The shift of its positions is the same in all layers, so the graph reads the first one."""
    sites = find_sites(tiny.model, kind="prefix")
    assert len(sites) > 1
    groups = bank_groups(tiny.model, sites, kind="prefix", size=2)
    assert "shift" in {group.factor for group in groups}
    export_bank_graph(tiny, groups, tmp_path / "model.onnx", opset=20)
    require_inputs(tmp_path / "model.onnx", groups)


def test_an_input_that_reaches_no_output_is_refused(
    bank_graph: tuple[Path, Any], tmp_path: Path
) -> None:
    path, groups = bank_graph
    for group in groups:
        model = onnx.load(path)
        other = next(one.input for one in groups if one.input != group.input)
        for node in model.graph.node:
            node.input[:] = [other if name == group.input else name for name in node.input]
        onnx.save(model, tmp_path / "model.onnx")
        message = (
            rf"^model\.onnx: input '{group.input}', {group.factor} of {group.kind} at .*, reaches "
            r"no output; report it"
        )
        with pytest.raises(ParityError, match=message):
            require_inputs(tmp_path / "model.onnx", groups)


def test_a_site_that_no_node_reads_is_refused(bank_graph: tuple[Path, Any], tmp_path: Path) -> None:
    """As when a site's branch is dropped: its part of the input is gathered nowhere."""
    path, groups = bank_graph
    group = next(one for one in groups if one.input == "lora_b_16")
    model = onnx.load(path)
    view = next(node.output[0] for node in model.graph.node if group.input in node.input)
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    own = [node for node in gathers if node.input[0] == view]
    assert len(own) == len(group.sites)
    own[1].input[1] = own[0].input[1]
    onnx.save(model, tmp_path / "model.onnx")
    message = r"^model\.onnx: input 'lora_b_16', B of lora at encoder\..*, is read by no node"
    with pytest.raises(ParityError, match=message):
        require_inputs(tmp_path / "model.onnx", groups)


def test_a_broken_bank_graph_is_not_published(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_cache: None
) -> None:
    def broken(backbone: Any, groups: Any, path: Path, **how: Any) -> None:
        export_bank_graph(backbone, groups, path, **how)
        model = onnx.load(path)
        for node in model.graph.node:
            node.input[:] = ["lora_a_16" if name == "lora_b_16" else name for name in node.input]
        onnx.save(model, path)

    monkeypatch.setattr("pidep.export.compile.export_bank_graph", broken)
    (tmp_path / "repo").mkdir()
    source = Source(make_expert(shallow, sites=["*query"]), TASK, ROWS)
    with untouched(tmp_path), pytest.raises(ParityError, match="input 'lora_b_16', B of lora at"):
        release_bank([source], tmp_path / "repo", load_recipe("onnx-cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_not_packed_is_refused(shallow: Any, kind: str) -> None:
    expert = noisy(shallow, kind)
    groups = bank_groups(shallow.model, list(expert.sites), kind=kind, size=expert.rank + 2)
    rows = {group.input: pack(group, [expert])[0] for group in groups}
    require_packed(expert, groups, rows)
    require_packed(expert, groups, {name: row.astype(np.float16) for name, row in rows.items()})
    site = next(iter(expert.sites))
    factors = expert_kind(kind).bank_factors(expert.sites[site], scaling=expert.scaling)
    for factor in (name for name, array in factors.items() if array.any()):
        group = next(one for one in groups if one.factor == factor and site in one.sites)
        row = rows[group.input].copy()
        row[group.sites.index(site)] = 0
        message = (
            rf"^expert '{kind}': {factor} at {site}, made of .*, is not in the bank's input "
            rf"'{group.input}'"
        )
        with pytest.raises(ParityError, match=message):
            require_packed(expert, groups, {**rows, group.input: row})
        others = [one for one in groups if one is not group]
        with pytest.raises(ParityError, match=rf"{factor} at {site}, .*, has no input of the bank"):
            require_packed(expert, others, rows)


def test_a_bank_that_drops_one_tensor_is_not_published(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate looks into the very inputs that the session reads."""

    def forgetful(row: Any, group: Any, expert: Any) -> None:
        if group.factor != "B":
            fill_row(row, group, expert)

    monkeypatch.setattr("pidep.runtime.arena.fill_row", forgetful)
    (tmp_path / "repo").mkdir()
    source = Source(make_expert(shallow, sites=["*query"]), TASK, ROWS)
    message = rf"'film': B at {QUERY}, made of lora_A, lora_B, is not in the bank's input"
    with untouched(tmp_path), pytest.raises(ParityError, match=message):
        release_bank([source], tmp_path / "repo", load_recipe("onnx-cpu"))


def test_a_graph_without_its_expert_is_refused(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose rows read slot 0 answers as the bare backbone, without any error."""

    class Bare:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.session = open_session(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run_with_ort_values(self, outputs: Any, values: dict[str, Any]) -> Any:
            slots = np.zeros_like(values["slots"].numpy())
            values["slots"] = onnxruntime.OrtValue.ortvalue_from_numpy(slots)
            return self.session.run_with_ort_values(outputs, values)

    monkeypatch.setattr("pidep.runtime.bank.open_session", Bare)
    # An expert so small that the recipe's bound alone would let it pass.
    small = make_expert(shallow, sites=["*query"], scaling=0.05)
    (tmp_path / "repo").mkdir()
    with untouched(tmp_path):
        with pytest.raises(ParityError, match=r"the graph's error of .* is over half of what"):
            release_bank([Source(small, TASK, ROWS)], tmp_path / "repo", load_recipe("onnx-cpu"))


@pytest.mark.parametrize(
    ("kind", "half", "beside"),
    [
        *((kind, False, kind == "bitfit") for kind in (*KINDS, "prefixes side by side")),
        *((kind, True, True) for kind in ("lora", "prefix")),
    ],
)
def test_a_merged_graph_holds_each_tensor(
    shallow: Any, tmp_path: Path, kind: str, half: bool, beside: bool
) -> None:
    expert, graph = noisy(shallow, kind), tmp_path / "model.onnx"
    export_merged_graph(shallow, expert, graph, opset=20, half=half, beside=beside)
    require_folded(shallow, expert, graph, half=half)
    site, tensors = next(iter(expert.sites.items()))
    name = sorted(tensors)[-1]
    changed = {**tensors, name: tensors[name] + 1}
    other = replace(expert, sites={**expert.sites, site: changed})
    message = rf"^expert '.*': model\.onnx holds no (folded weight|{name}) at {site}, so the expert"
    with pytest.raises(ParityError, match=message):
        require_folded(shallow, other, graph, half=half)


def test_an_expert_below_the_rounding_of_its_backbone_is_refused(
    shallow: Any, tmp_path: Path
) -> None:
    tiny = make_expert(shallow, sites=["*query"], scaling=1e-12)
    export_merged_graph(shallow, tiny, tmp_path / "model.onnx", opset=20)
    message = rf"^expert 'film': lora_A, lora_B at {QUERY} leave the backbone's weight as it is"
    with pytest.raises(ParityError, match=message):
        require_folded(shallow, tiny, tmp_path / "model.onnx")


def test_a_merged_graph_without_one_site_is_not_published(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(backbone: Any, expert: Any, path: Path, **how: Any) -> None:
        sites = {site: tensors for site, tensors in expert.sites.items() if site != QUERY}
        export_merged_graph(backbone, replace(expert, sites=sites), path, **how)

    monkeypatch.setattr("pidep.export.compile.export_merged_graph", forgetful)
    (tmp_path / "repo").mkdir()
    source = Source(make_expert(shallow, sites=["*query", "*value"]), TASK, ROWS)
    message = rf"expert 'film': model\.onnx holds no folded weight at {QUERY}"
    with untouched(tmp_path), pytest.raises(ParityError, match=message):
        export_merged(source, tmp_path / "repo", load_recipe("onnx-cpu"))
