"""Checks that exported graphs load in other releases of ONNX Runtime and answer the same there.

    python -m tools.compat [--oldest VERSION] [--folder FOLDER] [--recipes NAME ...]

Every recipe of ONNX Runtime is exported from MiniLM, as a merged model and as a bank, with its
weights in the graph and beside it. Each release has an environment of its own, with nothing in it
but numpy and ONNX Runtime, as Triton Server's container has them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pidep.adapters.bank import bank_groups
from pidep.adapters.mixture import find_sites, fresh
from pidep.artifacts.names import GRAPH, GRAPH_SLOTS, GRAPH_WEIGHTS
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_backbone
from pidep.experts.bank import pack
from pidep.experts.folder import Expert
from pidep.experts.kind import bank_sites
from pidep.export import Quantisation, Recipe, recipes
from pidep.export.graph import export_bank_graph, export_merged_graph
from pidep.export.quantise import quantise
from tools.compat_answers import FEEDS, FOUND, answers

__all__ = ["OLDEST", "export_all", "main"]

OLDEST = "1.27.0"
"""The oldest release that serves: the one in the oldest container of Triton Server."""
_ANSWERS = Path(__file__).with_name("compat_answers.py")
_ROWS = ["a short one", "a text of some more words than the first one has", "words"]
_FORMS = ("merged", "bank")


def main() -> int:
    """Exit code 1 where a release answers otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--oldest", default=OLDEST, help="release beside the newest")
    parser.add_argument("--folder", type=Path, default=Path(".venv-compat"), help="environments")
    parser.add_argument("--recipes", nargs="*", help="some recipes instead of all")
    given = parser.parse_args()
    pythons = [
        _environment(given.folder / given.oldest, f"onnxruntime=={given.oldest}"),
        _environment(given.folder / "newest", "onnxruntime"),
    ]
    some = [one for one in recipes() if given.recipes is None or one.name in given.recipes]
    with TemporaryDirectory() as folder:
        made = export_all(load_backbone("minilm"), some, Path(folder))
        command = [str(_ANSWERS), *map(str, made)]
        codes = [subprocess.run([python, *command], check=False).returncode for python in pythons]
    return int(any(codes))


def export_all(backbone: Backbone, some: list[Recipe], folder: Path) -> list[Path]:
    """A folder for each graph, with its inputs and what this release of ONNX Runtime answers."""
    expert = _expert(backbone)
    made = []
    for recipe in some:
        if recipe.runtime != "onnxruntime":
            continue
        for form in _FORMS:
            for beside in (False, True):
                place = folder / f"{recipe.name}-{form}{'-beside' if beside else ''}"
                place.mkdir(parents=True)
                feeds = _export(backbone, expert, recipe, place / GRAPH, form=form, beside=beside)
                np.savez(place / FEEDS, **feeds)
                np.savez(place / FOUND, found=answers(place))
                made.append(place)
    return made


def _export(
    backbone: Backbone, expert: Expert, recipe: Recipe, path: Path, *, form: str, beside: bool
) -> dict[str, Any]:
    """Write the graph as `pidep export` does; its inputs for three rows."""
    half = recipe.precision == "fp16"
    prepared = backbone.prepare(list(_ROWS), max_length=expert.max_length)
    feeds = {name: tensor.numpy() for name, tensor in prepared.items()}
    how = {"half": half, "beside": beside}
    if form == "merged":
        export_merged_graph(backbone, expert, path, opset=recipe.opset, **how)
    else:
        groups = bank_groups(backbone.model, list(expert.sites), kind=expert.kind, size=expert.rank)
        export_bank_graph(backbone, groups, path, opset=recipe.opset, **how)
        # The bare backbone, the expert, and half of the expert.
        feeds[GRAPH_SLOTS] = np.array([[0], [1], [1]], np.int64)
        weights = np.ones((3, 1, len(bank_sites(groups))), np.float32)
        weights[2] = 0.5
        feeds[GRAPH_WEIGHTS] = weights
        for group in groups:
            feeds[group.input] = pack(group, [None, expert]).astype("f2" if half else "f4")
    if recipe.precision == "int8":
        how = recipe.quantisation or Quantisation()
        # Nothing is measured: which products are in int8 makes no other kind of graph.
        quantise(path, how.model_copy(update={"max_product_error": None}))
    return feeds


def _expert(backbone: Backbone) -> Expert:
    """A random LoRA that clearly acts."""
    rng = np.random.default_rng(0)
    start = fresh(backbone.model, find_sites(backbone.model, kind="lora"), kind="lora", rank=4)
    sites = {
        site: {
            name: (array + rng.normal(0, 0.05, array.shape)).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in start.items()
    }
    labels = ("negative", "positive")
    return Expert(
        name="film",
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        sites=sites,
        scaling=1.0,
        labels=labels,
        label_texts=labels,
        label_embeddings=backbone.encode(list(labels), max_length=8).numpy(),
        logit_scale=20.0,
        max_length=32,
    )


def _environment(folder: Path, package: str) -> str:
    """Python of an environment with the release; pip looks for a newer one each time."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, "--upgrade", package, "numpy"], check=True)
    return str(python)


if __name__ == "__main__":
    sys.exit(main())
