"""The command that finds the values of a recipe's variables by trials: search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import completion
from surgeon.cli.environment import as_called
from surgeon.cli.group import command, print_document, print_text, say
from surgeon.cli.options import (
    allow_code_option,
    json_option,
    model_option,
    pairs,
    picture_option,
    set_option,
)
from surgeon.cli.process import INTERRUPTED

if TYPE_CHECKING:
    from surgeon.recipe import Recipe


@command(
    "search",
    "surgeon search interpolate-two-models a.safetensors b.safetensors --vary t=0:1 "
    "--evaluate 'python score.py {output}' -o best.json",
)
@click.argument("recipe", shell_complete=completion.recipe)
@click.argument("source", metavar="INPUT", shell_complete=completion.file)
@click.argument("models", metavar="[MODEL]...", nargs=-1, shell_complete=completion.file)
@click.option(
    "--vary", metavar="VAR=VALUES", multiple=True, required=True, callback=pairs,
    shell_complete=completion.variable,
    help="Vary a variable, an item of one (weights.0), or all of its items (weights.*). VALUES are "
    "LOW:HIGH, then perhaps :STEP, :int (whole numbers), :log, or a JSON list of choices.",
)  # fmt: skip
@click.option(
    "--evaluate", metavar="COMMAND", required=True,
    help="What scores a model: {output} is its path, the last line printed is the number, and "
    "larger is better.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="BEST", required=True, type=click.Path(path_type=Path),
    help="Where the best recipe goes, a .json file.",
)  # fmt: skip
@click.option(
    "--trials", metavar="N", type=click.IntRange(min=1), default=50, show_default=True,
    help="How many trials there are to be, those of earlier runs included.",
)  # fmt: skip
@click.option(
    "--sampler", type=click.Choice(["tpe", "cmaes"]), default="tpe", show_default=True,
    help="What proposes values: tpe for anything, cmaes for several numbers.",
)  # fmt: skip
@click.option(
    "--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True,
    help="Seed of the sampler; another one for each of several machines.",
)  # fmt: skip
@click.option(
    "--storage", metavar="URL",
    help="The database that keeps the trials, for several machines.  [default: SQLite beside BEST]",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the trials of earlier runs.")
@click.option("--force", is_flag=True, help="Replace BEST and its trials, and begin anew.")
@picture_option("Draw the trials,")
@model_option
@set_option
@allow_code_option
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but the answer and errors.")
@click.pass_context
def _search(
    context: click.Context, recipe: str, source: str, models: Sequence[str],
    vary: dict[str, str], evaluate: str, output: Path, trials: int, sampler: str, seed: int,
    storage: str | None, resume: bool, force: bool, picture: Path | None,
    named: dict[str, str], variables: dict[str, Any], allow_code: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Find the values of RECIPE's variables that a command scores best, by trials.

    Each trial applies RECIPE to INPUT into a scratch folder, runs the command in the current one,
    and removes what was written. Needs Optuna.
    """
    import gc
    from tempfile import TemporaryDirectory

    from surgeon.pictures.figures import require_drawable
    from surgeon.recipe.locations import bind_models
    from surgeon.trials import scores
    from surgeon.trials.search import Settings, prepared, run

    # Other commands are over before what they leave behind matters; hundreds of plans would add up.
    gc.enable()
    if picture:
        require_drawable(picture)
    scores.require_place(evaluate)
    searched = prepared(recipe, variables, vary)

    def bind(recipe: Recipe) -> dict[str, str]:
        return bind_models(recipe, models, named)

    score = scores.Command(
        evaluate, source, bind, scores.is_folder(source), allow_code, as_called()
    )
    settings = Settings(
        trials, sampler, seed, output, storage, resume, force,
        progress=None if quiet else lambda line: say([line]),
    )  # fmt: skip
    with TemporaryDirectory(prefix="surgeon-search-") as scratch:
        found = run(
            searched, source, bind, score, settings, command=evaluate,
            target=score.output_in(scratch), allow_code=allow_code,
        )  # fmt: skip
    if picture:
        from surgeon.trials.pictures import draw

        draw(found, picture)
    if as_json:
        print_document("search", found.as_json())
    else:
        print_text(str(found))
    if found.interrupted:
        say(["interrupted; --resume goes on"])
        context.exit(INTERRUPTED)
