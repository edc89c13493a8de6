"""The command line: click commands, and the one place where errors become exit codes."""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError, UsageError
from surgeon.base.tables import json_text, shown
from surgeon.cli.options import (
    allow_code_option,
    json_option,
    model_option,
    optimizer_option,
    optimizer_order_option,
    set_option,
    size,
)

if TYPE_CHECKING:
    from surgeon.surgery import Opened

# Results must not depend on the number of threads, and parallelism is ours. NumPy reads these when
# it is imported, which no line above does; what is heavy is imported by the command that needs it.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

# What glibc keeps of freed memory, and from where on an array is a mapping of its own (at most its
# HEAP_MAX / 2). By default kernels' arrays go back to the system after every block, and are zeroed
# for the next one: a sixth of the time of some merges.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MALLOC = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20}
# More workers than this wait for the memory bus or the disk.
_MOST_WORKERS = 8
# As a shell reports a program that ended by SIGINT, and by SIGPIPE.
_INTERRUPTED, _PIPE_CLOSED = 130, 141


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
            ctx.exit(_INTERRUPTED)
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
@click.version_option(__version__, message="surgeon %(version)s")
def commands() -> None:
    """Change trained networks between training stages, by recipe."""


def main() -> None:
    """Run the command line; exits the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A tensor's name may hold what the terminal's encoding has no character for.
            stream.reconfigure(errors="backslashreplace")
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, size_bytes in _MALLOC.items():
            mallopt(parameter, size_bytes)
    gc.disable()
    # Nor at the end, where Python looks once more through everything that was imported or planned.
    atexit.register(gc.freeze)
    commands(prog_name="surgeon")


def _command(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    return commands.command(name, epilog=f"\b\nExample:\n  {example}")


def _print(document: Any) -> None:
    click.echo(json_text(document))


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line, err=True)


@contextmanager
def _planned(
    recipe: str, source: str, extra: Sequence[str], named: Mapping[str, str],
    variables: Mapping[str, Any], optimizer: str | None, optimizer_order: str | None, *,
    allow_code: bool,
) -> Iterator[Opened]:  # fmt: skip
    from surgeon.recipe import load
    from surgeon.surgery import bind_models, opened

    loaded = load(recipe, variables)
    locations = bind_models(loaded, extra, named)
    with opened(loaded, source, locations, optimizer, optimizer_order=optimizer_order,
                allow_code=allow_code) as made:  # fmt: skip
        yield made


@_command("apply", "surgeon apply grow.json model.pt grown.safetensors --set rows=1")
@click.argument("recipe")
@click.argument("source", metavar="INPUT")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.argument("output", type=click.Path(path_type=Path))
@model_option
@set_option
@optimizer_option
@optimizer_order_option
@allow_code_option
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@click.option(
    "--link", is_flag=True,
    help="Into a folder: share the input's shards that nothing touches (reflinks, else hard links)",
)  # fmt: skip
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but the answer and errors.")
@click.option(
    "--checksums", type=click.Choice(["crc32", "sha256", "none"]), default="crc32",
    show_default=True, help="Which checksum of each tensor the manifest gets.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), help="Worker processes.  [default: cores, up to 8]"
)
@click.option(
    "--max-memory", metavar="SIZE", callback=size,
    help="Use fewer workers where they would need more scratch, such as 512MB.",
)  # fmt: skip
def _apply(
    recipe: str, source: str, models: Sequence[str], output: Path, named: dict[str, str],
    variables: dict[str, Any], optimizer: str | None, optimizer_order: str | None,
    allow_code: bool, force: bool,
    link: bool, as_json: bool, quiet: bool, checksums: Literal["crc32", "sha256", "none"],
    workers: int | None, max_memory: int | None,
) -> None:  # fmt: skip
    """Apply RECIPE to the checkpoint INPUT and write OUTPUT with its manifest.

    OUTPUT is a .safetensors file, or else a model folder. MODELs fill the models that the recipe
    leaves open, in order.
    """
    import time

    from surgeon.cli import report
    from surgeon.output.execute import Options
    from surgeon.output.memory import workers_within
    from surgeon.surgery import write

    began = time.monotonic()
    with _planned(
        recipe,
        source,
        models,
        named,
        variables,
        optimizer,
        optimizer_order,
        allow_code=allow_code,
    ) as opened:
        count = workers or _default_workers()
        if max_memory is not None:
            count = workers_within(max_memory, opened.written_tensors, count)
        total = report.written_bytes(opened.written_tensors)
        with _progress(total, silent=quiet) as progress:
            options = Options(count, checksums, progress)
            result = write(opened, output, options, force=force, link=link)
        if not quiet:
            _say(report.applied(opened, result, time.monotonic() - began))
        if as_json:
            _print(report.applied_as_json(opened, result))
        else:
            click.echo(os.fsencode(result.output))
            click.echo(os.fsencode(result.manifest))


def _default_workers() -> int:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS
        cores = os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


@contextmanager
def _progress(total_bytes: int, *, silent: bool) -> Iterator[Any]:
    """Give what shows progress on a terminal, None where nobody would see it."""
    if silent or os.environ.get("CI") or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=total_bytes, label="writing", file=sys.stderr) as bar:
        yield bar.update


@_command("plan", "surgeon plan grow.json model.pt --set rows=1")
@click.argument("recipe")
@click.argument("source", metavar="INPUT")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@model_option
@set_option
@optimizer_option
@optimizer_order_option
@allow_code_option
@json_option
def _plan(
    recipe: str, source: str, models: Sequence[str], named: dict[str, str],
    variables: dict[str, Any], optimizer: str | None, optimizer_order: str | None,
    allow_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Say what RECIPE would make of INPUT; reads no tensor data."""
    from surgeon.cli import report

    with _planned(
        recipe,
        source,
        models,
        named,
        variables,
        optimizer,
        optimizer_order,
        allow_code=allow_code,
    ) as opened:
        opened.besides.check()
        if as_json:
            _print(report.planned_as_json(opened))
        else:
            _say([f"note: {note}" for note in opened.notes])
            click.echo(report.planned(opened))


