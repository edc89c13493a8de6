"""The commands about words: import, ops, schema, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgeon.cli import completion
from surgeon.cli.group import command, print_document, print_json, print_text, say
from surgeon.cli.options import (
    json_option,
)

if TYPE_CHECKING:
    pass


@command("import", "surgeon import mergekit merge.yml > recipe.json")
@click.argument("kind", type=click.Choice(["mergekit"]))
@click.argument("config", type=click.Path(path_type=Path))
def _import(kind: str, config: Path) -> None:
    """Print the recipe that does what another tool's CONFIG asks for.

    mergekit: what has no counterpart is refused with a reason, and what is computed otherwise says
    so in the step's 'about'. Needs PyYAML.
    """
    from surgeon.mergekit import imported

    found = imported(config)
    say([f"note: {note}" for note in found.notes])
    print_json(found.recipe, indent=2)


@command("ops", "surgeon ops widen")
@click.argument("name", required=False, shell_complete=completion.op)
@json_option
def _ops(name: str | None, as_json: bool) -> None:
    """List the ops, or show the page of one.

    NAME may also be `training`, a recipe's section, or an initialisation.
    """
    from surgeon.cli import catalogue, word_pages

    if name is None:
        say([f"note: {note}" for note in catalogue.notes()])
        if as_json:
            print_json(catalogue.as_json())
        else:
            print_text(catalogue.table_of_ops())
    elif as_json:
        print_document("ops-page", word_pages.as_json(name))
    else:
        print_text(word_pages.page(name))


@command("schema", "surgeon schema > recipe.schema.json")
@click.argument("kind", required=False, shell_complete=completion.schema)
@click.option("--manifest", is_flag=True, help="Print the schema of manifests instead.")
def _schema(kind: str | None, manifest: bool) -> None:
    """Print the JSON Schema of recipes, for editors, or of what a command prints with --json.

    KIND is `recipe`, `manifest`, or a command: `plan`, `inspect`, `diff`, ...
    """
    from surgeon.cli import json_schemas

    print_json(json_schemas.schema("manifest" if manifest else kind or "recipe"))


@command("recipes", "surgeon recipes ties > mine.json")
@click.argument("name", required=False, shell_complete=completion.recipe_name)
@json_option
def _recipes(name: str | None, as_json: bool) -> None:
    """List the ready-made recipes, which go by their names alone, or show the page of one.

    Where the page would not go to a terminal, the recipe's JSON is printed alone.
    """
    import sys

    from surgeon.base.ready_made import source_of
    from surgeon.cli import recipe_pages

    if name is None and as_json:
        print_json(recipe_pages.recipes())
    elif name is None:
        print_text(recipe_pages.table_of_recipes())
    elif as_json:
        print_document("recipes-page", recipe_pages.as_json(name))
    elif sys.stdout.isatty():
        print_text(recipe_pages.page(name))
    else:
        recipe_pages.text_of(name)
        print_text(source_of(name).rstrip("\n"))
