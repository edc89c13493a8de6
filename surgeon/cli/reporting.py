"""The command that makes a page of an output, or of what a recipe would make: report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from surgeon.base.errors import UsageError
from surgeon.cli import completion, screens
from surgeon.cli.group import command, print_path
from surgeon.cli.options import model_option, set_option


@command("report", "surgeon report grown.safetensors -o grown.html")
@click.argument(
    "paths", metavar="OUTPUT|PLAN|RECIPE [INPUT] [MODEL]...", nargs=-1, required=True,
    shell_complete=completion.file,
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="PAGE", required=True, type=click.Path(path_type=Path),
    help="Where the page goes, an .html file.",
)  # fmt: skip
@click.option(
    "--verify", "hashing", is_flag=True,
    help="Hash OUTPUT again, and say on the page whether it is what its manifest says.",
)  # fmt: skip
@model_option
@set_option
def _report(
    paths: Sequence[str], output: Path, hashing: bool, named: Mapping[str, str],
    variables: Mapping[str, Any],
) -> None:  # fmt: skip
    """Make one page of what a recipe did: tensors, lineage, training stages, sizes, checks.

    OUTPUT is a .safetensors file, a model folder, or the manifest of one; PLAN is what
    `plan --json` printed. A RECIPE with its INPUT is planned first, and no tensor data is read.
    """
    from surgeon.inspection import reporting
    from surgeon.output.workers import default_workers

    reporting.require_page(output)
    source, *inputs = paths
    if inputs:
        if hashing:
            raise UsageError("--verify is for an output, and a recipe with its input has none yet")
        text = _planned(source, inputs, named, variables)
    elif named or variables:
        raise UsageError("--set and --model are for a recipe with its input")
    else:
        text = reporting.page_of(
            Path(source), workers=default_workers(), hashing=hashing, watch=screens.reading
        )
    reporting.write_page(text, output)
    print_path(output)


def _planned(
    recipe: str, inputs: Sequence[str], named: Mapping[str, str], variables: Mapping[str, Any]
) -> str:
    from surgeon.inspection import reporting
    from surgeon.library.running import Job, output_plan
    from surgeon.output.report import planned_as_json

    source, *models = inputs
    job = Job(recipe, source, models, named, variables, None, None, allow_code=False,
              carry="small")  # fmt: skip
    with job.opened() as opened:
        made = output_plan(opened, None, force=False, force_any=False, link=False)
        return reporting.page_of_plan(planned_as_json(made), recipe)
