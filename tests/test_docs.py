"""What README and docs say is so: parts are fresh, commands and snippets run, links lead."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from surgeon import recipe, samples
from surgeon.cli.commands import commands
from surgeon.recipe import validation
from surgeon.recipe.editor_schema import recipe_schema
from tests.docs import PAGES, PARTS, ROOT, TORCH_TABLE, generated, torch_table, written
from tests.network import write_tokenizer

TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
README = TEXTS["README.md"]
WRITTEN = {name: written(text) for name, text in TEXTS.items()}
# Their blocks are run by tests of their own: training/test_frameworks.py, the library's, remote's,
# cluster's.
ELSEWHERE = {"docs/frameworks.md", "docs/library.md", "docs/remote.md", "docs/cluster.md"}
# They set up environments or take minutes; `make` itself is what CI calls.
NOT_RUN = ("pip", "make")
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)```", flags=re.S)
# Loads once for all; the schema is large.
SCHEMA = recipe_schema()


def network(classes: int) -> torch.nn.Module:
    """The network of the first screen, whose weights have the samples' names and shapes."""
    torch.manual_seed(0)
    linear = torch.nn.Linear
    body = torch.nn.Sequential(linear(64, 128), torch.nn.ReLU(), linear(128, 64), torch.nn.ReLU())
    return torch.nn.ModuleDict({"body": body, "fc": linear(64, classes)})


def write_model_folder(folder: Path) -> None:
    """A folder whose rows have tokens."""
    folder.mkdir()
    write_tokenizer(folder, "?", "a", "b")
    save_file({"embed_tokens.weight": torch.ones(4, 2)}, folder / "model.safetensors")


def stepped(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return optimizer


class Reader:
    """Somebody who goes through a page from top to bottom, in a folder of their own."""

    def __init__(self, page: str, folder: Path) -> None:
        self.folder, self.blocks = folder, BLOCK.findall(WRITTEN[page])
        self.ran: list[str] = []
        model = network(7 if page == "docs/optimizer-state.md" else 8)
        self.names: dict[str, Any] = {"torch": torch, "model": model, "optimizer": stepped(model)}
        self.is_package = False
        first, *_ = BLOCK.findall(README)
        (folder / "recipe.json").write_text(first[2])
        torch.save(network(7).state_dict(), folder / "in.pt")
        samples.main(folder)
        write_model_folder(folder / "model")
        if page != "README.md":
            self.command("surgeon apply recipe.json in.pt out.safetensors")
        for file, _, text in self.blocks:
            if file:
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_text(text)
                self.is_package |= file == "pyproject.toml"
        if self.is_package:
            self.install((folder / "pyproject.toml").read_text())

    def install(self, project: str) -> None:
        """Put what an installer makes of a project beside it."""
        name, version = (
            re.search(rf'^{k} = "(.*)"', project, re.M)[1] for k in ("name", "version")
        )  # type: ignore[index]
        about = self.folder / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        entries = project.partition('"surgeon.ops"]\n')[2].replace('"', "")
        (about / "entry_points.txt").write_text(f"[surgeon.ops]\n{entries}")

    def read(self) -> None:
        for file, language, text in self.blocks:
            if language == "sh":
                for line in text.splitlines():
                    self.command(line)
            elif language == "console":
                for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, flags=re.M):
                    assert self.command(command).startswith(shown.partition("...")[0])
            elif language == "python" and not file:
                exec(imported(text), self.names)

    def command(self, line: str) -> str:
        """Run a line, which says in its comment if its exit code is not 0; return the answer."""
        words = shlex.split(line, comments=True)
        self.ran.append(line)
        if not words or words[0] in NOT_RUN:
            require_known(words)
            return ""
        words, file = (words[:-2], words[-1]) if ">" in words else (words, "")
        expected = int((re.search(r"# .*exit code (\d)", line) or [0, 0])[1])
        code, answer, problem = self.run(words)
        assert code == expected, f"{line}: {code}\n{answer}\n{problem}"
        if file:
            (self.folder / file).write_text(answer)
        return answer

    def run(self, words: list[str]) -> tuple[int, str, str]:
        if words[0] == "surgeon" and not self.is_package:
            result = CliRunner().invoke(commands, words[1:])
            return result.exit_code, result.stdout, result.stderr
        given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        program, *rest = words[len(given) :]
        assert program == "surgeon" or rest[:2] == ["-m", "surgeon.samples"]
        command = [sys.executable, *(["-m", "surgeon"] if program == "surgeon" else []), *rest]
        path = os.pathsep.join([str(self.folder), str(ROOT), *sys.path])
        environment = {**os.environ, **given, "PYTHONPATH": path}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout, done.stderr


