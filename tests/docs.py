"""The generated parts of README and docs: `make docs` writes them, a test keeps them fresh."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import click

from surgeon import recipe
from surgeon.cli import catalogue
from surgeon.cli.commands import commands
from surgeon.draft.registry import OPS, OURS, Op
from surgeon.initialisers import INITIALISERS

ROOT = Path(__file__).parents[1]
# As one reads them; what has no generated part is checked too.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _rows(titles: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    head = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def _ours() -> list[Op]:
    order = ("structure", "size", "values", "merge", "check")
    ours = [OPS[name] for name in OPS if OPS.origin(name) == OURS]
    return sorted(ours, key=lambda op: (order.index(op.group), op.name))


def _ops() -> str:
    rows = [(f"[`{op.name}`](#{op.name})", op.group, op.summary) for op in _ours()]
    return _rows(("op", "kind", "does"), rows)


def _op_pages() -> str:
    return "\n\n".join(f"### {op.name}\n\n{op_page(op)}" for op in _ours())


def op_page(op: Op) -> str:
    """Return what `surgeon ops NAME` prints as Markdown, less what is said once for all ops."""
    rows = [
        (
            f"`{name}`",
            kind,
            default if default == "required" else default and f"`{default}`",
            prose(what),
        )
        for name, kind, default, what in catalogue.parameters(op)
    ]
    cells = [[cell.replace("|", "&#124;") for cell in row] for row in rows]
    parts = [prose(op.doc), _rows(("parameter", "type", "default", "what"), cells)]
    parts += [f"{choice[:1].upper()}{choice[1:]}." for choice in catalogue.choices(op)]
    parts.append(f"```json\n{catalogue.example(op)}\n```")
    return "\n\n".join([*parts, *([f"Paper: {op.paper}"] if op.paper else [])])


def prose(text: str) -> str:
    """Return a docstring's paragraphs on a line each; what Markdown would read as signs escaped."""
    parts = re.split(r"(`[^`]*`)", "\n\n".join(map(_on_one_line, text.split("\n\n"))))
    return "".join(
        part if place % 2 else re.sub(r"([*\[\]])", r"\\\1", part).replace("<", "&lt;")
        for place, part in enumerate(parts)
    )


def _on_one_line(paragraph: str) -> str:
    return " ".join(paragraph.split())


_ORDER = ("apply", "plan", "validate", "inspect", "diff", "compare", "verify", "report", "import",
          "ops", "schema", "recipes")  # fmt: skip


def _in_order() -> list[tuple[str, click.Command]]:
    """Return the commands as one meets them, new ones last."""
    rank = {name: number for number, name in enumerate(_ORDER)}
    return sorted(commands.commands.items(), key=lambda c: (rank.get(c[0], len(rank)), c[0]))


# They are about one's terminal, and have their place in docs/commands.md.
_NOT_IN_README = ("completion", "man")


def _commands() -> str:
    rows = [
        (f"`surgeon {name}`", command.get_short_help_str(200))
        for name, command in _in_order()
        if name not in _NOT_IN_README
    ]
    return _rows(("command", "does"), rows)


def _options() -> str:
    parts = []
    for name, command in _in_order():
        rows = [
            (f"`{_spelling(option)}`", (option.help or "").replace("|", "\\|"))
            for option in command.params
            if isinstance(option, click.Option)
        ]
        summary = command.get_short_help_str(200)
        table = _rows(("option", "does"), rows) if rows else "It has no options."
        parts.append(f"### surgeon {name}\n\n{summary}\n\n{table}")
    return "\n\n".join(parts)


def _spelling(option: click.Option) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    kind = option.type
    choices = "\\|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else ""
    value = (option.metavar or "").replace("|", "\\|") or choices or "N"
    return f"{names} {value}"


def _recipes() -> str:
    rows = []
    for name, path in recipe.ready_made().items():
        text = recipe.read_json(path, path.name)
        variables = ", ".join(f"`{variable}`" for variable in text["vars"])
        rows.append((f"`{name}`", variables, text["about"]))
    return _rows(("recipe", "variables", "does"), rows)


def _initialisers() -> str:
    rows = [(f"`{row.name}`", row.about) for row in INITIALISERS.values()]
    return _rows(("init", "values"), rows)


def _own_op() -> str:
    return f"```python\n{(ROOT / 'surgeon/ops/copy.py').read_text()}```"


PARTS = {
    "commands": _commands,
    "options": _options,
    "ops": _ops,
    "op-pages": _op_pages,
    "inits": _initialisers,
    "recipes": _recipes,
    "own-op": _own_op,
}


def generated(page: str) -> str:
    """Return a page with its generated parts as they should be."""
    for name, part in PARTS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        page = re.sub(
            pattern, lambda found, part=part: f"{found[1]}{part()}\n{found[2]}", page, flags=re.S
        )
    return page


def written(page: str) -> str:
    """Return what of a page is written by hand."""
    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", "", page, flags=re.S)


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
    from tests import gallery

    gallery.write()
    TORCH_TABLE.write_text(torch_table())
    for page in PAGES:
        page.write_text(generated(page.read_text()))
