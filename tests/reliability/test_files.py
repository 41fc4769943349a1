"""Rows 15 to 21: files and names from anywhere. What is wrong is refused and changes nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidep.errors import ExpertError
from pidep.experts.folder import Expert, check_name, read_expert, write_expert
from pidep.files.tensor_file import read_tensors, tensor_bytes
from pidep.runtime.bank import Bank
from pidep.serving import ExpertStore
from pidep.serving.server import TritonServer
from pidep.serving.stubs import stubs_of
from pidep.serving.watcher import Watcher
from tests.cli.run import untouched
from tests.reliability.conftest import Row
from tests.reliability.load import HttpLine
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_served_bank

TENSORS = "adapter_model.safetensors"


def wide_expert(width: int) -> Expert:
    """An expert whose tensors fill files of many pages."""
    rng = np.random.default_rng(0)
    factors = {"lora_A": (8, width), "lora_B": (width, 8)}
    return replace(
        small_expert(),
        sites={
            "layer.0": {
                name: rng.normal(size=shape).astype(np.float32) for name, shape in factors.items()
            }
        },
        label_embeddings=np.eye(2, width, dtype=np.float32),
    )


class Following:
    """A bank that follows a store, one look at a time."""

    def __init__(self, folder: Path) -> None:
        repo = write_served_bank(folder)
        self.store = ExpertStore(folder / "expert_store")
        self.live = dict(self.store.manifest().aliases)
        self.watcher = Watcher(Bank(repo / "pidep_bank" / "1"), self.store)
        self.watcher.refresh()

    def names(self, expert: Expert, damage: Callable[[Path], object]) -> str:
        """Why the version is refused that `film` names now; everything else is served as before."""
        version = self.store.version(expert.digest)
        if not version.exists():
            write_expert(expert, version)
        damage(version)
        self.store.manifest().naming({"film": expert.digest}).write(self.store.folder)
        self.watcher.refresh()
        assert self.watcher.residents.digests == self.live
        reason = self.watcher.status()["refused"]["film"]["reason"]
        shutil.rmtree(version)
        self.store.manifest().naming({"film": self.live["film"]}).write(self.store.folder)
        self.watcher.refresh()
        assert not self.watcher.status()["refused"]
        return str(reason)


@pytest.fixture
def following(tmp_path: Path) -> Following:
    return Following(tmp_path)


def test_row_15_a_file_truncated_at_every_4_kib(
    row: Row, tmp_path: Path, following: Following
) -> None:
    folder = write_expert(wide_expert(row.size(2048, 40_000)), tmp_path / "e")
    refused = 0
    whole = (folder / TENSORS).read_bytes()
    with open(folder / TENSORS, "r+b") as file:
        # From the end: each step cuts the file that the former step has left.
        for size in range(len(whole) // 4096 * 4096, -1, -4096):
            file.truncate(size)
            with pytest.raises(ExpertError, match=rf"{TENSORS}.*(truncated|damaged)"):
                read_expert(folder)
            refused += 1
    small = small_expert(seed=7)
    size = len((write_expert(small, tmp_path / "s") / TENSORS).read_bytes())
    for cut in range(0, size, row.size(97, 1)):
        reason = following.names(small, lambda version: os.truncate(version / TENSORS, cut))  # noqa: B023
        assert TENSORS in reason
        refused += 1
    row.shows(
        "expert file truncated at every 4 KiB is refused, the live expert untouched",
        target="all refused",
        measured=f"{refused} truncations refused",
        met=True,
        file_bytes=len(whole),
    )


def test_row_16_one_flipped_bit(row: Row, tmp_path: Path, following: Following) -> None:
    small = small_expert(seed=7)
    folder = write_expert(small, tmp_path / "s")
    flips = 0
    for name in (TENSORS, "labels.safetensors"):
        path = folder / name
        data = path.read_bytes()
        (header,) = struct.unpack("<Q", data[:8])
        # Bits of the header make another or no tensor; bits of the data make another digest.
        for at in range(0, len(data), row.size(29, 1)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << at % 8
            if at < 8 + header and read_or_none(path, flipped, small):
                continue  # white space, or the name of the format: it decides nothing
            path.write_bytes(flipped)
            with pytest.raises(ExpertError) as refused:
                read_expert(folder)
            assert str(folder) in str(refused.value)
            flips += 1
        path.write_bytes(data)

    def flip(version: Path) -> None:
        data = bytearray((version / TENSORS).read_bytes())
        data[-2] ^= 1
        (version / TENSORS).write_bytes(data)

    reason = following.names(small, flip)
    assert "digest mismatch" in reason
    assert small.digest.removeprefix("sha256:") in reason
    row.shows(
        "one flipped bit is refused by a message that names the folder",
        target="all refused",
        measured=f"{flips} flipped bits refused",
        met=True,
    )


def read_or_none(path: Path, data: bytes, expected: Expert) -> bool:
    """Whether a file with these bytes is the same expert."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        return read_expert(path.parent).digest == expected.digest
    except ExpertError:
        return False
    finally:
        path.write_bytes(before)


