"""The house in numbers: rooms, floors, arrows and lines. `python -m tests.house` prints them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import surgeon

ROOT = Path(surgeon.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)


def path_of(module: str) -> Path:
    """Return the file of a module, given without `surgeon.`."""
    plain = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return plain if plain.exists() else ROOT.joinpath(*module.split("."), "__init__.py")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text("utf-8"))


def room_of(module: str) -> str:
    """Return the folder that a module lies in; what lies in none is its own room."""
    return module.partition(".")[0]


@cache
def imports(module: str) -> tuple[str, ...]:
    """Return everything that a module imports by its full name, surgeon's own and others'."""
    return tuple(sorted(set(_imports(module))))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(tree_of(module)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(source), names=names):
                for name in names:
                    full = f"{source}.{name.name}"
                    is_module = full.removeprefix("surgeon.") in MODULES
                    yield full if full.startswith("surgeon.") and is_module else source


def own_imports(module: str) -> list[str]:
    """Return the modules of surgeon that a module imports, without `surgeon.`."""
    found = [n.removeprefix("surgeon.") for n in imports(module) if n.startswith("surgeon.")]
    return [name for name in found if name in MODULES]


def arrows() -> dict[str, set[str]]:
    """Return, for each room, the rooms that it imports from."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        room = room_of(module)
        others = {room_of(name) for name in own_imports(module)} - {room, "__init__"}
        found.setdefault(room, set()).update(others)
    return found


def floors(of: dict[str, set[str]]) -> list[list[str]]:
    """Return the rooms from the ground up; each stands on those below. Raises for a circle."""
    left, built = dict(of), []
    while left:
        ready = sorted(room for room, needs in left.items() if not needs & left.keys())
        if not ready:
            raise ValueError(f"a circle among {sorted(left)}")
        built.append(ready)
        for room in ready:
            del left[room]
    return built


def circles(modules: dict[str, set[str]]) -> list[str]:
    """Return the modules that stand in a circle of imports, or above one."""
    try:
        floors(modules)
    except ValueError as error:
        return [str(error)]
    return []


def main() -> None:
    drawn = arrows()
    folders = [room for room in drawn if (ROOT / room).is_dir()]
    lines = sum(len(path_of(module).read_text("utf-8").splitlines()) for module in MODULES)
    stories = floors(drawn)
    print(f"{len(folders)} rooms, {len(stories)} floors, {sum(map(len, drawn.values()))} arrows")
    print(f"{len(MODULES)} modules, {lines} lines")
    for number, story in reversed(list(enumerate(stories))):
        print(f"{number:3}  {', '.join(story)}")


if __name__ == "__main__":
    main()