def imported(text: str) -> str:
    """Return a snippet with the import first that a comment in it names."""
    found = re.search(r"# (from \S+ import \S+)$", text, flags=re.M)
    return f"{found[1]}\n{text}" if found else text


def require_known(words: list[str]) -> None:
    """What is not run here exists at least: a target of make, an extra of the package."""
    match words:
        case ["make", target]:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text()
        case ["pip", "install", what]:
            extras = re.findall(r"\w+", what.partition("[")[2])
            assert all(f"\n{e} = [" in (ROOT / "pyproject.toml").read_text() for e in extras)
        case _:
            assert not words, f"what to do with {words}?"


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Reader:
    monkeypatch.chdir(tmp_path)
    # What a page has surgeon run.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return Reader(request.param, tmp_path)


RUN = [name for name in TEXTS if name not in ELSEWHERE]


@pytest.mark.parametrize("reader", RUN, indirect=True, ids=RUN)
def test_commands_and_snippets_run(reader: Reader) -> None:
    reader.read()


@pytest.mark.parametrize("reader", ["README.md"], indirect=True)
def test_the_readme_does_what_it_says(reader: Reader) -> None:
    reader.read()
    old, new = load_file("in.safetensors"), load_file("wider.safetensors")
    assert new["fc.weight"].shape == (8, 64)
    assert torch.equal(new["fc.weight"][:7], old["fc.weight"])
    assert [stage.name for stage in reader.names["run"].stages] == ["warm-up", "joint"]
    base, merged = load_file("base.safetensors"), load_file("merged.safetensors")
    share = (merged["lm_head.weight"] != base["lm_head.weight"]).float().mean()
    assert 0.3 < share < 0.6  # 30 % of each of two models
    words = {line.split()[1] for line in reader.ran if line.startswith("surgeon ")}
    assert words >= {"recipes", "inspect", "plan", "apply", "diff", "verify", "compare"}


