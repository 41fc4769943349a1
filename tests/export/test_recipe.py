"""Recipes: shipped ones, one's own, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pidep.errors import UsageError
from pidep.export import (
    load_recipe,
    recipes,
)
from pidep.export.recipe import shipped


def test_generated_texts_may_differ_where_numbers_are_rounded() -> None:
    # One other logit changes a text from there on, so not every text can be the same.
    rounded = [one for one in recipes() if one.precision != "fp32" and one.runtime == "onnxruntime"]
    assert len(rounded) >= 3
    assert all(0 < one.tolerance.other_texts <= 0.1 for one in rounded)


def test_every_shipped_recipe_has_the_name_of_its_file() -> None:
    names = sorted(path.stem for path in shipped("export").glob("*.yaml"))
    assert [recipe.name for recipe in recipes()] == names
    assert all(recipe.summary for recipe in recipes())


def test_quantisation_is_for_int8(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = shipped("export/onnx-cpu-int8.yaml").read_text()
    path.write_text(text.replace("precision: int8", "precision: fp32"))
    with pytest.raises(UsageError, match=r"quantisation is for precision int8, not fp32"):
        load_recipe(str(path))


def test_a_recipe_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = shipped("export/onnx-cpu.yaml").read_text()
    path.write_text(text.replace("name: onnx-cpu", "name: mine").replace("opset: 20", "opset: 21"))
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.opset) == ("mine", 21)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("opset: 20", "opst: 20", r"mine\.yaml: unknown key 'opst' \(did you mean 'opset'\?\)"),
        (
            "argmax_flips: 0",
            "argmax_flip: 0",
            r"mine\.yaml: tolerance: unknown key 'argmax_flip' \(did you mean 'argmax_flips'\?\)",
        ),
        ("opset: 20", "opset: 99", r"mine\.yaml: opset: .*found 99"),
        ("max_abs: 0.001", "max_abs: 0", r"mine\.yaml: tolerance\.max_abs: .*found 0"),
        ("precision: fp32", "precision: fp7", r"mine\.yaml: precision: .*found 'fp7'"),
        ("max_abs: 0.001", "max_abs: .inf", r"mine\.yaml: tolerance\.max_abs: .*found inf"),
        (
            "max_abs: 0.001",
            f"max_abs: 1{'0' * 400}",
            r"mine\.yaml: tolerance: has more than 64 bits",
        ),
        ("opset: 20", f"opset: {'[' * 5000}", r"mine\.yaml: not readable as YAML \(nested too"),
        ("opset: 20", f"opset: {'9' * 5001}", r"mine\.yaml: not readable as YAML \(Exceeds"),
        (
            "runtime: onnxruntime",
            'runtime: "\\ud83d"',
            r"mine\.yaml: runtime: '\\ud83d' is not UTF-8",
        ),
        ("opset: 20", "form: bank", r"mine\.yaml: unknown key 'form'"),
        ("runtime: onnxruntime", "runtime: [", r"mine\.yaml: not readable as YAML"),
    ],
)
def test_a_recipe_that_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(shipped("export/onnx-cpu.yaml").read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_a_recipe_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"mine\.yaml: not readable as YAML"):
        load_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("tensorrt-fp32", "profile:", "unused:", "unknown key 'unused'"),
        ("tensorrt-fp32", "precision: fp32", "precision: int8", "tensorrt needs a profile, and"),
        ("onnx-cpu", "opset: 20", "opset: 20\nprofile: {}", "profile and compute_capabilities are"),
        ("tensorrt-fp32", "batch: [1, 8, 64]", "batch: [8, 1, 64]", "batch: expected smallest"),
        ("tensorrt-fp32", "batch:", "batches:", r"profile: unknown key 'batches' \(did you mean"),
    ],
)
def test_a_profile_is_for_tensorrt(
    tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(shipped(f"export/{name}.yaml").read_text().replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))
