"""The generated parts of the README; `make docs` writes them, a test says when they are stale."""

from __future__ import annotations

import re
from pathlib import Path

from surgeon import recipe
from surgeon.cli.commands import commands
from surgeon.draft.registry import OPS
from surgeon.initialisers import INITIALISERS

ROOT = Path(__file__).parents[1]


def _ops() -> str:
    rows = [f"| `{op.name}` | {op.group} | {op.summary} |" for op in OPS.values()]
    order = ("structure", "size", "values", "merge", "check")
    rows.sort(key=lambda row: order.index(row.split(" | ")[1]))
    return "\n".join(["| op | kind | does |", "|---|---|---|", *rows])


def _commands() -> str:
    return "\n".join(
        f"| `surgeon {name}` | {command.get_short_help_str(200)} |"
        for name, command in commands.commands.items()
    )


def _recipes() -> str:
    rows = []
    for name, path in recipe.ready_made().items():
        text = recipe.read_json(path, path.name)
        variables = ", ".join(f"`{variable}`" for variable in text["vars"])
        rows.append(f"| `{name}` | {variables} | {text['about']} |")
    return "\n".join(["| recipe | variables | does |", "|---|---|---|", *rows])


def _initialisers() -> str:
    rows = [f"| `{row.name}` | {row.about} |" for row in INITIALISERS.values()]
    return "\n".join(["| init | values |", "|---|---|", *rows])


def _own_op() -> str:
    return f"```python\n{(ROOT / 'surgeon/ops/copy.py').read_text()}```"


PARTS = {
    "commands": _commands,
    "ops": _ops,
    "inits": _initialisers,
    "recipes": _recipes,
    "own-op": _own_op,
}


def generated(readme: str) -> str:
    """Return the README with its generated parts as they should be."""
    for name, part in PARTS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = part()
        readme = re.sub(
            pattern, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", readme, flags=re.S
        )
    return readme


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(generated(page.read_text()))
