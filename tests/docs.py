"""The generated parts of the README; `make docs` writes them, a test says when they are stale."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType

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


TORCH_TABLE = ROOT / "surgeon" / "recipe" / "torch_table.py"


def torch_table() -> str:
    """Return the module that says which classes torch's optimizers and schedulers have."""
    import torch

    optimizers = _classes(torch.optim, torch.optim.Optimizer, ("self", "params"))
    schedulers = torch.optim.lr_scheduler
    tables = {
        "OPTIMIZERS": optimizers,
        "SCHEDULERS": _classes(schedulers, schedulers.LRScheduler, ("self", "optimizer")),
    }
    lines = [
        '"""The classes of torch.optim and their arguments; `make docs` writes this."""',
        "",
        "from __future__ import annotations",
        "",
        "# fmt: off",
        f'TORCH = "{torch.__version__.partition("+")[0]}"',
        "# A star marks what has no default.",
    ]
    for name, table in tables.items():
        lines += [f"{name} = {{"]
        for kind, words in table.items():
            if len(kind) + len(words) <= 85:
                lines += [f'    "{kind}": "{words}",']
            else:
                parts = textwrap.wrap(words, 80)
                lines += [f'    "{kind}": (']
                lines += [f'        "{part} "' for part in parts[:-1]]
                lines += [f'        "{parts[-1]}"', "    ),"]
        lines += ["}"]
    return "\n".join(lines) + "\n"


def _classes(module: ModuleType, base: type, leave_out: tuple[str, ...]) -> dict[str, str]:
    kinds = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
        if not name.startswith("_")
    }
    return {name: _words(kind, leave_out) for name, kind in sorted(kinds.items())}


def _words(kind: type, leave_out: tuple[str, ...]) -> str:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return " ".join(
        f"{parameter.name}{'*' if parameter.default is parameter.empty else ''}"
        for parameter in parameters
        if parameter.name not in leave_out
    )


if __name__ == "__main__":
    TORCH_TABLE.write_text(torch_table())
    page = ROOT / "README.md"
    page.write_text(generated(page.read_text()))
