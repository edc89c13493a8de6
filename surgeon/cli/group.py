"""The group of all commands: where errors become exit codes, and all that is printed goes out.

What is said may hold names of files and of tensors, which may hold anything: nothing reaches a
terminal but through the functions below, which escape what could steer it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError, UsageError, WriteError
from surgeon.base.problems import Located, located
from surgeon.base.screen import on
from surgeon.base.tables import json_text, shown, shown_lines
from surgeon.cli import screens
from surgeon.cli.process import UnwritableError, ending, word_of

# Longer than the first sentence of any command, and of no meaning but that.
_LONGEST_SENTENCE = 1000
_SETTINGS = {"help_option_names": ["-h", "--help"]}


class _Commands(click.Group):
    """Commands whose errors become lines on stderr and an exit code, or with --json a document."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        with ending(), _escaped():  # --help and --version answer here
            return super().make_context(*arguments, **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Before the command takes them: what is wrong with its options is told in the same way.
        ctx.obj = list(args)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every command with all of its first sentence, which click cuts off."""
        rows = [(n, cast(click.Command, self.get_command(ctx, n))) for n in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(_LONGEST_SENTENCE)) for n, c in rows])

    def invoke(self, ctx: click.Context) -> Any:
        with ending():
            return self._invoked(ctx)

    def _invoked(self, ctx: click.Context) -> Any:
        arguments: list[str] = ctx.obj
        try:
            with _escaped(), on(screens.of_stdout()):
                return super().invoke(ctx)
        except SurgeonError as error:
            given = set(arguments)
            self._fail(
                ctx, arguments, [located(_plain(p), given) for p in error.problems], error.exit_code
            )
        except click.UsageError as error:
            if not self._wants_json(ctx, arguments):
                raise
            self._fail(ctx, arguments, [_misuse(error)], UsageError.exit_code)
        except RecursionError:
            # Each step wraps what the one before made of a tensor.
            deep = Located(None, None, "some tensor passes through too many steps",
                           "apply them in parts")  # fmt: skip
            self._fail(ctx, arguments, [deep], PlanError.exit_code)
        except MemoryError:
            full = Located(None, None, "there is not enough memory",
                           "--max-memory and fewer --workers take less")  # fmt: skip
            self._fail(ctx, arguments, [full], WriteError.exit_code)
        except KeyboardInterrupt as error:
            if self._wants_json(ctx, arguments):
                word, code = word_of(error)
                print_json(_document([Located(None, None, word, None)], code))
            raise
        except (BrokenPipeError, UnwritableError):
            raise
        except OSError as error:
            # What is opened and written has errors of its own; this is a path that cannot be one.
            what = Located(str(error.filename), None, str(error.strerror), None)
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
            print_json(_document(errors, exit_code))
        else:
            say([error.text for error in errors])
        ctx.exit(exit_code)

    def _wants_json(self, ctx: click.Context, arguments: Sequence[str]) -> bool:
        """Say whether a command line asks for JSON, be it right or not."""
        name, *options = arguments or [""]
        asked = "--json" in (options[: options.index("--")] if "--" in options else options)
        command = self.get_command(ctx, name)
        return asked and (command is None or any(p.name == "as_json" for p in command.params))


def _document(errors: Sequence[Located], exit_code: int) -> dict[str, Any]:
    return {
        "$schema": "urn:surgeon:errors:1",
        "errors": [error._asdict() for error in errors],
        "exit_code": exit_code,
    }


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
    context_settings=_SETTINGS,
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
    # Its own settings, too: a command is also asked alone, and remembers its option for help.
    return commands.command(name, epilog=f"\b\nExample:\n  {example}", context_settings=_SETTINGS)


def print_json(document: Any, *, indent: int | None = None) -> None:
    """Print a document; the strings in it stay what they are to whoever reads it."""
    click.echo(json_text(document, indent=indent))


def print_text(text: str, *, is_coloured: bool = False) -> None:
    """Print lines, in the colours of the signs that they begin with if asked to."""
    safe = shown_lines(text)
    click.echo(screens.coloured(safe) if is_coloured else safe, color=is_coloured or None)


def print_path(path: Path) -> None:
    """Print a path: its very bytes for a script, escaped for a terminal."""
    click.echo(shown(str(path)) if sys.stdout.isatty() else os.fsencode(str(path)))


def print_document(kind: str, document: Mapping[str, Any]) -> None:
    """Print an answer that says by which schema it is to be read: `surgeon schema KIND`."""
    print_json({"$schema": f"urn:surgeon:{kind}:1", **document})


def say(lines: Sequence[str]) -> None:
    """Print each line on stderr."""
    for line in lines:
        click.echo(shown(_plain(line)), err=True)


def _plain(text: str) -> str:
    """Take out of a text what a URL in it has that is not to be shown, whoever put it there."""
    if "://" not in text:
        return text
    from surgeon.remote.locations import without_hidden

    return without_hidden(text)


@contextmanager
def _escaped() -> Iterator[None]:
    """Escape what click says of an argument that is wrong."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = shown_lines(_plain(error.message))  # final, says click
        raise
