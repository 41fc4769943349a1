"""Every kernel compiles for GPUs that are not here, spills no register, and loads 128 bits at a
time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.bench_aot import claims_of, vectors
from pidep.kernels.launch_table import DEFAULTS
from tools.ahead_of_time import TARGETS, Case, Resources, cases, compile_case

KERNELS = {name.split()[0] for name in DEFAULTS}
HARDEST = {
    "interpolate_forward": "T=16 F=0",
    "interpolate_backward": "T=16 F=0 writes",
    "interpolate_logits": "T=16 F=0",
    "low_rank": "R=128 backward",
    "low_rank_outer": "R=128 dB",
    "lora_fold": "R=32",
}
"""The case of each kernel that takes the most registers."""
LOGITS = {"interpolate_logits": "float32"}
"""Logits are float32, whatever the dtype of the arena."""


def test_the_cases_are_every_kernel_in_every_dtype() -> None:
    found = list(cases())
    wanted = {(kernel, dtype) for kernel in KERNELS for dtype in ("float32", "bfloat16", "float16")}
    wanted -= {("interpolate_logits", "bfloat16"), ("interpolate_logits", "float16")}
    assert {(case.kernel, case.dtype) for case in found} == wanted
    assert len({(case.kernel, case.constants, case.dtype) for case in found}) == len(found)
    assert all(axis <= 65535 for case in found for axis in case.launch.grid[1:])


def test_an_interpreted_kernel_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_case(next(cases([torch.float32])), 90)


RUN = """
import json, sys
from tools import ahead_of_time

names = {tuple(one) for one in json.loads(sys.argv[1])}
chosen = [one for one in ahead_of_time.cases() if (one.kernel, one.constants, one.dtype) in names]
ahead_of_time.cases = lambda: iter(chosen)
sys.exit(ahead_of_time.main(sys.argv[2:]))
"""


def compiled(target: int, chosen: Sequence[Case], tmp_path: Path) -> tuple[list[Resources], str]:
    """The command's report of these cases, and its output.

    Nothing spills, and the arena is read 128 bits at a time. The command runs in a process of its
    own, because Triton's interpreter, which other tests use, changes Triton's library.
    """
    names = json.dumps([(case.kernel, case.constants, case.dtype) for case in chosen])
    path = tmp_path / "resources.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, names, "--json", str(path), "--target", str(target)],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [Resources(**one) for one in json.loads(path.read_text())]
    assert [(one.kernel, one.constants, one.dtype, one.target) for one in found] == [
        (case.kernel, case.constants, case.dtype, f"sm_{target}") for case in chosen
    ]
    assert [one for one in found if one.spills] == []
    passes = [one for one in found if one.kernel in ("interpolate_forward", "interpolate_backward")]
    assert [
        one for one in passes if one.loads["128"] < vectors(one) or set(one.loads) != {"32", "128"}
    ] == []
    return found, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("target", "dtype"), [(80, "float16"), (90, "float32"), (100, "bfloat16")])
def test_nothing_spills_and_loads_are_wide(target: int, dtype: str, tmp_path: Path) -> None:
    """Each kernel where it takes the most registers, for each target, with each dtype once."""
    chosen = [
        case
        for case in cases()
        if HARDEST[case.kernel] == case.constants and case.dtype in (dtype, LOGITS.get(case.kernel))
    ]
    assert {case.kernel for case in chosen} == KERNELS
    found, printed = compiled(target, chosen, tmp_path)
    assert printed.endswith(f"{len(found)} compiled, 0 spill\n")
    assert all(claim["met"] for claim in claims_of(found))


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS)
def test_no_case_spills_and_all_loads_are_wide(target: int, tmp_path: Path) -> None:
    found, _ = compiled(target, list(cases()), tmp_path)
    assert {one.kernel for one in found} == KERNELS
    assert all(claim["met"] for claim in claims_of(found))


def test_a_spill_or_a_narrow_load_is_a_claim_that_is_not_met() -> None:
    good = Resources(
        "interpolate_forward", "T=1 F=3", "bfloat16", "sm_90", 32, 0, 0, 4, {"32": 8, "128": 4}
    )
    assert vectors(good) == 4
    assert [claim["met"] for claim in claims_of([good])] == [True, True, True]
    bad = Resources(
        "interpolate_forward",
        "T=1 F=3",
        "bfloat16",
        "sm_90",
        255,
        8,
        1 << 20,
        4,
        {"16": 32, "32": 8},
    )
    assert [claim["met"] for claim in claims_of([good, bad])] == [False, False, False]
