"""What is published: its name, what hints tell to install, and what is in the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import surgeon
from surgeon.base.ready_made import ready_made
from tests.docs import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = PROJECT["project"]["name"]
FOLDERS = ("surgeon", "docs", "examples", "recipes", "tests", "benchmarks", ".github")
SUFFIXES = {".py", ".md", ".yml", ".yaml", ".toml", ".json", ""}


def texts() -> dict[str, str]:
    files = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*")]
    files += [p for p in ROOT.iterdir() if p.is_file()]
    return {str(p.relative_to(ROOT)): p.read_text() for p in files
            if p.is_file() and p.suffix in SUFFIXES and p.name != "test_packaging.py"
            and "__pycache__" not in p.parts}  # fmt: skip


def test_no_hint_installs_a_strangers_package() -> None:
    told = {name: re.findall(r"""pip3? install [^`\n]*?['" ]surgeon(?![\w-]|/)[^\s]*""", text)
            for name, text in texts().items()}  # fmt: skip
    assert not {name: found for name, found in told.items() if found}
    extras = {e for text in texts().values() for e in re.findall(rf"{NAME}\[([\w,]+)\]", text)}
    assert {"picture", "mergekit"} <= extras
    assert extras <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_changelog_has_the_version_with_its_date() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert titles[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(surgeon.__version__)} \(\d{{4}}-\d\d-\d\d\)", titles[1])


def test_the_changelog_names_no_dependency_that_is_not_there() -> None:
    named = re.findall(r"[Dd]ependency: (\w+)", (ROOT / "CHANGELOG.md").read_text())
    known = " ".join(PROJECT["project"]["dependencies"])
    assert not [name for name in named if name not in known]


def test_workflows_are_yaml_and_name_files_that_there_are() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["jobs"]


EXCERPT = re.compile(r"<!-- of: (\S+) -->\n```python\n(.*?)```", flags=re.S)


def test_the_examples_of_contributing_are_in_the_files_that_they_are_of() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(EXCERPT.findall(text)) == text.count("```python")
    for file, excerpt in EXCERPT.findall(text):
        assert excerpt in (ROOT / file).read_text()
    for target in re.findall(r"(?:\]\(|`)((?:surgeon|tests|docs)/[\w/.-]+\.\w+)", text):
        assert (ROOT / target).exists() or "NAME" in target, target
    targets = re.findall(r"make (\w+)", text)
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)


@pytest.mark.slow
def test_what_is_built_can_be_published_and_runs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    words = ["git", "checkout-index", "-a", f"--prefix={source}/"]
    if subprocess.run(words, cwd=ROOT, check=False).returncode:
        pytest.skip("no git clone")
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(source)]
    subprocess.run(build, check=True, timeout=600, capture_output=True)
    made = sorted((tmp_path / "dist").iterdir())
    assert [p.suffix for p in made] == [".whl", ".gz"]
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, made)]
    subprocess.run(check, check=True, timeout=60, capture_output=True)
    assert made[0].name.startswith(f"surgeon_checkpoints-{surgeon.__version__}-py3-none-")
    with zipfile.ZipFile(made[0]) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "installed")
    assert {f"surgeon/recipes/{name}.json" for name in ready_made()} <= names
    assert {"surgeon/py.typed", "surgeon/model_folder/architectures.bin"} <= names
    done = subprocess.run(
        [sys.executable, "-m", "surgeon", "validate", "ties"], cwd=tmp_path / "installed",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "ties.json: valid, 1 step\n", done.stderr