@_command("validate", "surgeon validate grow.json --set layer=fc")
@click.argument("recipe")
@set_option
def _validate(recipe: str, variables: dict[str, Any]) -> None:
    """Check RECIPE by itself: schema, variables, unknown words."""
    from surgeon.recipe import load

    loaded = load(recipe, variables)
    count = len(loaded.steps)
    click.echo(f"{loaded.label}: valid, {count} step{'' if count == 1 else 's'}")


@_command("inspect", "surgeon inspect model.pt 'layers.*.attention' --stats")
@click.argument("checkpoint")
@click.argument("pattern", metavar="[PATTERN]...", nargs=-1)
@click.option("--tree", is_flag=True, help="Show modules; numbered ones that are alike, once.")
@click.option("--stats", is_flag=True, help="Read the values: range, mean, norm, zeros, NaN.")
@json_option
def _inspect(
    checkpoint: str, pattern: Sequence[str], tree: bool, stats: bool, as_json: bool
) -> None:
    """List the tensors of CHECKPOINT: names, dtypes, shapes, sizes, ties, metadata."""
    if tree and stats:
        raise UsageError("--tree and --stats exclude each other")
    from surgeon.formats import open_checkpoint
    from surgeon.inspection import inspect as inspection

    opened = open_checkpoint(checkpoint)
    try:
        found = inspection.inspected(opened.tensors, pattern, stats=stats)
        if as_json:
            _print(inspection.as_json(opened, found, as_tree=tree))
        else:
            _say([f"note: {note}" for note in opened.notes])
            click.echo(inspection.as_text(opened, found, as_tree=tree))
    finally:
        opened.close()


@_command("diff", "surgeon diff before.pt after.safetensors '!head'")
@click.argument("a")
@click.argument("b")
@click.argument("pattern", metavar="[PATTERN]...", nargs=-1)
@json_option
@click.pass_context
def _diff(context: click.Context, a: str, b: str, pattern: Sequence[str], as_json: bool) -> None:
    """Compare the tensors of two checkpoints; exits with 1 where they differ."""
    from surgeon.inspection import diff

    found = diff.compare(a, b, pattern)
    if as_json:
        _print(found.as_json())
    else:
        click.echo(found.as_text())
    context.exit(0 if found.equal else 1)


@_command("compare", "surgeon compare base.safetensors chat.safetensors code.safetensors")
@click.argument("models", metavar="A B [C]...", nargs=-1, required=True)
@click.option(
    "--picture", metavar="FILE", type=click.Path(path_type=Path),
    help="Draw layers by modules as a heat map, into a .png or .svg file (needs matplotlib).",
)  # fmt: skip
@json_option
def _compare(models: Sequence[str], picture: Path | None, as_json: bool) -> None:
    """Say how alike models are, per layer.

    A is what the others come from: shown are how far they moved from it, whether in the same
    direction, and how often with different signs.
    """
    if len(models) < 2:
        raise UsageError("compare takes two models or more")
    from surgeon.inspection import compare as comparison
    from surgeon.inspection import pictures

    if picture:
        pictures.require_drawable(picture)
    found = comparison.compare(models, _default_workers())
    if picture:
        pictures.heat_map(found, picture)
    if as_json:
        _print(found.as_json())
    else:
        _say([f"note: {note}" for note in found.notes])
        click.echo(found.as_text())


@_command("verify", "surgeon verify grown.safetensors")
@click.argument("output", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def _verify(context: click.Context, output: Path, as_json: bool) -> None:
    """Hash OUTPUT again and compare with its manifest; exits with 1 where they differ.

    OUTPUT is a .safetensors file, a model folder, or the manifest itself.
    """
    from surgeon.inspection.verify import verify

    found = verify(output, _default_workers())
    if as_json:
        _print(found.as_json())
    else:
        click.echo(found.as_text())
    context.exit(1 if found.mismatches else 0)


@_command("import", "surgeon import mergekit merge.yml > recipe.json")
@click.argument("kind", type=click.Choice(["mergekit"]))
@click.argument("config", type=click.Path(path_type=Path))
def _import(kind: str, config: Path) -> None:
    """Print the recipe that does what another tool's CONFIG asks for.

    mergekit: what has no counterpart is refused with a reason, and what is computed otherwise says
    so in the step's 'about'. Needs PyYAML.
    """
    from surgeon.mergekit import imported

    found = imported(config)
    _say([f"note: {note}" for note in found.notes])
    click.echo(json.dumps(found.recipe, indent=2, ensure_ascii=False))


@_command("ops", "surgeon ops widen")
@click.argument("name", required=False)
@json_option
def _ops(name: str | None, as_json: bool) -> None:
    """List the ops, or show the page of one."""
    from surgeon.cli import catalogue

    if name is None:
        if as_json:
            _print(catalogue.as_json())
        else:
            click.echo(catalogue.table_of_ops())
    elif as_json:
        _print(catalogue.one_as_json(name))
    else:
        click.echo(catalogue.page(name))


@_command("schema", "surgeon schema > recipe.schema.json")
@click.option("--manifest", is_flag=True, help="Print the schema of manifests instead.")
def _schema(manifest: bool) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from surgeon.manifest.model import manifest_schema
    from surgeon.recipe.editor_schema import recipe_schema

    _print(manifest_schema() if manifest else recipe_schema())


@_command("recipes", "surgeon recipes")
@json_option
def _recipes(as_json: bool) -> None:
    """List the ready-made recipes, which go by their names alone."""
    from surgeon.cli import catalogue

    if as_json:
        _print(catalogue.recipes())
    else:
        click.echo(catalogue.table_of_recipes())
