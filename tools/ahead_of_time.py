"""Compiles every kernel for GPUs that need not be present, and reports what each needs.

    python -m tools.ahead_of_time [--json PATH]

The report has registers, spills and shared memory. The kernels' own wrappers run on tensors without
storage and their launches are recorded, so that exactly what would be launched is compiled.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidep.kernels.interpolate.index import ArenaIndex
from pidep.kernels.launch_table import Launch, recording

__all__ = ["TARGETS", "Case", "Resources", "cases", "compile_all", "compile_case", "main"]

TARGETS = (80, 90, 100)
"""Compute capability times ten: A100, H100 and H200, B200."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Case:
    """One launch to compile."""

    kernel: str
    constants: str
    """The part of the name that tells this case from the kernel's other cases."""
    dtype: str
    launch: Launch


@dataclass(frozen=True)
class Resources:
    """What one kernel needs on one GPU."""

    kernel: str
    constants: str
    dtype: str
    target: str
    registers: int
    """Registers of a thread; 255 is the maximum."""
    spills: int
    """Bytes of local memory of a thread: registers that did not fit."""
    shared: int
    """Bytes of shared memory of a program."""
    num_warps: int
    loads: dict[str, int]
    """Global loads of a thread by width in bits; `async` are copies to shared memory."""


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


Work = tuple[str, str, Callable[[], object]]
"""For each case: kernel, name, and the call that launches it."""


def _interpolations(dtype: torch.dtype) -> Iterator[Work]:
    from pidep.kernels.interpolate import fused

    index = ArenaIndex.of([1 << 20] * 4, device="meta")
    size, start, site = index.num_elements, index.tile_start, index.tile_site
    gradient = _empty(size, dtype=dtype)
    for num_learned, num_frozen in ((1, 3), (4, 0), (1, 15), (16, 0)):
        learned, frozen = (
            _empty(num_learned, size, dtype=dtype),
            _empty(num_frozen, size, dtype=dtype),
        )
        logits = _empty(4, num_learned + num_frozen)
        split = f"T={num_learned} F={num_frozen}"
        yield (
            "interpolate_forward",
            split,
            partial(fused.forward, learned, frozen, logits, start, site),
        )
        backward = partial(
            fused.backward, gradient, learned, frozen, logits, start, site, index.site_tile
        )
        yield "interpolate_backward", f"{split} writes", partial(backward, write=True)
        yield "interpolate_backward", f"{split} reads only", partial(backward, write=False)


def _products(dtype: torch.dtype, rank: int) -> Iterator[Work]:
    from pidep.kernels.lora_fold import fused as fold
    from pidep.kernels.low_rank import low_rank, outer

    tokens, width = 8192, 1024
    x, down, weight = (
        _empty(1, tokens, width, dtype=dtype),
        _empty(1, rank, width, dtype=dtype),
        _empty(rank),
    )
    up = _empty(width, rank, dtype=dtype).t().unsqueeze(0)
    hidden = _empty(1, tokens, rank)
    yield (
        "low_rank",
        f"R={rank} forward",
        partial(low_rank, x, down, up, base=x, weight=weight, keep=True),
    )
    yield (
        "low_rank",
        f"R={rank} backward",
        partial(low_rank, x, up, down, weight=weight, hidden=hidden),
    )
    bank, rows = _empty(64, rank, width, dtype=dtype), _empty(32, dtype=torch.int64)
    for length in (1, 256):
        batch = _empty(32, length, width, dtype=dtype)
        yield (
            "low_rank",
            f"R={rank} bank, {length} tokens a row",
            partial(low_rank, batch, bank, bank, base=batch, expert=rows),
        )
    yield "low_rank_outer", f"R={rank} dA", partial(outer, _empty(tokens, rank, dtype=dtype), x[0])
    yield "low_rank_outer", f"R={rank} dB", partial(outer, hidden[0], x[0], weight)
    w, b = _empty(width, width, dtype=dtype), _empty(width, rank, dtype=dtype)
    yield "lora_fold", f"R={rank}", partial(fold.lora_fold, w, down[0], b, weight, w)
    yield (
        "lora_fold",
        f"R={rank} W transposed",
        partial(fold.lora_fold, w.t(), down[0], b, weight, w.t()),
    )


