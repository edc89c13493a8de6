"""The floor plan of the house: imports go downward only, and few rooms touch the world."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.house import MODULES, ROOT, circles, floors, own_imports, path_of, room_of, tree_of
from tests.house import arrows as drawn_arrows
from tests.house import imports as imported_by

# From the roof to the ground: a room imports from those after it.
ORDER = [
    "__main__", "samples", "cli", "trials", "library", "surgery", "mergekit",
    "inspection", "output", "pictures", "manifest",
    "model_folder", "recipe", "ops", "merges", "initialisers", "draft", "formats", "tokens", "lazy",
    "numeric", "remote", "base",
]  # fmt: skip
# Stands apart: the next training run imports it, and nothing offline does.
APART = "training"
# In these nobody imports a neighbour, but for what lies in `shared`.
SIBLINGS = {"ops": ("ops.shared",), "merges": ("merges.shared",)}

# Who else may, for each thing that few may.
MAY_IMPORT = {
    "click": {"cli"},
    "distributed": {"output.cluster"},
    "cloudpickle": {"output.cluster"},
    "matplotlib": {"pictures"},
    "optuna": {"trials.study"},
    "obstore": {"remote.client"},
    "huggingface_hub": {"remote.hub"},
    "yaml": {"mergekit"},
    "tabulate": {"base.tables"},
    "jsonschema": {"recipe", "manifest"},
    "shutil": {"model_folder", "output", "formats"},
    "mmap": {"formats.files"},
    "torch": {
        "ops.shared.torch_module",
        "model_folder.transformers_class",
        "library.arrays",
        "library.opening",
        "numeric.decompositions",
    },
    "transformers": {"model_folder.transformers_class"},
    "tokenizers": {"tokens.tokenizer"},
}
# numeric.blas looks for the library that NumPy came with.
MAY_TOUCH_FILES = {"base.files", "base.ready_made", "formats", "output", "manifest", "recipe",
                   "model_folder", "surgery", "numeric.blas", "remote"}  # fmt: skip
OS_CALLS = {"open", "read", "pread", "preadv", "write", "pwrite", "ftruncate", "rename", "replace",
            "remove", "unlink", "mkdir", "makedirs", "listdir", "scandir", "walk"}  # fmt: skip
PATH_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir",
              "rmdir", "iterdir", "glob", "rglob", "touch", "rename"}  # fmt: skip
# Names of our own that have functions called as those of paths.
OUR_OWN = {"opened", "publish", "surgery", "patterns", "surgeon"}

OFFLINE = [m for m in MODULES if m != "__init__" and room_of(m) != APART]
FRONTS = [m for m in MODULES if path_of(m).name == "__init__.py" and m != "__init__"]


def is_one_of(module: str, allowed: set[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[: count + 1]) in allowed for count in range(len(parts)))


def test_every_room_has_a_floor():
    rooms = {room_of(module) for module in OFFLINE}
    assert rooms == set(ORDER)
    assert sum((ROOT / room).is_dir() for room in rooms | {APART}) <= 21


def test_imports_go_downward():
    rank = {room: number for number, room in enumerate(ORDER)}
    upward = [
        f"{module} imports {name}"
        for module in OFFLINE
        for name in own_imports(module)
        if name != "__init__"
        and room_of(name) != room_of(module)
        and rank.get(room_of(name), -1) < rank[room_of(module)]
    ]
    assert not upward


def test_there_is_no_circle():
    # The library's front imports what is asked for, when it is asked for.
    modules = [module for module in MODULES if module != "__init__"]
    assert not circles({name: {*own_imports(name)} - {name, "__init__"} for name in modules})
    assert floors(drawn_arrows())


def test_siblings_do_not_import_each_other():
    found = [
        f"{module} imports {name}"
        for module in OFFLINE
        if room_of(module) in SIBLINGS
        and module not in (room_of(module), *SIBLINGS[room_of(module)])
        for name in own_imports(module)
        if room_of(name) == room_of(module) and not name.startswith(SIBLINGS[room_of(module)])
    ]
    assert not found


def test_nothing_imports_training():
    users = [m for m in OFFLINE for name in imported_by(m) if name.startswith(f"surgeon.{APART}")]
    assert not users


def test_few_modules_import():
    found = [
        f"{module} imports {library}"
        for module in OFFLINE
        for library in {name.partition(".")[0] for name in imported_by(module)} & MAY_IMPORT.keys()
        if not is_one_of(module, MAY_IMPORT[library])
    ]
    assert not found


def top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported."""
    pending: list[ast.AST] = [*tree.body]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef) or is_for_type_checking(node):
            continue
        yield node
        pending.extend(ast.iter_child_nodes(node))


def is_for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_torch_is_imported_inside_functions_only():
    found = [
        module
        for module in OFFLINE
        for node in top_level(tree_of(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and ast.unparse(node).split()[1].partition(".")[0] == "torch"
    ]
    assert not found


def touches_files(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id="open"):
            return True
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            # The null device takes the place of a closed pipe, as Python's documentation advises.
            to_null = any(isinstance(a, ast.Attribute) and a.attr == "devnull" for a in call.args)
            return name in OS_CALLS and not to_null
        case ast.Attribute(value=ast.Name(id=owner)) if owner in OUR_OWN:
            return False
        case ast.Attribute(attr=name):
            return name in PATH_CALLS
    return False


def test_few_modules_touch_files():
    found = [
        f"{module}:{node.lineno}"
        for module in OFFLINE
        if not is_one_of(module, MAY_TOUCH_FILES)
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and touches_files(node)
    ]
    assert not found


def test_modules_are_short():
    long = [m for m in MODULES if path_of(m).read_text("utf-8").count("\n") > 400]
    assert not long


def test_modules_say_what_they_are():
    found = {m: ast.get_docstring(tree_of(m)) or "" for m in MODULES}
    assert not [module for module, text in found.items() if not text]
    assert not [module for module, text in found.items() if len(text.partition("\n")[0]) > 100]


def test_fronts_hold_names_not_code():
    """A front imports, registers its folder's files, and lists names; it defines nothing."""
    code = [
        f"{module}:{node.lineno}"
        for module in FRONTS
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.While)
    ]
    assert not code
