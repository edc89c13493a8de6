"""What the README says is so: its tables are fresh, its recipes work, its commands show that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surgeon import recipe
from surgeon.recipe import validation
from surgeon.recipe.editor_schema import recipe_schema
from tests.docs import PARTS, ROOT, TORCH_TABLE, generated, torch_table

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def network(classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    linear = torch.nn.Linear
    body = torch.nn.Sequential(linear(64, 128), torch.nn.ReLU(), linear(128, 64), torch.nn.ReLU())
    return torch.nn.ModuleDict({"body": body, "fc": linear(64, classes)})


def surgeon(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "surgeon", *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=120
    ).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The first screen's files, as the README has them."""
    (tmp_path / "recipe.json").write_text(blocks("json")[0])
    torch.save(network(7).state_dict(), tmp_path / "in.pt")
    return tmp_path


def test_generated_parts_are_fresh() -> None:
    assert generated(README) == README, "run `make docs`"


@pytest.mark.parametrize("name", PARTS)
def test_every_generated_part_has_its_place(name: str) -> None:
    assert f"<!-- {name} -->" in README


@pytest.mark.parametrize("text", [b for b in blocks("json") if '"steps"' in b])
def test_recipes_of_the_readme_are_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    assert recipe.load(str(path), {}).steps
    assert not list(validation.problems_of(json.loads(text), recipe_schema(), ""))


def test_training_sections_of_the_readme_are_valid() -> None:
    (section,) = [b for b in blocks("json") if b.startswith('"training"')]
    text = json.loads(f'{{"surgeon": 1, "steps": [], {section}}}')
    assert not list(validation.problems_of(text, recipe_schema(), ""))


def test_first_screen_shows_what_plan_prints(folder: Path) -> None:
    shown = blocks("console")[0].partition("plan recipe.json in.pt\n")[2].partition("...")[0]
    assert surgeon(folder, "plan", "recipe.json", "in.pt").startswith(shown)


def test_first_screen_runs_to_the_optimizer(folder: Path) -> None:
    surgeon(folder, "apply", "recipe.json", "in.pt", "out.safetensors")
    model = network(8)
    model.load_state_dict(load_file(folder / "out.safetensors"), strict=True)
    code = "from surgeon.training import Manifest\n" + blocks("python")[0]
    names: dict[str, object] = {"model": model}
    exec(code.replace("out.manifest.json", str(folder / "out.manifest.json")), names)
    rates = {group["name"]: group["lr"] for group in names["optimizer"].param_groups}  # type: ignore[attr-defined]
    assert rates == {"new": 0.1}


def test_a_first_run_works_as_written(folder: Path) -> None:
    commands = re.findall(r"^surgeon ([^#\n]*)", blocks("sh")[1], flags=re.M)
    results = {}
    for command in commands:
        words = [sys.executable, "-m", "surgeon", *command.split()]
        results[command.split()[0]] = subprocess.run(
            words, cwd=folder, capture_output=True, timeout=120, check=False
        ).returncode
    assert results == dict.fromkeys(results, 0) | {"diff": 1}
    assert set(results) == {"recipes", "inspect", "plan", "apply", "diff", "verify"}


def test_the_python_loop_runs(folder: Path) -> None:
    surgeon(folder, "apply", "recipe.json", "in.pt", "out.safetensors")
    names: dict[str, object] = {"model": network(8)}
    exec(blocks("python")[1].replace('"out.', f'"{folder}/out.'), names)
    assert names["stage"].name == "joint"  # type: ignore[attr-defined]


def test_the_merge_of_the_readme_adds_what_models_agree_on(tmp_path: Path) -> None:
    (text,) = (block for block in blocks("json") if '"into"' in block)
    (tmp_path / "merge.json").write_text(text)
    names = [f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("attn.q", "mlp.up")]
    for seed, model in enumerate(("base", "chat", "code")):
        torch.manual_seed(seed)
        state = {name: torch.randn(4, 4) for name in [*names, "lm_head.weight"]}
        torch.save(state, tmp_path / f"{model}.pt")
    surgeon(tmp_path, "apply", "merge.json", "base.pt", "chat.pt", "code.pt", "out.safetensors")
    old, new = torch.load(tmp_path / "base.pt"), load_file(tmp_path / "out.safetensors")
    steps = [new[name] - old[name] for name in names]
    assert all(0 < (step != 0).sum() <= 8 for step in steps)  # 4 of each of two models
    torch.testing.assert_close(new["lm_head.weight"], old["lm_head.weight"], rtol=0, atol=0)


def test_table_of_torch_classes_is_fresh() -> None:
    text = torch_table()
    if (
        TORCH_TABLE.read_text().partition("TORCH =")[2].partition("\n")[0]
        != (text.partition("TORCH =")[2].partition("\n")[0])
    ):
        pytest.skip("written with another version of torch")
    assert TORCH_TABLE.read_text() == text
