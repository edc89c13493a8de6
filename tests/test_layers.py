"""The floor plan of ARCHITECTURE.md: imports go downward only, and few modules touch the world."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import surgeon

ROOT = Path(surgeon.__file__).parent

# From the roof to the ground. A module may import what stands on a floor below its own, never its
# neighbours. The folders ops, merges and formats are one entry each; see PACKAGES for inside them.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("options",),
    ("report", "pictures", "verify", "memory", "catalogue", "published", "mergekit"),
    ("diff", "comparison"),
    ("inspection",),
    ("tables",),
    ("apply",),
    ("manifest", "optimizer_state", "model_folder", "linking"),
    ("state_names",),
    ("plan", "stages", "execute", "publish"),
    ("lineage",),
    ("recipe", "layout"),
    ("ops", "merges", "formats"),
    ("widths",),
    ("merging", "layers", "grouping", "arithmetic", "adapters"),
    ("initialisers",),
    ("moves",),
    ("registry", "validation", "values", "envelope", "model_config", "torch_module"),
    ("draft", "schema", "schema_check", "depth", "checksums", "files", "workers"),
    ("patterns", "lazy", "units", "indices", "interpolation"),
    ("matrices",),
    ("regions", "dtypes"),
    ("errors",),
)
# Inside these folders nobody imports a neighbour, but for what all of a folder share.
PACKAGES = ("ops", "merges", "formats")
SHARED = {"formats.checkpoint"}
# The front of formats puts its readers together; nobody of them knows it.
FRONTS = {"ops", "merges", "formats"}
# Stands apart: reads a manifest, imports torch, and nothing imports it.
APART = "training"

# Who else may, for each thing that few may.
MAY_IMPORT = {
    "click": {"cli", "options", "report"},
    "isal": {"checksums"},
    "matplotlib": {"pictures"},
    "yaml": {"mergekit"},
    "tabulate": {"cli", "report", "tables"},
    "jsonschema": {"validation"},
    "shutil": {"model_folder", "publish", "formats"},
    "mmap": {"files"},
    "torch": {"formats.torch_legacy", "torch_module"},
}
MAY_TOUCH_FILES = {"formats", "files", "execute", "publish", "apply", "manifest", "recipe",
                   "model_folder"}  # fmt: skip
OS_CALLS = {"open", "read", "pread", "preadv", "write", "pwrite", "ftruncate", "rename", "replace",
            "remove", "unlink", "mkdir", "makedirs", "listdir", "scandir", "walk"}  # fmt: skip
PATH_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir",
              "rmdir", "iterdir", "glob", "rglob", "touch", "rename"}  # fmt: skip

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)
OFFLINE = [m for m in MODULES if m != "__init__" and m.partition(".")[0] != APART]


def path_of(module: str) -> Path:
    plain = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return plain if plain.exists() else ROOT.joinpath(*module.split("."), "__init__.py")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text("utf-8"))


def imported(node: ast.AST) -> Iterator[str]:
    """What one statement imports, with full dotted names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    """Everything that a module imports, also inside functions."""
    return {name for node in ast.walk(tree_of(module)) for name in imported(node)}


def own_imports(module: str) -> set[str]:
    """Which of our modules a module imports."""
    names = [name.removeprefix("surgeon.") for name in imports(module) if name != "surgeon"]
    parts = [(name, name.rpartition(".")[0]) for name in names]
    return {next(p for p in pair if p in MODULES) for pair in parts if set(pair) & set(MODULES)}


def floor_of(module: str) -> int:
    top = module.partition(".")[0]
    for number, floor in enumerate(FLOORS):
        if top in floor:
            return number
    raise AssertionError(f"surgeon/{top} has no place in FLOORS: on which floor does it stand?")


def is_one_of(module: str, allowed: set[str]) -> bool:
    return module in allowed or module.partition(".")[0] in allowed


@pytest.mark.parametrize("module", OFFLINE)
def test_imports_go_downward(module):
    package = module.partition(".")[0]
    others = {name for name in own_imports(module) if name.partition(".")[0] != package}
    upward = [name for name in others if floor_of(name) <= floor_of(module)]
    assert not upward, f"surgeon/{module} imports {upward}, which do not stand below it"


@pytest.mark.parametrize("module", [m for m in OFFLINE if m.partition(".")[0] in PACKAGES])
def test_siblings_do_not_import_each_other(module):
    if module in FRONTS:
        return
    package = f"{module.partition('.')[0]}."
    assert {name for name in own_imports(module) if name.startswith(package)} <= SHARED


@pytest.mark.parametrize("module", OFFLINE)
def test_nothing_imports_training(module):
    assert not [name for name in imports(module) if name.startswith(f"surgeon.{APART}")]


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_few_modules_import(library):
    users = [m for m in OFFLINE if library in {name.partition(".")[0] for name in imports(m)}]
    assert not [module for module in users if not is_one_of(module, MAY_IMPORT[library])]


@pytest.mark.parametrize("module", OFFLINE)
def test_torch_is_imported_inside_functions_only(module):
    inside = {
        id(node)
        for statement in ast.walk(tree_of(module))
        if isinstance(statement, ast.FunctionDef) or is_for_type_checking(statement)
        for node in ast.walk(statement)
    }
    outside = [node for node in ast.walk(tree_of(module)) if id(node) not in inside]
    found = {name.partition(".")[0] for node in outside for name in imported(node)}
    assert "torch" not in found


def is_for_type_checking(statement: ast.AST) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def touches_files(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id="open"):
            return True
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            # The null device takes the place of a closed pipe, as Python's documentation advises.
            to_null = any(isinstance(a, ast.Attribute) and a.attr == "devnull" for a in call.args)
            return name in OS_CALLS and not to_null
        case ast.Attribute(value=ast.Name(id="opened" | "publish" | "apply" | "patterns")):
            return False
        case ast.Attribute(attr=name):
            return name in PATH_CALLS
    return False


@pytest.mark.parametrize("module", OFFLINE)
def test_few_modules_touch_files(module):
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    found = [f"line {call.lineno}" for call in calls if touches_files(call)]
    assert not found or is_one_of(module, MAY_TOUCH_FILES), found


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short(module):
    lines = path_of(module).read_text("utf-8").count("\n")
    assert lines <= 400


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are(module):
    text = ast.get_docstring(tree_of(module)) or ""
    assert text or path_of(module).stat().st_size == 0
    assert len(text.partition("\n")[0]) <= 100
