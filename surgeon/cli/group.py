"""The group of all commands: where errors become exit codes, and what commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError, UsageError
from surgeon.base.tables import json_text, shown

if TYPE_CHECKING:
    pass

# As a shell reports a program that ended by SIGINT, and by SIGPIPE.
INTERRUPTED, _PIPE_CLOSED = 130, 141


class _Commands(click.Group):
    """Commands whose errors become lines on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SurgeonError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
            ctx.exit(error.exit_code)
        except RecursionError:
            # Each step wraps what the one before made of a tensor.
            click.echo("some tensor passes through too many steps; apply them in parts", err=True)
            ctx.exit(PlanError.exit_code)
        except KeyboardInterrupt:
            # Where it came inside of an exec(), as of a dataclass that is being imported, python -m
            # ends with the signal instead of our code; another exec() clears that. See
            # run_eval_code_obj in https://github.com/python/cpython/blob/3.13/Python/pythonrun.c
            exec("")
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Python flushes stdout once more when it ends, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(_PIPE_CLOSED)
        except OSError as error:
            # What is opened and written has errors of its own; this is a path that cannot be one.
            click.echo(f"{shown(str(error.filename))}: {error.strerror}", err=True)
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

    click.echo(f"surgeon {__version__}, loops: {kernels()}")
    ctx.exit()


def command(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    return commands.command(name, epilog=f"\b\nExample:\n  {example}")


def print_json(document: Any) -> None:
    click.echo(json_text(document))


def say(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line, err=True)