def test_row_17_weights_that_are_not_finite(row: Row, following: Following) -> None:
    tried = 0
    for name in ("lora_A", "lora_B"):
        for value in (np.nan, np.inf, -np.inf):
            small = small_expert(seed=7)

            def poison(version: Path) -> None:
                tensors = small.tensors()  # noqa: B023
                full = f"base_model.model.layer.0.{name}.weight"  # noqa: B023
                tensors[full] = tensors[full].copy()
                tensors[full][0, 0] = value  # noqa: B023
                (version / TENSORS).write_bytes(tensor_bytes(tensors))

            assert f"layer.0.{name}" in following.names(small, poison)
            tried += 1
    row.shows(
        "NaN or Inf weights are refused with the tensor's name",
        target="all refused",
        measured=f"{tried} files refused",
        met=True,
    )


FULL = "base_model.model.layer.0.lora_{}.weight"
MISFITS: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "shape": lambda t: t.update({FULL.format("A"): np.ones((2, 5), np.float32)}),
    "transposed": lambda t: t.update({FULL.format("A"): np.ones((4, 2), np.float32)}),
    "vector": lambda t: t.update({FULL.format("B"): np.ones(8, np.float32)}),
    "dtype": lambda t: t.update({FULL.format("A"): np.ones((2, 4), np.int32)}),
    "bool": lambda t: t.update({FULL.format("A"): np.ones((2, 4), np.bool_)}),
    "ranks": lambda t: t.update({FULL.format("A"): np.ones((3, 4), np.float32)}),
    "missing": lambda t: t.pop(FULL.format("B")),
    "all missing": lambda t: t.clear(),
    "extra": lambda t: t.update({FULL.format("C"): np.ones((2, 4), np.float32)}),
    "extra site": lambda t: t.update(
        {"base_model.model.layer.9.lora_A.weight": np.ones((2, 4), np.float32)}
    ),
}


def test_row_18_tensors_that_do_not_fit(row: Row, tmp_path: Path, following: Following) -> None:
    for what, change in MISFITS.items():
        small = small_expert(seed=7)

        def misfit(version: Path) -> None:
            tensors = small.tensors()  # noqa: B023
            change(tensors)  # noqa: B023
            (version / TENSORS).write_bytes(tensor_bytes(tensors))

        assert following.names(small, misfit), what
        folder = write_expert(small, tmp_path / what)
        misfit(folder)
        with untouched(following.store.folder), pytest.raises(ExpertError):
            following.store.publish(read_expert(folder), "film")
    # Whole for itself, and of another rank or width than the bank holds.
    rng = np.random.default_rng(0)
    factors = {"lora_A": rng.normal(size=(9, 4)), "lora_B": rng.normal(size=(4, 9))}
    rank_9 = replace(
        small_expert(),
        sites={"layer.0": {name: one.astype(np.float32) for name, one in factors.items()}},
    )
    for other in (rank_9, wide_expert(8)):
        assert following.names(other, lambda version: None)
    row.shows(
        "wrong shape, dtype or rank, a missing or an extra tensor: refused, state byte-identical",
        target="all refused",
        measured=f"{len(MISFITS) + 2} misfits refused",
        met=True,
    )


def header_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


BOMBS: dict[str, Callable[[Path], object]] = {
    "2**64-1": lambda path: path.write_bytes((2**64 - 1).to_bytes(8, "little") + b"{}"),
    "101 MB": lambda path: write_large_header(path, 101_000_000),
    "overlap": lambda path: path.write_bytes(
        header_file(json.dumps({"a": entry(0, 8), "b": entry(4, 12)}).encode(), bytes(12))
    ),
    "hole": lambda path: path.write_bytes(
        header_file(json.dumps({"a": entry(0, 4), "b": entry(8, 12)}).encode(), bytes(12))
    ),
    "past the end": lambda path: path.write_bytes(
        header_file(json.dumps({"a": entry(0, 2**40)}).encode(), bytes(8))
    ),
    "duplicate keys": lambda path: path.write_bytes(
        header_file(
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
            b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            bytes(4),
        )
    ),
    "shape overflow": lambda path: path.write_bytes(
        header_file(
            b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], '
            b'"data_offsets": [0, 4]}}',
            bytes(4),
        )
    ),
    "nesting": lambda path: path.write_bytes(header_file(b'{"a":' * 100_000)),
}


