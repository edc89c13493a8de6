"""The commands that look at checkpoints: inspect, diff, compare, verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from surgeon.base.errors import UsageError
from surgeon.cli import completion, screens
from surgeon.cli.group import command, print_document, print_text, say
from surgeon.cli.options import LOCATION, cache_option, json_option, picture_option


@command("inspect", "surgeon inspect model.pt 'layers.*.attention' --stats")
@click.argument("checkpoint", shell_complete=completion.file)
@click.argument("pattern", metavar="[PATTERN]...", nargs=-1, shell_complete=completion.tensor)
@click.option("--tree", is_flag=True, help="Show modules; numbered ones that are alike, once.")
@click.option("--stats", is_flag=True, help="Read the values: range, mean, norm, zeros, NaN.")
@picture_option("Draw how large each layer is, and how its values are spread,")
@cache_option
@json_option
def _inspect(
    checkpoint: str, pattern: Sequence[str], tree: bool, stats: bool, picture: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List the tensors of CHECKPOINT: names, dtypes, shapes, sizes, ties, metadata."""
    if tree and stats:
        raise UsageError("--tree and --stats exclude each other")
    from surgeon.formats import open_checkpoint
    from surgeon.inspection import inspect as inspection

    if picture:
        from surgeon.pictures.figures import require_drawable

        require_drawable(picture)
    opened = open_checkpoint(checkpoint, inspection.wanted_by(pattern))
    try:
        found = inspection.inspected(opened.tensors, pattern, stats=stats)
        if picture:
            from surgeon.inspection.spread import plot

            plot(checkpoint, found, picture, watch=screens.reading)
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
@picture_option("Draw the relative change of every tensor, layers by modules,")
@cache_option
@json_option
@click.pass_context
def _diff(
    context: click.Context, a: str, b: str, pattern: Sequence[str], picture: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare the tensors of two checkpoints; exits with 1 where they differ."""
    from surgeon.inspection import diff

    if picture:
        from surgeon.pictures.figures import require_drawable

        require_drawable(picture)
    found = diff.compare(a, b, pattern, watch=screens.reading)
    if picture:
        found.plot(picture)
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
@picture_option("Draw how far each layer and module moved, and whether together,")
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
    from surgeon.output.workers import default_workers
    from surgeon.pictures.figures import require_drawable

    if picture:
        require_drawable(picture)
    found = comparison.compare(models, default_workers())
    if picture:
        found.plot(picture)
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
