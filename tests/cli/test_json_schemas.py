"""What commands print with --json is what its published schema says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from surgeon import samples
from surgeon.cli.commands import commands
from surgeon.cli.json_schemas import KINDS
from surgeon.initialisers import INITIALISERS

GROW = "add-output-nodes in.safetensors --set layer=fc"
LINES = [
    ("plan", f"plan {GROW}"),
    ("plan", "plan ties base.safetensors chat.safetensors code.safetensors -o out"),
    ("apply", f"apply {GROW} -o out.safetensors"),
    ("validate", "validate ties"),
    ("validate", "validate ties replace-head"),
    ("inspect", "inspect in.safetensors"),
    ("inspect", "inspect in.safetensors --stats fc"),
    ("inspect", "inspect base.safetensors --tree"),
    ("diff", "diff in.safetensors in.safetensors"),
    ("diff", "diff base.safetensors chat.safetensors"),
    ("diff", "diff in.safetensors base.safetensors"),
    ("compare", "compare base.safetensors chat.safetensors"),
    ("compare", "compare base.safetensors chat.safetensors code.safetensors"),
    ("verify", "verify done.safetensors"),
    (
        "search",
        "search interpolate-two-models base.safetensors chat.safetensors --vary t=0:1 "
        "--evaluate 'echo {output}; echo 1' --trials 2 -o best.json",
    ),
    ("errors", "plan no-such-recipe in.safetensors"),
    ("errors", "inspect no-such-file"),
    ("ops", "ops"),
    ("ops-page", "ops widen"),
    ("ops-page", "ops training"),
    ("ops-page", "ops normal"),
    ("recipes", "recipes"),
    ("recipes-page", "recipes replace-head"),
]


def run(line: str) -> Any:
    result = CliRunner().invoke(commands, shlex.split(line))
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("documents")
    samples.main(made)
    words = f"apply {GROW.replace('in.', f'{made}/in.')} -o {made}/done.safetensors --quiet"
    assert CliRunner().invoke(commands, words.split()).exit_code == 0
    return made


@pytest.mark.parametrize(("kind", "line"), LINES, ids=[line for _, line in LINES])
def test_a_document_is_what_its_schema_says(
    kind: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    schema = run(f"schema {kind}")
    document = run(f"{line} --json")
    Draft202012Validator(schema).validate(document)
    assert isinstance(document, list) or document["$schema"] == schema["$id"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_schema_is_valid_and_has_a_name(kind: str) -> None:
    schema = run(f"schema {kind}")
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:surgeon:{kind}:1"
    assert kind in {"recipe", "manifest"} | {found for found, _ in LINES}


def test_every_command_with_json_has_a_schema() -> None:
    able = {n for n, c in commands.commands.items() if any(p.name == "as_json" for p in c.params)}
    assert able <= KINDS.keys()


def test_a_schema_that_there_is_none_of_is_wrong_usage() -> None:
    found = CliRunner().invoke(commands, ["schema", "paln"])
    assert (found.exit_code, "did you mean 'plan'" in found.stderr) == (2, True)


def test_the_recipe_schema_offers_initialisations_where_editors_look_for_them() -> None:
    """VS Code's completion reads a place's own schema; `if` and `then` only check there."""
    steps = run("schema recipe")["properties"]["steps"]["else"]["items"]["else"]
    (widen,) = (branch["then"] for branch in steps["allOf"]
                if branch["if"]["properties"]["op"]["const"] == "widen")  # fmt: skip
    assert widen["properties"]["init"]["examples"] == [*INITIALISERS, "net2wider"]


def test_a_recipe_names_its_schema_by_a_path_or_a_urn() -> None:
    text = {"$schema": "recipe.schema.json", "surgeon": 1, "steps": []}
    schema = run("schema")
    Draft202012Validator(schema).validate(text)
    assert Draft202012Validator(schema).is_valid({**text, "$schema": schema["$id"]})
