"""The place of the expert in a folder."""

from __future__ import annotations

from pathlib import Path

from pidep.experts.resolve import holds_expert, resolve_expert_folder


def test_a_run_folder_holds_its_expert_inside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "expert").mkdir(parents=True)
    assert resolve_expert_folder(run) == run  # an `expert` folder without expert.json is no expert
    assert not holds_expert(run)
    (run / "expert" / "expert.json").touch()
    assert resolve_expert_folder(run) == run / "expert"
    assert resolve_expert_folder(run / "expert") == run / "expert"
    assert holds_expert(run)
    assert holds_expert(run / "expert")


def test_any_other_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert resolve_expert_folder(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert not holds_expert(tmp_path / "nowhere")
