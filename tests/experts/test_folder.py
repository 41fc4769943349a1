import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidep.errors import ExpertError
from pidep.experts.folder import check_name, read_expert, write_expert
from tests.conftest import make_expert


def test_save_then_load_is_the_identity(tiny, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    again = read_expert(write_expert(expert, tmp_path / "e"))
    assert again.digest == expert.digest
    assert all(np.array_equal(again.tensors()[name], value) for name, value in expert.tensors().items())


def test_truncated_at_every_step_is_refused(tiny, tmp_path: Path) -> None:
    folder = write_expert(make_expert(tiny), tmp_path / "e")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for size in range(0, len(whole), 997):
        (folder / "adapter_model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ExpertError, match=r"adapter_model\.safetensors.*(truncated|damaged)"):
            read_expert(folder)


def test_a_flipped_bit_is_a_digest_mismatch(tiny, tmp_path: Path) -> None:
    folder = write_expert(make_expert(tiny), tmp_path / "e")
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ExpertError, match="digest mismatch"):
        read_expert(folder)


def test_nan_is_refused_by_name(tiny, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    site = next(iter(expert.sites))
    expert.sites[site]["lora_A"][0, 0] = np.nan
    folder = write_expert(expert, tmp_path / "e")
    with pytest.raises(ExpertError, match=rf"{site}\.lora_A\.weight holds NaN"):
        read_expert(folder)


@pytest.mark.parametrize(("key", "value"), [("use_dora", True), ("rank_pattern", {"x": 4}), ("bias", "all"), ("modules_to_save", ["c"])])
def test_what_cannot_be_honoured_is_refused_by_name(tiny, tmp_path: Path, key: str, value: object) -> None:
    folder = write_expert(make_expert(tiny), tmp_path / "e")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ExpertError, match=f"{key}=.* is not supported"):
        read_expert(folder)


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\n", "x" * 200, "\u202etxt", ".hidden"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ExpertError, match="expert name"):
        check_name(name)


def test_an_oversized_header_is_refused(tmp_path: Path, tiny) -> None:
    folder = write_expert(make_expert(tiny), tmp_path / "e")
    (folder / "adapter_model.safetensors").write_bytes((2**64 - 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(ExpertError, match="header claims 18446744073709551615 bytes"):
        read_expert(folder)


def test_metrics_do_not_change_the_digest(tiny) -> None:
    expert = make_expert(tiny)
    assert replace(expert, metrics={"accuracy": 1.0}).digest == expert.digest
    assert replace(expert, scaling=1.0).digest != expert.digest
