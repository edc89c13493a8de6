"""Many recipes at once: folders, open variables, every problem with its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from surgeon.base.ready_made import ready_made
from surgeon.cli.commands import commands

STEP = {"op": "widen", "target": "${layer}", "rows": 1}


def write(path: Path, **text: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"surgeon": 1, **text}))
    return path


def validate(*words: object) -> Result:
    return CliRunner().invoke(commands, ["validate", *map(str, words)])


def test_all_ready_made_recipes_are_valid() -> None:
    found = validate(next(iter(ready_made().values())).parent)
    assert found.exit_code == 0, found.stderr
    assert len(found.stdout.splitlines()) == len(ready_made())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ({"vars": {"layer": None}, "steps": [{**STEP, "rowz": 1}]}, "steps[0]: 'rowz' is unknown"),
        ({"vars": {"lair": None}, "steps": [STEP]}, "'${layer}' is not declared"),
        ({"vars": {"layer": "fc"}, "steps": [{**STEP, "op": "widn"}]}, "did you mean 'widen'"),
        ({"vars": {"layer": None}, "steps": [{**STEP, "op": "widn"}]}, "did you mean 'widen'"),
        ({"steps": 3}, "steps: 3 is not of type array"),
    ],
)
def test_what_is_wrong_is_told_with_its_file(text: Any, problem: str, tmp_path: Path) -> None:
    write(tmp_path / "good.json", vars={"layer": None}, steps=[STEP])
    bad = write(tmp_path / "deeper" / "bad.json", **text)
    found = validate(tmp_path)
    assert found.exit_code == 2
    assert "good.json: valid, 1 step, needs --set layer" in found.stdout
    assert found.stderr.startswith(f"{bad}: ")
    assert problem in found.stderr


def test_a_broken_file_is_no_recipe_to_pass_over(tmp_path: Path) -> None:
    write(tmp_path / "good.json", steps=[])
    (tmp_path / "broken.json").write_text('{"surgeon": 1, ')
    found = validate(tmp_path)
    assert (found.exit_code, "broken.json" in found.stderr) == (2, True)


def test_other_json_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "good.json", steps=[])
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    write(tmp_path / ".hidden" / "old.json", steps=7)
    found = validate(tmp_path)
    assert (found.exit_code, found.stdout.count("\n")) == (0, 1)


def test_a_folder_without_recipes_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = validate(tmp_path)
    assert (found.exit_code, "there is no recipe in it" in found.stderr) == (2, True)


def test_variables_are_given_to_all_that_declare_them(tmp_path: Path) -> None:
    write(tmp_path / "one.json", vars={"layer": None}, steps=[STEP])
    write(tmp_path / "two.json", steps=[])
    assert "needs" not in validate(tmp_path, "--set", "layer=fc").stdout
    assert validate(tmp_path, "--set", "lair=fc").exit_code == 2


def test_as_json_every_file_has_its_problems(tmp_path: Path) -> None:
    write(tmp_path / "a.json", steps=[])
    write(tmp_path / "b.json", steps=[{"op": "nothing"}])
    found = validate(tmp_path, "--json")
    document = json.loads(found.stdout)
    assert (found.exit_code, document["exit_code"], len(document["errors"])) == (2, 2, 1)
    assert [bool(row["problems"]) for row in document["recipes"]] == [False, True]


@pytest.mark.parametrize("several", [False, True])
def test_a_class_that_only_the_training_run_can_check_is_noted(
    tmp_path: Path, several: bool
) -> None:
    training = {"optimizer": {"class": "lion.Lion"}, "stages": [{"name": "a"}]}
    write(tmp_path / "a.json", steps=[{**STEP, "target": "fc"}], training=training)
    place = tmp_path if several else tmp_path / "a.json"
    assert "lion.Lion is none of torch.optim's classes" in validate(place).stderr
    (row,) = json.loads(validate(place, "--json").stdout)["recipes"]
    assert row["notes"][0].startswith("lion.Lion is none")
