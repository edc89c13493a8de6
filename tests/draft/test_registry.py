"""Ops and merges of other packages, and those of a user's own module."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from surgeon.base.errors import UsageError
from surgeon.draft.registry import OPS, op
from surgeon.recipe.recipe import load
from tests.network import read, write, write_recipe

# An op and a merge, as the author of a package writes them.
SOFTENING = '''
"""Softer models."""

from functools import partial
from typing import Annotated

import numpy as np

from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import Blockwise
from surgeon.merges.shared import Arithmetic, Varying, merge


@op(group="values", example={"target": "encoder.1.weight"})
def soften(draft: Draft, *, target: Target, by: Annotated[float, "the divisor"] = 2.0) -> None:
    """Divide tensors by a number."""
    made = {}
    for name in draft.select(target):
        made[name] = Blockwise(draft.spec(name), partial(_divided, by), (draft[name],))
    draft.replace(made)


def _divided(by, blocks, statistics, out):
    return np.divide(blocks[0], by, out=out)


@merge(example={"models": ["other"]}, paper="https://example.org/lean", models=1)
def lean(*, share: Annotated[float, Varying(0, 1), "how far to go"] = 0.25) -> Arithmetic:
    """Go a part of the way to another model."""

    def combine(blocks, statistics, out):
        return np.add(blocks[0] * (1 - share), blocks[1] * share, out=out)

    return Arithmetic(combine)
'''
ENTRIES = {"soften": "softening", "lean": "softening"}


def install(folder, entries=ENTRIES, code=SOFTENING, package="softening"):
    """Put a package where an installer would: a module, and a .dist-info folder beside it."""
    (folder / f"{package}.py").write_text(code)
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name, module in entries.items()]
    (about / "entry_points.txt").write_text("\n".join(["[surgeon.ops]", *lines, ""]))


def surgeon(folder, *words):
    command = [sys.executable, "-m", "surgeon", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def given(folder):
    """Write two models and a recipe that uses an op and a merge of the package."""
    models = [{"fc.weight": torch.randn(3, 4)} for _ in range(2)]
    paths = [write(folder / f"{name}.safetensors", m) for name, m in zip("ab", models, strict=True)]
    steps = [{"op": "soften", "target": "fc", "by": 4}, {"op": "lean", "models": ["b"]}]
    return models, write_recipe(folder, *steps, models={"b": str(paths[1])}), paths[0]


def assert_softened(models, output):
    a, b = (model["fc.weight"].double().numpy() for model in models)
    expected = (a / 4).astype(np.float32).astype(np.float64) * 0.75 + b * 0.25
    np.testing.assert_array_equal(read(output)["fc.weight"].numpy(), expected.astype(np.float32))


def test_ops_of_an_installed_package_work_in_recipes(tmp_path):
    install(tmp_path)
    models, recipe, source = given(tmp_path)
    output = tmp_path / "out.safetensors"
    done = surgeon(tmp_path, "apply", recipe, source, output)
    assert done.returncode == 0, done.stderr
    assert_softened(models, output)


def test_pages_of_other_packages_ops_say_their_origin(tmp_path):
    install(tmp_path)
    assert "softening 1.0 (softening)" in surgeon(tmp_path, "ops", "lean").stdout


# Of packages called by the op that they offer: the code, and what is wrong with it.
FAULTS = {
    "broken": (
        "import no_such_module",
        "op 'broken' of broken 1.0: importing broken fails: ModuleNotFoundError: No module named "
        "'no_such_module'",
    ),
    "empty": ("", "op 'empty' of empty 1.0: empty declares no op of that name"),
    "greedy": (
        SOFTENING.replace("def soften", "def greedy").replace("def lean", "def slerp"),
        "op 'slerp' of greedy: surgeon.merges.slerp declares an op of that name; rename one",
    ),
    "loud": (
        SOFTENING.replace("def soften", "def loud").replace("by: A", "about: A").split("@merge")[0],
        "op 'loud': every step has 'about' already",
    ),
    "soften": (
        "",
        "op 'soften' of soften 1.0: softening 1.0 offers an op of that name too; uninstall one",
    ),
}


def test_packages_that_cannot_be_used_are_said(tmp_path):
    for name, (code, _) in FAULTS.items():
        install(tmp_path, {name: name}, code, name)
    install(tmp_path, {**ENTRIES, "widen": "softening"})
    _, _, source = given(tmp_path)
    recipe = write_recipe(tmp_path, *({"op": name, "target": "fc"} for name in FAULTS))
    done = surgeon(tmp_path, "plan", recipe, source)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"recipe.json: steps[{i}].op: {problem}" for i, (_, problem) in enumerate(FAULTS.values())
    ]


def test_ops_lists_those_of_other_packages_and_what_cannot_be_used(tmp_path):
    install(tmp_path, {**ENTRIES, "widen": "softening"})
    install(tmp_path, {"empty": "empty"}, "", "empty")
    done = surgeon(tmp_path, "ops", "--json")
    origins = {row["name"]: row["origin"] for row in json.loads(done.stdout)}
    assert {n for n, origin in origins.items() if origin == "softening 1.0"} == {"soften", "lean"}
    assert set(origins.values()) == {"surgeon", "softening 1.0"}
    assert sorted(done.stderr.splitlines()) == [
        "note: op 'empty' of empty 1.0: empty declares no op of that name",
        "note: op 'widen' of softening 1.0: surgeon has an op of that name",
    ]


@pytest.mark.slow
def test_ops_of_a_package_that_pip_installs_work(tmp_path):
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    (project / "softening.py").write_text(SOFTENING)
    lines = [f'{name} = "{module}"' for name, module in ENTRIES.items()]
    (project / "pyproject.toml").write_text(
        '[project]\nname = "softening"\nversion = "1.0"\n[tool.setuptools]\n'
        'py-modules = ["softening"]\n[project.entry-points."surgeon.ops"]\n' + "\n".join(lines)
    )
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*pip, "--target", str(site), str(project)], check=True, capture_output=True)
    models, recipe, source = given(tmp_path)
    output = tmp_path / "out.safetensors"
    assert surgeon(site, "apply", recipe, source, output).returncode == 0
    assert_softened(models, output)


@pytest.fixture
def _registry_as_it_was(monkeypatch):
    monkeypatch.setattr(OPS, "_declared", dict(OPS._declared))


@pytest.mark.usefixtures("_registry_as_it_was")
def test_ops_of_a_users_module_count_at_once(tmp_path):
    @op(group="values", example={})
    def forget(draft) -> None:
        """Do nothing."""

    steps = load(str(write_recipe(tmp_path, {"op": "forget"})), {}).steps
    assert [step.op for step in steps] == ["forget"]
    assert OPS.origin("forget") == __name__
    op(group="values", example={})(forget)  # a cell that is run again


@pytest.mark.usefixtures("_registry_as_it_was")
@pytest.mark.parametrize(("name", "group"), [("widen", "size"), ("forget", "sizes")])
def test_ops_of_a_users_module_are_refused(name, group):
    def rewrite(draft) -> None:
        """Do nothing."""

    rewrite.__name__ = name
    with pytest.raises(UsageError, match=f"^op '{name}'"):
        op(group=group, example={})(rewrite)
