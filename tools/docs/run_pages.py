"""Run the pages of Start and Guides and compare the output they show with the output they give.

    python -m tools.docs.run_pages [PAGE.md ...] [--folder FOLDER] [--timeout SECONDS] [--write]

All pages share one folder, in the order of mkdocs.yml; each page has one bash session of its own.
A page is run as follows:

- a ```console block: each line that starts with `$ ` is a command. A command that ends in a
  backslash continues on the next line. The other lines are the command's output.
- a ```python block is run as a script. An ```output block right behind it is its output.
- a block with `title="NAME"` is written to the file NAME.
- a block behind `<!-- not run: REASON -->` is skipped, and so are blocks of other languages.

Output is standard output, and pidep's messages on standard error. A command must succeed, unless
the page shows a line `pidep: …` of its output: that command must fail. `docs/start/quickstart.md`
states how figures are compared. `--write` puts the output of this run into the pages where it
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from pidep.serving.server import Ports, free_ports
from tools.docs.compare_output import difference
from tools.docs.navigation import executed_pages

DEFAULTS = Ports()
STOP_WITHIN_S = 60.0
# Background jobs first, so that a server ends in order; then the rest of the process group.
_ON_EXIT = "kill $(jobs -p) 2>/dev/null; wait; trap '' TERM; kill -TERM 0"
_FENCE = re.compile(r'```(\w*)(?: title="([^"]+)")?')
_NOT_RUN = re.compile(r"<!-- not run: .+ -->")


class RunError(Exception):
    """A command failed, hung, gave another output, or ended the session; the message names it."""


@dataclass(frozen=True)
class Step:
    """A command, a Python block or a file, with the line of the page where it starts."""

    line: int
    kind: str
    text: str
    expected: tuple[str, ...] = ()
    """Output lines on the page; none when the page shows no output."""
    output_line: int = 0
    """Line of the page where the output starts."""
    name: str = ""
    """File name of a file."""

    @property
    def shell(self) -> str:
        """The text that bash evaluates."""
        if self.kind == "file":
            return f"cat > {shlex.quote(self.name)} <<'END_OF_BLOCK'\n{self.text}\nEND_OF_BLOCK"
        return (
            self.text
            if self.kind == "console"
            else f"python - <<'END_OF_BLOCK'\n{self.text}\nEND_OF_BLOCK"
        )

    @property
    def title(self) -> str:
        """The text that is printed before the step runs."""
        lines = len(self.text.splitlines())
        return {
            "console": f"$ {self.text}",
            "python": f"(Python block of {lines} lines)",
            "file": f"(file {self.name})",
        }[self.kind]

    @property
    def must_fail(self) -> bool:
        """Whether the page shows an error message of pidep."""
        return any(line.startswith("pidep: ") for line in self.expected)


def extract(markdown: str) -> list[Step]:
    """The steps of a page, in order.

    Raises:
        RunError: a block or a continued command has no end, or an output block has no script.
    """
    steps: list[Step] = []
    skip, previous = False, ""
    lines = iter(enumerate(markdown.splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.fullmatch(line.rstrip())
        if fence is None:
            if line.startswith("```"):
                _body(lines, number)
                skip, previous = False, ""
            elif line.strip():
                skip, previous = _NOT_RUN.fullmatch(line.strip()) is not None, ""
            continue
        body, language = _body(lines, number), fence[1]
        if not skip:
            if fence[2]:
                steps.append(
                    Step(number, "file", "\n".join(text for _, text in body), name=fence[2])
                )
            elif language == "python":
                steps.append(Step(number, "python", "\n".join(text for _, text in body)))
            elif language == "output":
                if previous != "python":
                    raise RunError(f"line {number}: an output block stands behind no Python block")
                last = steps.pop()
                steps.append(
                    Step(
                        last.line, "python", last.text, tuple(text for _, text in body), number + 1
                    )
                )
            elif language == "console":
                steps += _commands(body)
        skip, previous = False, language
    return steps


def _body(lines: object, number: int) -> list[tuple[int, str]]:
    body: list[tuple[int, str]] = []
    for inner in lines:  # type: ignore[attr-defined]
        if inner[1].rstrip() == "```":
            return body
        body.append(inner)
    raise RunError(f"line {number}: the block has no closing ```")


def _commands(body: list[tuple[int, str]]) -> list[Step]:
    found: list[Step] = []
    index = 0
    while index < len(body):
        number, text = body[index]
        index += 1
        if not text.startswith("$ "):
            continue
        parts = [text[2:]]
        while parts[-1].endswith("\\"):
            if index == len(body):
                raise RunError(f"line {number}: the command ends in a backslash")
            parts.append(body[index][1])
            index += 1
        start = index
        while index < len(body) and not body[index][1].startswith("$ "):
            index += 1
        output = body[start:index]
        found.append(
            Step(
                number,
                "console",
                "\n".join(parts),
                tuple(text for _, text in output),
                output[0][0] if output else 0,
            )
        )
    return found


def _taken(ports: Ports) -> list[int]:
    """The ports among `ports` that another program listens on."""
    found = []
    for port in (ports.http, ports.grpc, ports.metrics):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ports.host, port))
            except OSError:
                found.append(port)
    return found


def with_ports(text: str, ports: Ports) -> str:
    """The text of a step with other ports in place of the default ones, written or implied."""
    for old, new in (
        (DEFAULTS.http, ports.http),
        (DEFAULTS.grpc, ports.grpc),
        (DEFAULTS.metrics, ports.metrics),
    ):
        text = re.sub(rf":{old}\b", f":{new}", text)
    infer = ports.http if "--protocol http" in text else ports.grpc
    options = {
        "serve": f"--http-port {ports.http} --grpc-port {ports.grpc}"
        f" --metrics-port {ports.metrics}",
        "infer": f"--url {ports.host}:{infer}",
        "swap": f"--url {ports.host}:{ports.grpc}",
        "roll": f"--url {ports.host}:{ports.grpc}",
    }
    return re.sub(
        r"\bpidep (serve|infer|swap|roll)\b(?! --help)",
        lambda match: f"{match[0]} {options[match[1]]}",
        text,
    )


class Session:
    """One bash in a process group of its own. Leaving it stops only the processes it started."""

    def __init__(self, folder: Path, *, deadline: float) -> None:
        self._deadline = deadline
        self._status, self._report = os.pipe()
        self._outputs = tempfile.TemporaryDirectory(prefix="pidep-docs-output-")
        self._count = 0
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env={
                "OMP_NUM_THREADS": "1",
                **os.environ,
                "PATH": path,
                "COLUMNS": "100",
                "HF_HUB_OFFLINE": "1",
            },
            stdin=subprocess.PIPE,
            pass_fds=[self._report],
            start_new_session=True,
            text=True,
        )
        os.close(
            self._report
        )  # only bash holds it now, so its end is seen; bash uses the same number
        self._send(f"set -o pipefail; trap {shlex.quote(_ON_EXIT)} EXIT")

    def _send(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(line + "\n")
        self._bash.stdin.flush()

    def cpu_s(self) -> float:
        """CPU seconds of the commands that have ended."""
        fields = Path(f"/proc/{self._bash.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def run(self, step: Step) -> tuple[str, float]:
        """Run a step; its output and the seconds it took.

        Raises:
            RunError: the step failed, ran past the deadline, or ended the session.
        """
        started = time.monotonic()
        self._count += 1
        output = Path(self._outputs.name) / str(self._count)
        where = f"line {step.line}: {step.title.splitlines()[0]}"
        errors = output.with_suffix(".err")
        # eval stays in this shell, so that variables, jobs and the current folder last.
        streams = f"</dev/null >{output} 2>{errors} {self._report}>&-"
        self._send(f"eval {shlex.quote(step.shell)} {streams}; echo $? >&{self._report}")
        if not select.select([self._status], [], [], max(0.0, self._deadline - started))[0]:
            raise RunError(f"{where}: still running at the time limit")
        code = os.read(self._status, 16).decode().strip()
        text = output.read_text(encoding="utf-8", errors="replace")
        said = errors.read_text(encoding="utf-8", errors="replace")
        if not code:
            raise RunError(f"{where}: ended the session")
        if (code != "0") != step.must_fail:
            wanted = "a failure, as the page shows one" if step.must_fail else "exit code 0"
            raise RunError(f"{where}: ended with exit code {code}, expected {wanted}\n{text}{said}")
        # Libraries draw progress on standard error, so only pidep's own messages count there.
        messages = [line for line in said.splitlines() if line.startswith("pidep: ")]
        return "\n".join([text.rstrip("\n"), *messages]), time.monotonic() - started

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._bash.stdin is not None
        if error is not None:
            self._bash.terminate()
        with contextlib.suppress(BrokenPipeError):
            self._bash.stdin.close()
        try:
            self._bash.wait(timeout=STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()
        os.close(self._status)
        self._outputs.cleanup()


def run_page(
    page: Path, folder: Path, *, ports: Ports, deadline: float, write: bool = False
) -> list[str]:
    """Run a page in a folder and print each step; the differences of page and output.

    Raises:
        RunError: at the first step that fails.
    """
    differences: list[str] = []
    replaced: list[tuple[Step, list[str]]] = []
    with Session(folder, deadline=deadline) as session:
        for step in extract(page.read_text(encoding="utf-8")):
            text = (
                step.text
                if ports == DEFAULTS or step.kind == "file"
                else with_ports(step.text, ports)
            )
            print(f"\n{step.title}", flush=True)
            before = session.cpu_s()
            output, seconds = session.run(replace(step, text=text))
            print(f"  [{seconds:.1f} s, {session.cpu_s() - before:.1f} s of CPU]", flush=True)
            if not step.expected:
                continue
            found = difference(step.expected, output.splitlines())
            if found is not None:
                where = f"{page.name}, line {step.line}: {step.title.splitlines()[0]}"
                differences.append(f"{where}: {found}\n{output.rstrip()}")
                replaced.append((step, shown(output, folder=folder)))
    if write and replaced:
        _write(page, replaced)
    return differences


def shown(output: str, *, folder: Path) -> list[str]:
    """The lines of an output for a page: short digests, no path of this machine."""
    short = re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]+", r"\1…", output)
    short = short.replace(str(folder.resolve()), "…")
    return [line.rstrip() for line in short.rstrip().splitlines()]


def _write(page: Path, replaced: Sequence[tuple[Step, list[str]]]) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    for step, output in reversed(replaced):
        start = step.output_line - 1
        lines[start : start + len(step.expected)] = output
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(
    pages: Sequence[Path], *, timeout_s: float, write: bool = False, folder: Path | None = None
) -> None:
    """Run pages in one folder, a temporary one by default.

    Raises:
        RunError: a step failed, or an output differs from its page.
    """
    ports = DEFAULTS
    if taken := _taken(DEFAULTS):
        ports = free_ports()
        used = f"{ports.http}, {ports.grpc}, {ports.metrics}"
        print(f"port {', '.join(map(str, taken))} is taken: using {used}", flush=True)
    started = time.monotonic()
    differences: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pidep-docs-") as temporary:
        where = folder or Path(temporary)
        for page in pages:
            before = _cpu_s()
            print(f"\n== {page.name}", flush=True)
            try:
                differences += run_page(
                    page, where, ports=ports, deadline=started + timeout_s, write=write
                )
            except RunError as error:
                raise RunError(f"{page.name}: {error}") from None
            print(f"\n{page.name}: {_cpu_s() - before:.0f} s of CPU", flush=True)
    print(
        f"\n{len(pages)} pages in {time.monotonic() - started:.0f} s, {_cpu_s():.0f} s of CPU",
        flush=True,
    )
    if differences:
        raise RunError("output differs from the page:\n\n" + "\n\n".join(differences))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the pages; a failure is printed and gives exit code 1."""
    parser = argparse.ArgumentParser(
        description="Run the pages of Start and Guides and compare their output."
    )
    parser.add_argument(
        "pages",
        nargs="*",
        type=Path,
        help="pages to run, in order; all of Start and Guides by default",
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, help="seconds for the whole run (default 1800)"
    )
    parser.add_argument("--folder", type=Path, help="run in this folder, which stays")
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the output of this run into the pages where it differs",
    )
    options = parser.parse_args()
    try:
        pages = options.pages or executed_pages()
        run(pages, timeout_s=options.timeout, write=options.write, folder=options.folder)
    except (RunError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
