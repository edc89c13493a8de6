"""The manual page: all commands in one page for man, out of what click knows of them."""

from __future__ import annotations

import inspect

import click

from surgeon import __version__

# As docs/commands.md has them.
_CODES = (
    ("0", "done; diff: equal"),
    ("1", "the answer is no: diff found a difference, verify a mismatch, expect or match failed"),
    ("2", "wrong usage, or an invalid recipe"),
    ("3", "a checkpoint is unreadable or unsafe"),
    ("4", "the plan is impossible for these inputs"),
    ("5", "writing failed"),
)


def page(group: click.Command) -> str:
    """Return the page as roff, in the macros that every man has."""
    lines = [
        f'.TH SURGEON 1 "" "surgeon {__version__}" "User Commands"',
        ".SH NAME",
        f"surgeon \\- {_escaped(_first_line(group).rstrip('.').lower())}",
        ".SH SYNOPSIS",
        ".B surgeon",
        "COMMAND [OPTIONS] ARGUMENTS...",
        ".SH DESCRIPTION",
        _escaped("Trained networks are changed by a recipe, which is a JSON file. The first path "
                 "is the recipe (or the name of a ready-made one), the second the checkpoint that "
                 "is changed, then come other models, and the last is the output."),
        ".SH OPTIONS",
        *_options(group),
        ".SH COMMANDS",
    ]  # fmt: skip
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            lines += _command(name, command)
    lines += [".SH EXIT STATUS"]
    for code, meaning in _CODES:
        lines += [".TP", code, _escaped(meaning)]
    lines += [
        ".SH ENVIRONMENT",
        ".TP",
        ".B CI",
        "Where it is set, no progress is shown.",
        ".SH SEE ALSO",
        _escaped("`surgeon ops` and `surgeon ops NAME` for the ops, `surgeon recipes` and "
                 "`surgeon recipes NAME` for the ready-made recipes."),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _command(name: str, command: click.Command) -> list[str]:
    with click.Context(command, info_name=f"surgeon {name}", **command.context_settings) as context:
        usage = " ".join(command.collect_usage_pieces(context))
    lines = [f'.SS "surgeon {name} {_escaped(usage)}"']
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        lines += [".PP"] if number else []
        if paragraph.startswith("\b"):  # click's mark of what keeps its lines
            kept = [_escaped(line) for line in paragraph.splitlines()[1:]]
            lines += [".nf", *kept, ".fi"]
        else:
            lines += [_escaped(" ".join(paragraph.split()))]
    lines += _options(command)
    if command.epilog:
        example = command.epilog.strip("\b\n").splitlines()
        lines += [".PP", *(_escaped(line) for line in example[:1])]
        lines += [".nf", *(_escaped(line) for line in example[1:]), ".fi"]
    return lines


def _options(command: click.Command) -> list[str]:
    lines = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            with click.Context(command, **command.context_settings) as context:
                spelling, help_text = option.get_help_record(context) or ("", "")
            lines += [".TP", f'.B "{_escaped(spelling)}"', _escaped(help_text)]
    return lines


def _first_line(command: click.Command) -> str:
    return (command.help or "").partition("\n")[0]


def _escaped(text: str) -> str:
    r"""Return text that roff takes as text: \, a minus, quotes, and what begins a line."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain
