"""The commands that look at checkpoints: inspect, diff, compare, verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgeon.base.errors import UsageError
from surgeon.cli import completion, screens
from surgeon.cli.group import command, print_document, print_text, say
from surgeon.cli.options import (
    LOCATION,
    cache_option,
    json_option,
)

if TYPE_CHECKING:
    pass


@command("inspect", "surgeon inspect model.pt 'layers.*.attention' --stats")
@click.argument("checkpoint", shell_complete=completion.file)
@click.argument("pattern", metavar="[PATTERN]...", nargs=-1, shell_complete=completion.tensor)
@click.option("--tree", is_flag=True, help="Show modules; numbered ones that are alike, once.")
@click.option("--stats", is_flag=True, help="Read the values: range, mean, norm, zeros, NaN.")
@cache_option
@json_option
def _inspect(
    checkpoint: str, pattern: Sequence[str], tree: bool, stats: bool, as_json: bool
) -> None:
    """List the tensors of CHECKPOINT: names, dtypes, shapes, sizes, ties, metadata."""
    if tree and stats:
        raise UsageError("--tree and --stats exclude each other")
    from surgeon.formats import open_checkpoint
    from surgeon.inspection import inspect as inspection

    opened = open_checkpoint(checkpoint, inspection.wanted_by(pattern))
    try:
        found = inspection.inspected(opened.tensors, pattern, stats=stats)
        if as_json:
            print_document("inspect", inspection.as_json(opened, found, as_tree=tree))
        else:
            say([f"note: {note}" for note in opened.notes])
            print_text(inspection.as_text(opened, found, as_tree=tree))
    finally:
        opened.close()


@command("diff", "surgeon diff before.pt after.safetensors '!head'")
@click.argument("a", shell_complete=completion.file)
@click.argument("b", shell_complete=completion.file)
@click.argument("pattern", metavar="[PATTERN]...", nargs=-1, shell_complete=completion.tensor)
@cache_option
@json_option
@click.pass_context
def _diff(context: click.Context, a: str, b: str, pattern: Sequence[str], as_json: bool) -> None:
    """Compare the tensors of two checkpoints; exits with 1 where they differ."""
    from surgeon.inspection import diff

    found = diff.compare(a, b, pattern, watch=screens.reading)
    say([f"note: {note}" for note in found.notes])
    if as_json:
        print_document("diff", found.as_json())
    else:
        print_text(found.as_text())
    context.exit(0 if found.equal else 1)


@command("compare", "surgeon compare base.safetensors chat.safetensors code.safetensors")
@click.argument(
    "models", metavar="A B [C]...", nargs=-1, required=True, shell_complete=completion.file
)
@click.option(
    "--picture", metavar="FILE", type=click.Path(path_type=Path),
    help="Draw layers by modules as a heat map, into a .png or .svg file (needs matplotlib).",
)  # fmt: skip
@cache_option
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
    from surgeon.output.workers import default_workers

    if picture:
        pictures.require_drawable(picture)
    found = comparison.compare(models, default_workers())
    if picture:
        pictures.heat_map(found, picture)
    if as_json:
        print_document("compare", found.as_json())
    else:
        say([f"note: {note}" for note in found.notes])
        print_text(found.as_text())


@command("verify", "surgeon verify grown.safetensors")
@click.argument("output", type=LOCATION)
@cache_option
@json_option
@click.pass_context
def _verify(context: click.Context, output: Path, as_json: bool) -> None:
    """Hash OUTPUT again and compare with its manifest; exits with 1 where they differ.

    OUTPUT is a .safetensors file, a model folder, or the manifest itself.
    """
    from surgeon.inspection.verify import verify
    from surgeon.output.workers import default_workers

    found = verify(output, default_workers(), watch=screens.reading)
    say([f"note: {note}" for note in found.notes])
    if as_json:
        print_document("verify", found.as_json())
    else:
        print_text(found.as_text())
    context.exit(1 if found.mismatches else 0)
