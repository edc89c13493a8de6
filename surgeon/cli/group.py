"""The group of all commands: where errors become exit codes, and what commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError, UsageError
from surgeon.base.tables import json_text, shown
from surgeon.cli.process import UnwritableError, ending

if TYPE_CHECKING:
    pass


class _Commands(click.Group):
    """Commands whose errors become lines on stderr and an exit code."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with ending():  # --help and --version answer here
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with ending():
            return self._invoked(ctx)

    def _invoked(self, ctx: click.Context) -> Any:
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
        except (BrokenPipeError, UnwritableError):
            raise
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
