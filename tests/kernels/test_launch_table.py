"""Launch settings: shipped, overridden, tuned and kept; and the path that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pidep.kernels import launch_table, paths
from pidep.kernels.launch_table import CHOICES, DEFAULTS, choices, settings_for, tune, using


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "cache"))
    launch_table.tuned_settings.cache_clear()
    yield tmp_path / "cache" / "launch_table.json"
    launch_table.tuned_settings.cache_clear()


def test_every_kernel_has_settings_and_every_choice_is_one_of_them(cache: Path) -> None:
    for kernel, options in CHOICES.items():
        every = list(choices(kernel))
        assert len(every) == len({tuple(one.items()) for one in every}) > 1
        assert options.keys() <= DEFAULTS[kernel].keys()
    assert list(choices("interpolate_logits")) == [{}]


def test_an_override_is_for_a_while(cache: Path) -> None:
    before = settings_for("lora_fold", torch.float32)
    with using("lora_fold", {"num_warps": 2}):
        assert settings_for("lora_fold", torch.float32)["num_warps"] == 2
    assert settings_for("lora_fold", torch.float32) == before


def test_the_fastest_is_kept_for_this_device_kernel_and_dtype(cache: Path) -> None:
    def measure(work) -> float:
        settings = settings_for("interpolate_forward", torch.float32)
        if settings["num_warps"] == 8:
            raise RuntimeError("out of resource: shared memory")
        return abs(settings["CHUNK"] - 2) + settings["num_warps"]

    best = tune("interpolate_forward", torch.float32, lambda: None, measure)
    assert best == {"CHUNK": 2, "num_warps": 2}
    assert settings_for("interpolate_forward", torch.float32) == best
    assert settings_for("interpolate_forward", torch.bfloat16) == DEFAULTS["interpolate_forward"]
    assert json.loads(cache.read_text()) == {"cpu | interpolate_forward | float32": best}
    tune("lora_fold", torch.float32, lambda: None, lambda work: 1.0)
    assert len(json.loads(cache.read_text())) == 2


def test_other_errors_are_not_swallowed(cache: Path) -> None:
    def measure(work) -> float:
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune("lora_fold", torch.float32, lambda: None, measure)
    assert not cache.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"cpu | lora_fold | float32": 3}',
        '{"cpu | lora_fold | float32": {"num_warps": "x"}}',
    ],
)
def test_a_damaged_file_is_as_good_as_none(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert settings_for("lora_fold", torch.float32) == DEFAULTS["lora_fold"]


def test_settings_of_another_version_are_left_alone(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(
        '{"cpu | lora_fold | float32": {"num_warps": 4, "BLOCK_Q": 8}, "cpu | low_rank | float16": '
        '{"BLOCK_C": 7}}'
    )
    assert settings_for("lora_fold", torch.float32) == {**DEFAULTS["lora_fold"], "num_warps": 4}
    assert settings_for("low_rank", torch.float16) == DEFAULTS["low_rank"]


@pytest.mark.slow
def test_a_graph_may_ask_which_path_it_takes() -> None:
    """`torch.compile` has no graph break here, and no warning from the cache behind the answer."""
    asked = torch.compile(
        lambda x: x + (1 if paths.usable(0) else 2), backend="eager", fullgraph=True
    )
    assert asked(torch.zeros(1)) == (1 if paths.report().path == "fused" else 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_plain_torch() -> None:
    here = paths.report()
    assert (here.path, here.why) == ("torch", "no NVIDIA GPU that torch can use")
    assert not paths.fusable(torch.zeros(1))


@pytest.mark.parametrize(
    ("capability", "triton", "choice", "path", "why"),
    [
        ((9, 0), "3.9.0", None, "fused", "OpenAI Triton on this GPU"),
        ((7, 5), "3.9.0", None, "torch", "compute capability 8.0"),
        ((9, 0), None, None, "torch", "not installed; pip install triton"),
        ((9, 0), "3.9.0", "torch", "torch", "PIDEP_KERNELS=torch is set"),
    ],
)
def test_with_a_gpu_it_says_why(
    capability, triton, choice, path: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    monkeypatch.setattr(paths, "triton_version", lambda: triton)
    if choice:
        monkeypatch.setenv("PIDEP_KERNELS", choice)
    here = paths.report()
    assert here.path == path
    assert why in here.why
