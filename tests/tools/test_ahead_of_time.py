"""Every kernel compiles for GPUs that are not here, without a spilled register, and reads the arena 128 bits at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bench_aot import claims_of, vectors
from pidep.kernels.launch_table import DEFAULTS
from tools.ahead_of_time import TARGETS, Resources, cases, compile_case

KERNELS = {name.split()[0] for name in DEFAULTS}


def test_the_cases_are_every_kernel_in_every_dtype() -> None:
    found = list(cases())
    wanted = {(kernel, dtype) for kernel in KERNELS for dtype in ("float32", "bfloat16", "float16")}
    wanted -= {("interpolate_logits", "bfloat16"), ("interpolate_logits", "float16")}
    assert {(case.kernel, case.dtype) for case in found} == wanted
    assert len({(case.kernel, case.constants, case.dtype) for case in found}) == len(found)
    assert all(axis <= 65535 for case in found for axis in case.launch.grid[1:])


def test_what_interprets_cannot_compile() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_case(next(cases([torch.float32])), 90)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_spills_and_loads_are_wide(tmp_path: Path) -> None:
    path = tmp_path / "resources.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-m", "tools.ahead_of_time", "--json", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = [Resources(**one) for one in json.loads(path.read_text())]
    assert done.stdout.endswith(f"{len(found)} compiled, 0 spill\n")
    assert {(one.kernel, one.target) for one in found} == {(kernel, f"sm_{target}") for kernel in KERNELS for target in TARGETS}
    assert [one for one in found if one.spills] == []
    passes = [one for one in found if one.kernel in ("interpolate_forward", "interpolate_backward")]
    assert [one for one in passes if one.loads["128"] < vectors(one) or set(one.loads) != {"32", "128"}] == []
    assert all(claim["met"] for claim in claims_of(found))


def test_a_spill_or_a_narrow_load_is_a_claim_that_is_not_met() -> None:
    good = Resources("interpolate_forward", "T=1 F=3", "bfloat16", "sm_90", 32, 0, 0, 4, {"32": 8, "128": 4})
    assert vectors(good) == 4
    assert [claim["met"] for claim in claims_of([good])] == [True, True, True]
    bad = Resources("interpolate_forward", "T=1 F=3", "bfloat16", "sm_90", 255, 8, 1 << 20, 4, {"16": 32, "32": 8})
    assert [claim["met"] for claim in claims_of([good, bad])] == [False, False, False]
