"""Holds the floor plan: imports go down only, siblings do not import each other, serving has no
torch.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pidep"
FLOORS = [
    "cli",
    "api",
    "api_arguments",
    "lab",
    "gallery",
    "deployment",
    "tuning",
    "interpolation",
    "similarity",
    "training",
    "export",
    "serving",
    "runtime",
    "tasks",
    "backbones",
    "adapters",
    "experts",
    "artifacts",
    "inputs",
    "kernels",
    "files",
    "plugins",
    "lazy",
    "settings",
    "errors",
]
"""Rooms from the top floor down. Each may import the rooms below it."""
LEVEL = {name: level for level, name in enumerate(FLOORS)}
HEAVY = {"torch", "transformers", "peft", "datasets"}
SERVED = ["pidep.serving.triton_model"]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] not in LEVEL:
        return
    for name in imports_of(path):
        target = name.split(".")
        if (
            target[0] != "pidep"
            or len(target) < 2
            or target[1] not in LEVEL
            or target[1] == parts[0]
        ):
            continue
        assert LEVEL[target[1]] > LEVEL[parts[0]], f"{path}: {parts[0]} may not import {name}"


def test_every_room_is_on_the_plan() -> None:
    rooms = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__", "__main__"} == set(FLOORS)


ONLY_IN = {
    "torch": {
        "adapters",
        "backbones",
        "export",
        "gallery",
        "interpolation",
        "kernels",
        "lab",
        "similarity",
        "training",
        "tuning",
    },
    "transformers": {"adapters", "backbones"},
    "peft": {"lab"},
    "onnxruntime": {"deployment", "export", "runtime"},
    "onnx": {"export"},
    "tritonclient": {"serving", "export"},
    "triton": {"kernels"},
}
"""Heavy packages, and the rooms that may import them anywhere in a file."""


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imports_of(path):
        package = name.split(".")[0]
        assert package not in ONLY_IN or room in ONLY_IN[package], (
            f"{path}: {room} may not import {package}"
        )


def test_no_module_is_called_triton() -> None:
    assert not [path for path in sources() if path.stem == "triton" or path.parent.name == "triton"]


def test_every_package_says_what_it_is() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert "__all__" in path.read_text(), f"{path} has no __all__"


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", SERVED)
def test_what_serves_never_imports_torch(module: str) -> None:
    assert not loaded_after(f"import {module}") & HEAVY


def test_help_starts_without_torch() -> None:
    code = (
        "import pidep.cli.app\ntry:\n    sys.argv = ['pidep', '--help']\n    "
        "pidep.cli.app.app()\nexcept SystemExit:\n    pass"
    )
    assert not loaded_after(code) & (HEAVY | {"onnxruntime", "numpy"})


@pytest.mark.parametrize(
    "path",
    [path for path in sources() if path.name != "__main__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_all_names_what_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    there: set[str] = set()
    declared: list[str] | None = None
    # Names that are imported on first use are imported for type checkers under `if TYPE_CHECKING:`.
    inner = [node.body for node in tree.body if isinstance(node, ast.If)]
    for node in [*tree.body, *(node for body in inner for node in body)]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            there.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            there |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            there.add(getattr(target, "id", ""))
            if getattr(target, "id", "") == "__all__":
                declared = ast.literal_eval(node.value)  # type: ignore[arg-type]
    assert declared is not None
    assert set(declared) <= there
    assert len(set(declared)) == len(declared)


def lazy_faces() -> list[Path]:
    """Packages whose public names are imported on first use."""
    return [path for path in PACKAGE.rglob("__init__.py") if "lazy_names(" in path.read_text()]


@pytest.mark.parametrize("path", lazy_faces(), ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_lazy_face_is_exact(path: Path) -> None:
    """`__all__`, the names that type checkers see, and the lazily found names are the same."""
    tree = ast.parse(path.read_text())
    declared: list[str] = []
    homes: dict[str, str] = {}
    typed: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            imports = [one for one in node.body if isinstance(one, ast.ImportFrom)]
            typed |= {alias.asname or alias.name for one in imports for alias in one.names}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            declared = ast.literal_eval(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy_names":
            homes = ast.literal_eval(node.args[1])
    assert set(declared) - {"__version__"} == set(homes) == typed


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names() -> set[str]:
    """Every private name that pidep defines: functions, classes, variables, and attributes of
    `self`.
    """
    found: set[str] = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and getattr(node.value, "id", "") == "self"
            ):
                found.add(node.attr)
    # every torch module has this attribute
    return {name for name in found if private(name)} - {"_parameters"}


PRIVATE = private_names()
USERS = sorted(
    path
    for folder in ("tests", "benchmarks", "examples", "tools")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", USERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_pidep_uses_its_private_names(path: Path) -> None:
    """No import, attribute or string of `monkeypatch.setattr` and its like is a private name."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "pidep",
            "benchmarks",
            "tools",
        ):
            used |= {alias.name for alias in node.names if private(alias.name)}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in (
            "self",
            "cls",
        ):
            used |= {node.attr} & PRIVATE
        elif isinstance(node, ast.Call) and getattr(
            node.func, "attr", getattr(node.func, "id", "")
        ) in ("setattr", "delattr", "getattr"):
            strings = [
                one.value
                for one in node.args[:2]
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            used |= {text.rsplit(".", 1)[-1] for text in strings} & PRIVATE
    assert not used, (
        f"{path.relative_to(ROOT)}: uses private names of pidep: {', '.join(sorted(used))}"
    )