def cases(dtypes: Sequence[torch.dtype] = _DTYPES) -> Iterator[Case]:
    """Every kernel with the constants it is launched with."""
    for dtype in dtypes:
        works = [
            *_interpolations(dtype),
            *(work for rank in (32, 128) for work in _products(dtype, rank)),
        ]
        for kernel, constants, work in works:
            with recording() as launches:
                work()
            for launch in launches:
                if launch.name == kernel:
                    yield Case(kernel, constants, str(dtype).removeprefix("torch."), launch)
                # the logits are fp32 for every arena
                elif dtype == torch.float32 and constants.endswith("writes"):
                    yield Case(launch.name, constants.removesuffix(" writes"), "float32", launch)


def _specialise(
    launch: Launch,
) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any], dict[str, int]]:
    """Signature, constants, attributes and options, as Triton's runtime makes them from the
    arguments.
    """
    names = launch.kernel.arg_names
    options = {name: value for name, value in launch.constants.items() if name not in names}
    signature = dict.fromkeys(names, "constexpr")
    constants = {
        (names.index(name),): value for name, value in launch.constants.items() if name in names
    }
    attributes: dict[tuple[int], Any] = {}
    for number, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if isinstance(value, int) and value == 1:
            constants[(number,)] = 1
            continue
        aligned = True  # torch's alignment
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
        else:
            signature[name], aligned = "i32" if value < 1 << 31 else "i64", value % 16 == 0
        if aligned:
            attributes[(number,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes, options


def compile_case(case: Case, target: int) -> Resources:
    """Compile one launch for one compute capability.

    Raises:
        RuntimeError: Triton's interpreter is on (`TRITON_INTERPRET=1`).
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: nothing is compiled in this process; unset it")
    signature, constants, attributes, options = _specialise(case.launch)
    source = ASTSource(case.launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    registers, spills = _usage(compiled.asm["cubin"])
    return Resources(
        kernel=case.kernel,
        constants=case.constants,
        dtype=case.dtype,
        target=f"sm_{target}",
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        loads=_loads(compiled.asm["ptx"]),
    )


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", shown)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage: no registers in {shown!r}")
    return int(found[1]), int(found[2]) + int(found[3])


def _loads(ptx: str) -> dict[str, int]:
    widths = Counter(
        str(int(found[1] or 1) * int(found[2]))
        for found in re.finditer(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.[busf](\d+)\b", ptx)
    )
    asynchronous = len(re.findall(r"cp\.async\.c[ag]\.shared", ptx))
    return dict(sorted(widths.items(), key=lambda item: int(item[0]))) | (
        {"async": asynchronous} if asynchronous else {}
    )


def _row(cells: Sequence[object]) -> str:
    return "{:<21} {:<30} {:<9} {:<7} {:>9} {:>6} {:>7} {:>5}  {}".format(*map(str, cells))


def compile_all(targets: Sequence[int] = TARGETS) -> Iterator[Resources]:
    """Every kernel for every target, one by one."""
    for case in cases():
        for target in targets:
            yield compile_case(case, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it to `--json`. Gives 1 when a kernel spills."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ahead_of_time", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the table here, too")
    parser.add_argument(
        "--target",
        type=int,
        choices=TARGETS,
        action="append",
        help="compute capability × 10; all of them without it",
    )
    chosen = parser.parse_args(arguments)
    print(
        _row(
            (
                "kernel",
                "constants",
                "dtype",
                "target",
                "registers",
                "spills",
                "shared",
                "warps",
                "loads (bits: number)",
            )
        ),
        flush=True,
    )
    found = []
    for one in compile_all(chosen.target or TARGETS):
        found.append(one)
        loads = " ".join(f"{width}:{number}" for width, number in one.loads.items())
        cells = (
            one.kernel,
            one.constants,
            one.dtype,
            one.target,
            one.registers,
            one.spills,
            one.shared,
            one.num_warps,
            loads,
        )
        print(_row(cells), flush=True)
    spilling = sum(one.spills > 0 for one in found)
    print(f"{len(found)} compiled, {spilling} spill")
    if chosen.json is not None:
        chosen.json.write_text(
            json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8"
        )
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