def write_large_header(path: Path, size: int) -> None:
    """A header of that many bytes, whole and with good JSON, made without the memory."""
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", size) + b"{")
        for _ in range(size // 2**20):
            file.write(b" " * 2**20)
        file.truncate(8 + size)


READ = """
import resource, sys, time
from pathlib import Path
from pidep.errors import ExpertError
from pidep.files.tensor_file import read_tensors
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    read_tensors(Path(sys.argv[1]))
except ExpertError:
    print(time.perf_counter() - started, end=" ")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_row_19_headers_of_safetensors(row: Row, tmp_path: Path) -> None:
    seconds, mib = 0.0, 0.0
    for what, write in BOMBS.items():
        path = tmp_path / f"{what.replace('*', '_')}.safetensors"
        write(path)
        if what in ("2**64-1", "101 MB") or row.is_long:
            # A process of its own, so that its largest memory is this file's.
            said = subprocess.check_output([sys.executable, "-c", READ, str(path)], text=True)
            took, kib = said.split()
        else:
            with tracing() as peak, pytest.raises(ExpertError):
                read_tensors(path)
            took, kib = 0.0, peak[0] / 1024
        seconds, mib = max(seconds, float(took)), max(mib, float(kib) / 1024)
        path.unlink()
    row.shows(
        "safetensors headers of 2⁶⁴−1, 101 MB, overlaps and duplicate keys are refused",
        target="1 s and 50 MB",
        measured=f"{seconds:.3f} s and {mib:.1f} MB",
        met=seconds < 1 and mib < 50,
    )


class tracing:
    """The most bytes that Python holds inside the block, in a list."""

    def __enter__(self) -> list[int]:
        tracemalloc.start()
        self.peak = [0]
        return self.peak

    def __exit__(self, *_: object) -> None:
        self.peak[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


class Bomb:
    """Unpickling it runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


def test_row_20_files_that_are_no_files(row: Row, tmp_path: Path, following: Following) -> None:
    mark, outside = tmp_path / "mark", tmp_path / "outside"
    outside.write_bytes(b"precious")

    def archived(version: Path) -> None:
        with zipfile.ZipFile(version / TENSORS, "w") as archive:
            archive.writestr("../../../escaped", b"x")

    def in_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda version: ((version / TENSORS).unlink(), make(version / TENSORS))

    damages: dict[str, Callable[[Path], object]] = {
        "pickle": lambda version: (version / TENSORS).write_bytes(pickle.dumps(Bomb(mark))),
        "zip-slip": archived,
        "symlink": in_place(lambda path: path.symlink_to(outside)),
        "symlink to a device": in_place(lambda path: path.symlink_to("/dev/zero")),
        "hardlink": in_place(lambda path: path.hardlink_to(outside)),
        "FIFO": in_place(os.mkfifo),
        "folder": in_place(Path.mkdir),
        "bin beside": lambda version: (
            (version / TENSORS).unlink(),
            (version / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(mark))),
        ),
    }
    for what, damage in damages.items():
        assert following.names(small_expert(seed=7), damage), what
        assert not mark.exists(), what
        assert outside.read_bytes() == b"precious"
    assert not list(tmp_path.rglob("escaped*"))
    # A lock that leads elsewhere: what it leads to is not emptied.
    lock = following.store.folder / ".lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(outside)
    with suppress(ExpertError, OSError):
        following.store.publish(small_expert(seed=8), "film")
    assert outside.read_bytes() == b"precious"
    row.shows(
        "pickle, zip-slip, symlink, hardlink, FIFO: refused, nothing executed or written",
        target="all refused",
        measured=f"{len(damages) + 1} refused",
        met=True,
    )


NAMES = [
    "..", "../film", "%2e%2e", "%2e%2e/film", "film\0", "film\n", "film\r\nINFO forged", "a" * 4096,
    "f\u0131lm", "fi\u0301lm", "\ufb01lm", "\u202emlif", "film\u200b", " film", ".film", "/etc", "",
]  # fmt: skip


def odd_names(row: Row) -> Iterator[str]:
    yield from NAMES
    if row.is_long:
        rng = np.random.default_rng(0)
        for _ in range(2000):
            points = rng.integers(0, 0x2FFF, int(rng.integers(1, 40)))
            yield "".join(chr(int(one)) for one in points)


@pytest.mark.server
def test_row_21_names(row: Row, tmp_path: Path, server: TritonServer) -> None:
    store, expert = ExpertStore(tmp_path / "store"), small_expert()
    store.publish(expert, "film")
    (stub,) = stubs_of(server.pid)
    refused, line = 0, HttpLine(server.http_url)
    for name in odd_names(row):
        try:
            check_name(name)
        except ExpertError as error:
            said = str(error)
        else:
            continue
        assert "\n" not in said
        assert len(said) < 300
        with untouched(tmp_path), pytest.raises(ExpertError):
            store.publish(expert, name)
        answer = line.ask(name)
        assert answer.error in ("404", "400"), (name, answer)
        refused += 1
    assert line.ask("film").digest
    # The log names the refused name, and no name makes a line of its own.
    lines = server.log_path.read_text().splitlines()
    assert any("forged" in one for one in lines)
    assert not [one for one in lines if one.startswith("INFO forged")]
    assert {path.name for path in store.versions.iterdir()} == {expert.digest[7:]}
    assert [one.pid for one in stubs_of(server.pid)] == [stub.pid]
    line.close()
    row.shows(
        "names with .., %2e%2e, NUL, newline, 4 KB, mixed Unicode forms, right-to-left",
        target="allow-listed or refused; no path or log injection",
        measured=f"{refused} names refused by the store and by the server",
        met=refused >= len(NAMES),
    )
