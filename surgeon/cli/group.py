"""The group of all commands: where errors become exit codes, and all that is printed goes out.

What is said may hold names of files and of tensors, which may hold anything: nothing reaches a
terminal but through the functions below, which escape what could steer it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError, UsageError, WriteError
from surgeon.base.tables import json_text, shown, shown_lines

# As a shell reports a program that ended by SIGINT, and by SIGPIPE.
_INTERRUPTED, _PIPE_CLOSED = 130, 141


class _Commands(click.Group):
    """Commands whose errors become lines on stderr and an exit code."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        with _escaped():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _escaped():
                return super().invoke(ctx)
        except SurgeonError as error:
            say(error.problems)
            ctx.exit(error.exit_code)
        except RecursionError:
            # Each step wraps what the one before made of a tensor.
            say(["some tensor passes through too many steps; apply them in parts"])
            ctx.exit(PlanError.exit_code)
        except MemoryError:
            say(["there is not enough memory; --max-memory and fewer --workers take less"])
            ctx.exit(WriteError.exit_code)
        except KeyboardInterrupt:
            # Where it came inside of an exec(), as of a dataclass that is being imported, python -m
            # ends with the signal instead of our code; another exec() clears that. See
            # run_eval_code_obj in https://github.com/python/cpython/blob/3.13/Python/pythonrun.c
            exec("")
            say(["interrupted"])
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            # Python flushes stdout once more when it ends, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(_PIPE_CLOSED)
        except OSError as error:
            # What is opened and written has errors of its own; this is a path that cannot be one.
            say([f"{error.filename}: {error.strerror}"])
            ctx.exit(UsageError.exit_code)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  surgeon plan grow.json model.pt",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False,
    callback=lambda ctx, _, asked: _show_version(ctx) if asked else None,
    help="Show the version, and which loops run.",
)  # fmt: skip
def commands() -> None:
    """Change trained networks between training stages, by recipe."""


def _show_version(ctx: click.Context) -> None:
    from surgeon.numeric.compiled import kernels  # imports NumPy, which --help does without

    print_text(f"surgeon {__version__}, loops: {kernels()}")
    ctx.exit()


def command(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    return commands.command(name, epilog=f"\b\nExample:\n  {example}")


def print_json(document: Any, *, indent: int | None = None) -> None:
    """Print a document; the strings in it stay what they are to whoever reads it."""
    click.echo(json_text(document, indent=indent))


def print_text(text: str) -> None:
    """Print lines."""
    click.echo(shown_lines(text))


def print_path(path: Path) -> None:
    """Print a path: its very bytes for a script, escaped for a terminal."""
    click.echo(shown(str(path)) if sys.stdout.isatty() else os.fsencode(path))


def say(lines: Sequence[str]) -> None:
    """Print each line on stderr."""
    for line in lines:
        click.echo(shown(line), err=True)


@contextmanager
def _escaped() -> Iterator[None]:
    """Escape what click says of an argument that is wrong."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = shown_lines(error.message)  # final, says click
        raise
