"""The floor plan of DESIGN: imports go down only, siblings leave each other alone, torch stays in its wing."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pidep"
LAYERS = [
    {"errors", "atomic_write"},
    {"kernels"},
    {"experts"},
    {"backbones"},
    {"similarity", "interpolation", "tasks"},
    {"tuning", "export", "serving"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SERVER_MODULES = ["pidep.serving.bank", "pidep.serving.store", "pidep.serving.triton_model"]
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "onnx", "onnxscript"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk_running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield from walk_running(child)


def imports(path: Path, *, running_only: bool = False) -> set[str]:
    """Dotted names of what a file imports, wherever in the file; `from a import b` counts as a.b where that is a module."""
    tree = parsed(path)
    found: set[str] = set()
    for node in walk_running(tree) if running_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it out"
            module = node.module or ""
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in MODULES)
    return found


def part(module: str) -> str:
    """`tasks` of `pidep.tasks.data`; empty for `pidep` itself."""
    return module.split(".")[1] if "." in module else ""


def closure(start: str) -> dict[str, set[str]]:
    """Everything of pidep that a module pulls in when it runs, each with its imports."""
    seen: dict[str, set[str]] = {}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in MODULES:
            continue
        seen[module] = imports(MODULES[module], running_only=True)
        waiting += [name for name in seen[module] if name.split(".")[0] == "pidep"]
        if "." in module:
            waiting.append(module.rpartition(".")[0])  # its package's __init__ runs first
    return seen


def fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_has_a_floor() -> None:
    strangers = {part(module) for module in MODULES} - set(LEVEL) - {""}
    assert not strangers, f"{strangers} are on no floor; put them into LAYERS and DESIGN"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_only(module: str) -> None:
    own = part(module)
    for imported in imports(MODULES[module]):
        other = part(imported)
        if imported.split(".")[0] != "pidep" or other in ("", own) or imported == "pidep.__version__":
            continue
        assert own != "", f"pidep/__init__.py imports {imported}; it stays empty"
        assert LEVEL[other] < LEVEL[own] or LEVEL[own] == 0, f"{module} imports {imported}: imports go down, siblings stay apart"


@pytest.mark.parametrize("module", SERVER_MODULES)
def test_what_runs_inside_triton_server_is_light(module: str) -> None:
    assert module in MODULES, f"{module} is gone; Triton Server's shim loads it"
    for name, imported in closure(module).items():
        heavy = {whole for whole in imported if whole.split(".")[0] in HEAVY}
        assert not heavy, f"{module} pulls in {name}, which imports {heavy}"


@pytest.mark.parametrize("module", ["pidep.cli", "pidep.serving.bank", "pidep.serving.store", "pidep.tasks.data", "pidep.experts.folder"])
def test_importing_it_starts_without_torch(module: str) -> None:
    loaded = fresh_python(f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))")
    assert loaded.strip() == "[]"


def test_help_starts_without_torch_and_at_once() -> None:
    code = (
        "import sys\nfrom pidep.cli import main\nsys.argv = ['pidep', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', sorted({HEAVY!r} & set(sys.modules)))"
    )
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        output = fresh_python(code)
        durations.append(time.perf_counter() - start)
    assert output.strip().endswith("LOADED []")
    for command in ("tune", "graph", "export", "serve", "infer", "swap"):
        assert command in output
    assert min(durations) < 2.0, f"pidep --help took {min(durations):.2f} s; 0.5 s is the promise on an idle machine"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_package_says_what_lives_there(folder: Path) -> None:
    init = folder / "__init__.py"
    assert init.is_file(), f"{folder} has no __init__.py"
    assert ast.get_docstring(parsed(init)), f"{init} has no docstring"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_all_names_exist(module: str) -> None:
    tree = parsed(MODULES[module])
    defined: set[str] = set()
    exported: list[str] | None = None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                defined.update(name.id for name in ast.walk(target) if isinstance(name, ast.Name))
                if isinstance(target, ast.Name) and target.id == "__all__" and node.value is not None:
                    exported = ast.literal_eval(node.value)
    assert exported is not None, f"{module} has no __all__"
    assert set(exported) <= defined, f"{module}: __all__ names {set(exported) - defined}, which it does not define"
    assert len(set(exported)) == len(exported)


def test_no_pickle() -> None:
    for module, path in MODULES.items():
        assert not {"pickle", "cloudpickle", "dill", "joblib"} & {name.split(".")[0] for name in imports(path)}, module