def test_the_first_screen_starts_its_stage(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader("README.md", tmp_path)
    reader.blocks = reader.blocks[:3]
    reader.read()
    rates = {group["name"]: group["lr"] for group in reader.names["optimizer"].param_groups}
    assert rates == {"new": 0.1}


@pytest.mark.parametrize("name", TEXTS)
def test_generated_parts_are_fresh(name: str) -> None:
    assert generated(TEXTS[name]) == TEXTS[name], "run `make docs`"


@pytest.mark.parametrize("name", PARTS)
def test_every_generated_part_has_its_place(name: str) -> None:
    assert sum(f"<!-- {name} -->" in text for text in TEXTS.values()) == 1


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {kind for text in WRITTEN.values() for kind in re.findall(r"^```(\w*)$", text, re.M)}
    assert kinds <= {"", "json", "sh", "console", "python", "toml", "yaml"}
    for text in WRITTEN.values():
        fences = re.findall(r"^```", text, flags=re.M)
        assert len(fences) == 2 * len(BLOCK.findall(text))
        loose = {file for file, kind, _ in BLOCK.findall(text) if kind in ("toml", "yaml")}
        assert "" not in loose


def json_blocks(*, with_files: bool = False) -> Iterator[Any]:
    """Yield all but those of the page whose recipe needs the package beside it.

    Commands of the page run those that are files.
    """
    for name in sorted(WRITTEN.keys() - {"docs/writing-an-op.md"}):
        text = WRITTEN[name]
        found = [
            block
            for file, kind, block in BLOCK.findall(text)
            if kind == "json" and (with_files or not file)
        ]
        for number, block in enumerate(found):
            yield pytest.param(block, id=f"{name}-{number}")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that has the layers which the pages' recipes speak of."""
    folder = tmp_path_factory.mktemp("world") / "everything"
    folder.mkdir()
    layers = ("embeddings", "layer4", "encoder.layers.0", "encoder.layers.1", "classifier")
    tensors = {f"{layer}.weight": torch.zeros(7, 4) for layer in layers}
    tensors |= {f"{layer}.bias": torch.zeros(7) for layer in layers} | network(7).state_dict()
    save_file(tensors, folder / "model.safetensors")
    labels = {"id2label": {i: f"LABEL_{i}" for i in range(7)}, "hidden": 4, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(labels))
    write_tokenizer(folder, "?", "a", "b")
    return folder


@pytest.mark.parametrize("text", list(json_blocks()))
def test_json_plans(text: str, everything: Path, tmp_path: Path) -> None:
    whole = json.loads(text if text.startswith("{") else f'{{"surgeon": 1, "steps": [], {text}}}')
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(whole))
    words = ["plan", path, everything, *[everything for _ in whole.get("models", ())]]
    result = CliRunner().invoke(commands, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr


def test_files_of_the_pages_are_used() -> None:
    for text in WRITTEN.values():
        files = {file for file, _, _ in BLOCK.findall(text)} - {"", "pyproject.toml"}
        rest = re.sub(r"<!-- file: .* -->", "", text)
        assert all(file.removesuffix(".py") in rest for file in files)


@pytest.mark.parametrize("text", list(json_blocks(with_files=True)))
def test_json_is_a_valid_recipe_or_a_part_of_one(text: str, tmp_path: Path) -> None:
    if text.startswith("["):
        assert all(isinstance(name, str) for name in json.loads(text))
        return
    whole = text if text.startswith("{") else f'{{"surgeon": 1, "steps": [], {text}}}'
    assert not list(validation.problems_of(json.loads(whole), SCHEMA, ""))
    path = tmp_path / "recipe.json"
    path.write_text(whole)
    unset = {k: "fc" for k, v in json.loads(whole).get("vars", {}).items() if v is None}
    assert recipe.load(str(path), unset).about == json.loads(whole).get("about", "")


def keys(schema: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of a schema and of what lies in it."""
    for name, value in schema.get("properties", {}).items():
        yield name
        yield from keys(value)
    for part in {"else", "items"} & schema.keys():
        yield from keys(schema[part])


@pytest.mark.parametrize(
    ("part", "page"), [("training", "docs/manifest.md"), ("output", "docs/recipes.md")]
)
def test_every_key_is_explained(part: str, page: str) -> None:
    words = set(re.findall(r"`(\w+)`", WRITTEN[page])) | set(re.findall(r'"(\w+)":', TEXTS[page]))
    found = set(keys(SCHEMA["properties"][part]))
    assert len(found) > 3
    assert found <= words


def test_every_option_that_is_named_exists() -> None:
    known = {o for c in commands.commands.values() for p in c.params for o in p.opts}
    known |= {o for p in commands.params for o in p.opts} | {"--help", "--strict"}  # and mypy's
    known |= {"--host", "--port", "--nworkers", "--nthreads", "--no-dashboard"}  # Dask's
    named = {
        option
        for text in WRITTEN.values()
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
    }
    assert len(named) > 10
    assert named <= known
    spoken = {word for t in WRITTEN.values() for word in re.findall(r"`surgeon ([a-z]+)", t)}
    assert "ops" in spoken
    assert spoken <= commands.commands.keys()


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


LINKING = {str(p.relative_to(ROOT)): p for p in [*PAGES, *ROOT.glob("examples/*/README.md")]}


@pytest.mark.parametrize("name", LINKING)
def test_links_lead_somewhere(name: str) -> None:
    prose = BLOCK.sub("", LINKING[name].read_text())
    for target in re.findall(r"\]\((?!https://)([^)]*)\)", prose):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(path.read_text()), f"{name}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]*)\)", README)}
    assert {name for name in TEXTS if name != "README.md"} <= linked


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_table_of_torch_classes_is_fresh() -> None:
    text = torch_table()
    if (
        TORCH_TABLE.read_text().partition("TORCH =")[2].partition("\n")[0]
        != (text.partition("TORCH =")[2].partition("\n")[0])
    ):
        pytest.skip("written with another version of torch")
    assert TORCH_TABLE.read_text() == text
