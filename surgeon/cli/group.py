"""The group of all commands: where errors become exit codes, and what commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError, UsageError
from surgeon.base.problems import Located, located
from surgeon.base.tables import json_text, shown

if TYPE_CHECKING:
    pass

# As a shell reports a program that ended by SIGINT, and by SIGPIPE.
_INTERRUPTED, _PIPE_CLOSED = 130, 141


class _Commands(click.Group):
    """Commands whose errors become lines on stderr and an exit code, or with --json a document."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Before the command takes them: what is wrong with its options is told in the same way.
        ctx.obj = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        arguments: list[str] = ctx.obj
        try:
            return super().invoke(ctx)
        except SurgeonError as error:
            given = set(arguments)
            self._fail(ctx, arguments, [located(p, given) for p in error.problems], error.exit_code)
        except click.UsageError as error:
            if not self._wants_json(ctx, arguments):
                raise
            self._fail(ctx, arguments, [_misuse(error)], UsageError.exit_code)
        except RecursionError:
            # Each step wraps what the one before made of a tensor.
            deep = Located(None, None, "some tensor passes through too many steps",
                           "apply them in parts")  # fmt: skip
            self._fail(ctx, arguments, [deep], PlanError.exit_code)
        except KeyboardInterrupt:
            # Where it came inside of an exec(), as of a dataclass that is being imported, python -m
            # ends with the signal instead of our code; another exec() clears that. See
            # run_eval_code_obj in https://github.com/python/cpython/blob/3.13/Python/pythonrun.c
            exec("")
            self._fail(ctx, arguments, [Located(None, None, "interrupted", None)], _INTERRUPTED)
        except BrokenPipeError:
            # Python flushes stdout once more when it ends, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(_PIPE_CLOSED)
        except OSError as error:
            # What is opened and written has errors of its own; this is a path that cannot be one.
            what = Located(shown(str(error.filename)), None, str(error.strerror), None)
            self._fail(ctx, arguments, [what], UsageError.exit_code)

    def _fail(
        self,
        ctx: click.Context,
        arguments: Sequence[str],
        errors: Sequence[Located],
        exit_code: int,
    ) -> None:
        """End with what is wrong: on stdout as the one document, or on stderr as lines."""
        if self._wants_json(ctx, arguments):
            print_json({"errors": [e._asdict() for e in errors], "exit_code": exit_code})
        else:
            say([error.text for error in errors])
        ctx.exit(exit_code)

    def _wants_json(self, ctx: click.Context, arguments: Sequence[str]) -> bool:
        """Say whether a command line asks for JSON, be it right or not."""
        name, *options = arguments or [""]
        asked = "--json" in (options[: options.index("--")] if "--" in options else options)
        command = self.get_command(ctx, name)
        return asked and (command is None or any(p.name == "as_json" for p in command.params))


def _misuse(error: click.UsageError) -> Located:
    """Return what is wrong with a command line, as click tells it."""
    parameter = error.param if isinstance(error, click.BadParameter) else None
    option = parameter.opts[0] if isinstance(parameter, click.Option) else None
    if isinstance(error, click.NoSuchOption):
        near = " or ".join(map(repr, error.possibilities or ()))
        return Located(
            None, error.option_name, "there is no such option", f"did you mean {near}?" if near
            else None,
        )  # fmt: skip
    message = error.message if option and error.message else error.format_message()
    return Located(None, option, message, None)


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
