"""Another package adds a task, a backbone and a kind of expert through entry points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pidep import plugins

EXAMPLE = Path(__file__).parent / "example"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path) -> Any:
    """Run Python where the example package is installed."""
    shutil.copytree(tiny_folder, tmp_path / "bert")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLE)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIDEP_EXAMPLE": str(tmp_path),
    }

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return call


def test_one_command_uses_a_task_a_backbone_and_a_kind_of_another_package(
    run: Any, tmp_path: Path
) -> None:
    done = run(
        *("-m", "pidep", "tune", "example/liked", "--backbone", "example-bert", "--kind", "ia3"),
        *("--steps", "3", "--batch-size", "8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    expert = json.loads((tmp_path / "runs" / "liked" / "expert" / "expert.json").read_text())
    assert (expert["kind"], expert["backbone"]) == ("ia3", "example-bert")
    assert list((tmp_path / "runs" / "liked" / "expert").glob("expert.safetensors"))


def test_names_are_known_without_importing_the_package(run: Any) -> None:
    code = (
        "import sys; from pidep import plugins\n"
        "print(plugins.names('pidep.kinds'), plugins.names('pidep.backbones'))\n"
        "assert 'pidep_example' not in sys.modules"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "'ia3'" in done.stdout
    assert "'example-bert'" in done.stdout


def test_pidep_brings_its_own_without_being_installed() -> None:
    for group, known in plugins.BUILT_IN.items():
        assert plugins.names(group)[: len(known)] == tuple(known)
        for name in known:
            assert plugins.load(group, name) is not None


def test_a_package_that_does_not_load_is_named(run: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[pidep.backbones]\nworse = no_such_module:load\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pidep import plugins\nfrom pidep.errors import UsageError\n"
        "try:\n    plugins.load('pidep.backbones', 'worse')\n"
        "except UsageError as error:\n    print(error)"
    )
    done = run("-c", code)
    assert (
        "entry point 'worse' of pidep.backbones (no_such_module:load, package broken)"
        in done.stdout
    )


@pytest.mark.parametrize("entry", ["no_such_module:TASKS", "json:dumps"])
def test_a_broken_package_takes_no_task_away(run: Any, tmp_path: Path, entry: str) -> None:
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text(f"[pidep.tasks]\nworse = {entry}\n")
    (tmp_path / "mine.yaml").write_text("name: mine\nlabels: {a: x, b: y}\ndata: {path: x.csv}\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pidep.tasks.packaged import packaged_tasks\n"
        "from pidep.tasks.task import load_task\n"
        "print(load_task('mine.yaml').name, load_task('sentiment/movie').name)\n"
        # Neither a task file nor a task of pidep needs another package.
        "assert 'pidep_example' not in sys.modules\n"
        "print('quiet', file=sys.stderr)\n"
        "print(load_task('example/liked').name, 'example/liked' in packaged_tasks())\n"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["mine", "movie", "liked", "True"]
    before, _, after = done.stderr.partition("quiet")
    assert before == ""
    assert after.count("entry point 'worse' of pidep.tasks") == 1
    assert "mend or uninstall that package" in after
