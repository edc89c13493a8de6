"""The commands that run a recipe, or look at one: apply, plan, validate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.base.errors import UsageError
from surgeon.base.files import is_there
from surgeon.base.problems import located
from surgeon.base.tables import shown
from surgeon.cli import completion, screens
from surgeon.cli.group import command, print_document, print_path, print_text, say
from surgeon.cli.options import (
    job_options,
    json_option,
    output_options,
    set_option,
    size,
)

if TYPE_CHECKING:
    from surgeon.library.running import Job
    from surgeon.output.checksums import Algorithm


@command("apply", "surgeon apply grow.json model.pt grown.safetensors --set rows=1")
@job_options
@click.argument("paths", metavar="[MODEL]... OUTPUT", nargs=-1, shell_complete=completion.file)
@output_options
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
@click.option(
    "--device", default="", metavar="cuda[:N]",
    help="Decompose whole matrices there, with torch; the last bits are then the device's.",
)  # fmt: skip
@click.option(
    "--cluster", metavar="tcp://HOST:PORT|local:N",
    help="Have the workers of a Dask cluster write, which see the same files: by its scheduler's "
    "address, or N processes of this machine.",
)  # fmt: skip
@click.option(
    "--resume", is_flag=True,
    help="With --cluster: go on with what a run that was killed has completed, and leave what this "
    "one completes should it fail.",
)  # fmt: skip
def _apply(
    job: Job, paths: Sequence[str], output: Path | None, force: bool, force_any: bool, link: bool,
    as_json: bool, quiet: bool, checksums: Algorithm, workers: int | None, max_memory: int | None,
    device: str, cluster: str | None, resume: bool,
) -> None:  # fmt: skip
    """Apply RECIPE to the checkpoint INPUT and write OUTPUT with its manifest.

    OUTPUT is a .safetensors file, or else a model folder. MODELs fill the models that the recipe
    leaves open, in order. With -o, no path but that is the output.
    """
    from surgeon.library.running import applied
    from surgeon.output import report

    models, target = _models_and_output(job, paths, output)
    job = replace(job, models=models)
    with (
        _hinting(target, "" if output else _forgotten(job, models, target)),
        job.opened() as opened,
    ):
        total = report.written_bytes(opened.written_tensors)
        with screens.progress(total, label="writing", silent=quiet) as progress:
            found = applied(
                opened, target, force=force, force_any=force_any, link=link, workers=workers,
                max_memory=max_memory, checksums=checksums, device=device, progress=progress,
                cluster=cluster, resume=resume,
            )  # fmt: skip
    if not quiet:
        say(found.text.splitlines())
    if as_json:
        print_document("apply", found.as_json())
    else:
        print_path(found.output)
        print_path(found.manifest)


def _models_and_output(
    job: Job, paths: Sequence[str], output: Path | None
) -> tuple[Sequence[str], Path]:
    """Tell the output from the models; raises UsageError where it can only have been forgotten."""
    from surgeon.remote.locations import taken
    from surgeon.remote.paths import path_of

    paths = [taken(path, is_first=True) for path in paths]
    if output is not None:
        return paths, output
    if not paths:
        raise UsageError(f"OUTPUT is missing: after the input {job.input!s}, or as -o OUTPUT")
    return paths[:-1], path_of(paths[-1])


def _forgotten(job: Job, models: Sequence[str], target: Path) -> str:
    """Say what the last path was taken for, where it may have been meant as an input."""
    if not is_there(target):
        return ""
    inputs = " and ".join((str(job.input), *models))
    return (
        f"the last path is OUTPUT, so {job.recipe} of {inputs} would be written into {target}; "
        "-o OUTPUT names the output apart, and every other path is an input"
    )


@contextmanager
def _hinting(target: Path, hint: str) -> Iterator[None]:
    """Add a hint to what is said where an output, or a model, may have been forgotten."""
    try:
        yield
    except UsageError as error:
        last = error.problems[-1]
        if not hint or not (
            last.startswith(f"{target}: exists") or "must be given: --model" in last
        ):
            raise
        raise UsageError(*error.problems[:-1], f"{last}; {hint}") from None


@command("plan", "surgeon plan grow.json model.pt --set rows=1")
@job_options
@click.argument("models", metavar="[MODEL]...", nargs=-1, shell_complete=completion.file)
@output_options
@click.option(
    "--tree", is_flag=True,
    help="Show modules, each tensor with a sign: + new, ~ changed, - dropped, = kept; layers that "
    "fare alike, once.",
)  # fmt: skip
@click.option(
    "--color", "colour", type=click.Choice(["auto", "always", "never"]), default="auto",
    show_default=True, help="Colour the signs of --tree; auto: on a terminal, without NO_COLOR.",
)  # fmt: skip
@json_option
def _plan(
    job: Job, models: Sequence[str], output: Path | None, force: bool, force_any: bool,
    tree: bool, colour: screens.Colour, as_json: bool,
) -> None:  # fmt: skip
    """Say what RECIPE would make of INPUT; reads no tensor data.

    With -o OUTPUT, finds everything that `apply` would refuse. Without it, one file is assumed, or
    a model folder where the recipe's `output` is for one only.
    """
    if tree and as_json:
        raise UsageError("--tree and --json exclude each other")
    if colour != "auto" and not tree:
        raise UsageError("--color is for --tree")
    from surgeon.library.running import output_plan
    from surgeon.output import report
    from surgeon.remote.locations import taken

    with replace(job, models=[taken(model, is_first=True) for model in models]).opened() as opened:
        made = output_plan(opened, output, force=force, force_any=force_any, link=False)
        if as_json:
            print_document("plan", report.planned_as_json(made))
        else:
            say([f"note: {note}" for note in opened.notes])
            text = report.planned(made, as_tree=tree)
            print_text(text, is_coloured=tree and screens.is_coloured(colour))


@command("validate", "surgeon validate grow.json --set layer=fc")
@click.argument(
    "recipes", metavar="RECIPE...", nargs=-1, required=True, shell_complete=completion.recipe
)
@set_option
@json_option
def _validate(recipes: Sequence[str], variables: dict[str, Any], as_json: bool) -> None:
    """Check RECIPE by itself: schema, variables, unknown words.

    Of several, or of a folder with all recipes in it, those that leave variables open are checked
    with the values of their `example`, or as they are written.
    """
    from surgeon.recipe import load
    from surgeon.recipe.several import unchecked

    if len(recipes) > 1 or Path(recipes[0]).is_dir():
        _validate_all(recipes, variables, as_json)
        return
    loaded = load(recipes[0], variables)
    if as_json:
        row = {"file": recipes[0], "steps": len(loaded.steps), "open": [], "problems": [],
               "notes": unchecked(loaded)}  # fmt: skip
        print_document("validate", {"recipes": [row], "errors": [], "exit_code": 0})
    else:
        count = len(loaded.steps)
        say([f"note: {note}" for note in unchecked(loaded)])
        print_text(f"{shown(loaded.label)}: valid, {count} step{'' if count == 1 else 's'}")


def _validate_all(recipes: Sequence[str], variables: Mapping[str, Any], as_json: bool) -> None:
    from dataclasses import asdict

    from surgeon.recipe.several import checked

    found = checked(recipes, variables)
    wrong = [problem for row in found for problem in row.problems]
    if as_json:
        code = UsageError.exit_code if wrong else 0
        errors = [located(problem)._asdict() for problem in wrong]
        rows = [asdict(row) for row in found]
        print_document("validate", {"recipes": rows, "errors": errors, "exit_code": code})
        click.get_current_context().exit(code)
    for row in found:
        if not row.problems:
            say([f"note: {row.file}: {note}" for note in row.notes])
            print_text(shown(row.text))
    if wrong:
        raise UsageError(*wrong)
