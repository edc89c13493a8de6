"""The pipelines that we show run step by step; each breaks where something is wrong, and there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs import ROOT

EXAMPLE = ROOT / "examples" / "ci"
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example, and `surgeon` and `python` as a runner has them on its path."""
    made = tmp_path / "repository"
    tracked = shutil.ignore_patterns("checkpoints", "grown.*", "plan.json", "apply.json")
    shutil.copytree(EXAMPLE, made, ignore=tracked)
    (tmp_path / "bin").mkdir()
    for name, words in {"surgeon": "-m surgeon ", "python": ""}.items():
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        program.chmod(0o755)
    return made


def sh(script: str, folder: Path, **given: str) -> Done:
    """Run a step as GitHub's runners do."""
    environment = {
        **os.environ, **given,
        "PATH": os.pathsep.join([str(folder.parent / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def of_github() -> dict[str, str]:
    document = yaml.safe_load((EXAMPLE / ".github/workflows/surgery.yml").read_text())
    return {step["name"]: step["run"] for step in document["jobs"]["surgery"]["steps"]
            if "run" in step and step["name"] != "install"}  # fmt: skip


def of_gitlab() -> dict[str, str]:
    return {line: line for line in yaml.safe_load((EXAMPLE / ".gitlab-ci.yml").read_text())
            ["surgery"]["script"]}  # fmt: skip


def run_until_it_fails(
    steps: dict[str, str], folder: Path, before: dict[str, Callable[[Path], None]]
) -> tuple[str, int]:
    """Return the step that failed and its exit code, ("", 0) where none did."""
    for name, script in steps.items():
        if name in before:
            before[name](folder)
        done = sh(script, folder)
        if done.returncode:
            return name, done.returncode
    return "", 0


def misspell(folder: Path) -> None:
    recipe = folder / "recipes" / "grow.json"
    recipe.write_text(recipe.read_text().replace('"rows"', '"row"'))


def expect_another_shape(folder: Path) -> None:
    recipe = folder / "recipes" / "grow.json"
    recipe.write_text(recipe.read_text().replace("[7, 64]", "[9, 64]"))


def name_another_layer(folder: Path) -> None:
    recipe = folder / "recipes" / "grow.json"
    recipe.write_text(recipe.read_text().replace('"${layer}", "rows"', '"head", "rows"'))


def write_nan(folder: Path) -> None:
    """Into the classifier's first value; the file's last bytes are its smallest tensors."""
    flip(folder / "checkpoints" / "in.safetensors", b"\x00\x00\xc0\x7f", "fc.weight")


def damage(folder: Path) -> None:
    flip(folder / "grown.safetensors", b"\x01\x02\x03\x04", "body.0.weight")


def flip(file: Path, value: bytes, name: str) -> None:
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[:8], "little")
    at = 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
    data[at : at + 4] = value
    file.write_bytes(data)


@pytest.mark.slow
def test_the_pipeline_runs(folder: Path) -> None:
    assert run_until_it_fails(of_github(), folder, {}) == ("", 0)
    assert json.loads((folder / "verify.json").read_text())["verified"] is True
    assert json.loads((folder / "plan.json").read_text())["tensors"]["fc.weight"]["shape"] == [
        8,
        64,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "breaking", "code"),
    [
        ("validate", misspell, 2),
        ("plan", expect_another_shape, 1),
        ("plan", name_another_layer, 4),
        ("apply", write_nan, 1),
        ("verify", damage, 1),
    ],
)
def test_the_pipeline_fails_where_something_is_wrong(
    step: str, breaking: Callable[[Path], None], code: int, folder: Path
) -> None:
    assert run_until_it_fails(of_github(), folder, {step: breaking}) == (step, code)


@pytest.mark.slow
def test_an_invariant_of_ones_own_fails_the_pipeline(folder: Path) -> None:
    steps = of_github()
    run_until_it_fails(steps, folder, {})
    damage(folder)
    assert sh(steps["old rows are as they were"], folder).returncode == 1


def test_both_pipelines_have_the_same_steps() -> None:
    assert list(of_github().values()) == list(of_gitlab().values())


# the action


def action() -> Any:
    return yaml.safe_load((ROOT / "action.yml").read_text())


def run_action(folder: Path, **inputs: str) -> dict[str, Done]:
    """Run the action's steps up to the one that fails; `${{ inputs.x }}` only fills variables."""
    document = action()
    values = {name: str(row.get("default", "")) for name, row in document["inputs"].items()}
    values |= {"install": "none", **inputs}
    done: dict[str, Done] = {}
    for step in document["runs"]["steps"]:
        if "run" not in step or step["name"] == "install":
            continue
        assert "${{" not in step["run"]
        given = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text)
                 for k, text in step["env"].items()}  # fmt: skip
        outputs = str(folder / "github-output")
        done[step["name"]] = sh(step["run"], folder, GITHUB_OUTPUT=outputs, **given)
        if done[step["name"]].returncode:
            break
    return done


@pytest.mark.slow
def test_the_action_plans_applies_and_verifies(folder: Path) -> None:
    sh("python -m surgeon.samples .", folder)
    done = run_action(
        folder, recipe="ties", input="base.safetensors", output="merged of two.safetensors",
        models="chat.safetensors\ncode.safetensors\n", set="density=0.5\nweights=[1, 0.5]",
    )  # fmt: skip
    assert {name: row.returncode for name, row in done.items()} == {
        "plan": 0, "apply": 0, "verify": 0, "report": 0
    }, list(done.values())[-1].stderr  # fmt: skip
    reports = {path.name for path in (folder / "surgeon-reports").iterdir()}
    assert reports == {"plan.json", "apply.json", "verify.json", "manifest.json", "report.html"}
    assert (folder / "github-output").read_text() == "manifest=merged of two.manifest.json\n"


def test_the_action_is_shown_with_inputs_that_it_has() -> None:
    shown = (EXAMPLE / "README.md").read_text().partition("    - uses:")[2]
    inputs = re.findall(r"^ {8}(\w+):", shown, flags=re.M)
    known = action()["inputs"]
    assert set(inputs) <= known.keys()
    assert {name for name, row in known.items() if row.get("required")} <= set(inputs)


def test_the_action_runs_nothing_that_its_inputs_say(folder: Path) -> None:
    done = run_action(folder, recipe="$(touch ran)", input="`touch ran`", output="; touch ran")
    assert list(done) == ["plan"]
    assert not (folder / "ran").exists()


@pytest.mark.slow
def test_hooks_call_commands_that_there_are(folder: Path) -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    local = yaml.safe_load((EXAMPLE / ".pre-commit-config.yaml").read_text())
    for hook in [*hooks, *local["repos"][0]["hooks"]]:
        assert re.search(hook["files"], "recipes/grow.json")
        assert sh(f"{hook['entry']} recipes/grow.json", folder).returncode == 0
        misspell(folder)
        assert sh(f"{hook['entry']} recipes/grow.json", folder).returncode == 2
        misspelt = folder / "recipes" / "grow.json"
        misspelt.write_text(misspelt.read_text().replace('"row"', '"rows"'))
