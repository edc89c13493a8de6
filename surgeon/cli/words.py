"""The commands about words: import, ops, schema, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgeon.cli.group import command, print_json, print_text, say
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
@click.argument("name", required=False)
@json_option
def _ops(name: str | None, as_json: bool) -> None:
    """List the ops, or show the page of one."""
    from surgeon.cli import catalogue

    if name is None:
        say([f"note: {note}" for note in catalogue.notes()])
        if as_json:
            print_json(catalogue.as_json())
        else:
            print_text(catalogue.table_of_ops())
    elif as_json:
        print_json(catalogue.one_as_json(name))
    else:
        print_text(catalogue.page(name))


@command("schema", "surgeon schema > recipe.schema.json")
@click.option("--manifest", is_flag=True, help="Print the schema of manifests instead.")
def _schema(manifest: bool) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from surgeon.manifest.model import manifest_schema
    from surgeon.recipe.editor_schema import recipe_schema

    print_json(manifest_schema() if manifest else recipe_schema())


@command("recipes", "surgeon recipes")
@json_option
def _recipes(as_json: bool) -> None:
    """List the ready-made recipes, which go by their names alone."""
    from surgeon.cli import catalogue

    if as_json:
        print_json(catalogue.recipes())
    else:
        print_text(catalogue.table_of_recipes())
