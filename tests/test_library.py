"""`import surgeon`: the same bytes and facts as the command line, imported when used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import surgeon
from surgeon.cli.commands import commands
from surgeon.formats.files import InputFile
from tests.docs import ROOT
from tests.network import TIES, assert_identical, example_tensors, read, write, write_recipe

STEPS: list[dict[str, Any]] = [
    {"op": "widen", "target": "classifier", "rows": "${rows}", "init": "normal"},
    {"op": "scale", "target": "encoder.0.weight", "by": 0.3},
    {"op": "average", "models": ["other"], "target": "encoder.1.weight"},
    {"op": "cast", "target": "classifier.bias", "dtype": "bfloat16"},
]
REST = {"vars": {"rows": 1}, "models": {"other": None}}
DOCUMENT = {"surgeon": 1, "steps": STEPS, **REST}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: in.safetensors, other.safetensors, recipe.json."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.safetensors", example_tensors(), TIES)
    write(tmp_path / "other.safetensors", example_tensors(1), TIES)
    write_recipe(tmp_path, *STEPS, **REST)
    return tmp_path


def printed(*words: str) -> str:
    return CliRunner().invoke(commands, words).stdout


def document_of(*words: object) -> Any:
    """Return what a command prints with --json, less the name of its schema."""
    found = json.loads(printed(*words, "--json"))
    assert found.pop("$schema").startswith("urn:surgeon:")
    return found


def in_memory(seed: int = 0) -> dict[str, torch.Tensor]:
    """The example network as state_dict() gives it: tied names share storage."""
    tensors = example_tensors(seed)
    return tensors | {alias: tensors[owner].detach() for alias, owner in TIES.items()}


def test_apply_writes_what_the_command_writes(folder: Path) -> None:
    words = ["in.safetensors", "other.safetensors", "cli.safetensors", "--set", "rows=2"]
    document = document_of("apply", "recipe.json", *words)
    done = surgeon.apply(
        "recipe.json", "in.safetensors", "cli.safetensors", models=["other.safetensors"],
        vars={"rows": 2}, force=True,
    )  # fmt: skip
    assert done.as_json() == document
    written = {path: path.read_bytes() for path in (done.output, done.manifest)}
    printed("apply", "recipe.json", *words, "--force")
    assert {path: path.read_bytes() for path in written} == written


def test_a_dict_is_as_good_as_a_file(folder: Path) -> None:
    models = {"other": folder / "other.safetensors"}
    outputs = []
    for number, recipe in enumerate((folder / "recipe.json", DOCUMENT)):
        done = surgeon.apply(
            recipe, Path("in.safetensors"), f"{number}.safetensors", models=models, workers=1
        )
        outputs.append(done.output.read_bytes())
    assert outputs[0] == outputs[1]


def test_plan_says_what_the_command_says(folder: Path) -> None:
    words = ["recipe.json", "in.safetensors", "other.safetensors"]
    planned = surgeon.plan("recipe.json", "in.safetensors", models="other.safetensors")
    assert planned.as_json() == document_of("plan", *words)
    assert f"{planned}\n" == printed("plan", *words)
    assert planned.tensors["classifier.weight"]["shape"] == [8, 8]


def test_looking_says_what_the_commands_say(folder: Path) -> None:
    surgeon.apply({"surgeon": 1, "steps": STEPS[1:2]}, "in.safetensors", "out.safetensors")
    files = ("in.safetensors", "out.safetensors")
    answers = {
        ("inspect", files[0], "encoder.**", "--stats"):
            surgeon.inspect(files[0], "encoder.**", stats=True),
        ("inspect", files[0], "--tree"): surgeon.inspect(files[0], tree=True),
        ("diff", *files): surgeon.diff(*files),
        ("compare", *files): surgeon.compare(*files),
        ("verify", files[1]): surgeon.verify(files[1]),
    }  # fmt: skip
    for words, answer in answers.items():
        assert f"{answer}\n" == printed(*words), words
        assert answer.as_json() == document_of(*words), words


def test_apply_to_torch_gives_the_bits_of_apply(folder: Path) -> None:
    before = {name: tensor.clone() for name, tensor in in_memory().items()}
    given = in_memory()
    found = surgeon.apply_to(given, DOCUMENT, models={"other": in_memory(1)}, vars={"rows": 3})
    surgeon.apply(
        DOCUMENT, "in.safetensors", "out.safetensors", models=["other.safetensors"],
        vars={"rows": 3},
    )  # fmt: skip
    assert_identical(found, read(folder / "out.safetensors"))
    assert_identical(given, before)
    assert found["head.weight"] is found["embed.weight"]
    by_path = surgeon.apply_to(given, DOCUMENT, models=["other.safetensors"], vars={"rows": 3})
    assert_identical(by_path, found)


def test_apply_to_numpy_gives_arrays() -> None:
    weight = np.arange(6, dtype=">f4").reshape(2, 3)
    given = {"a": weight, "b": weight, "t": np.asfortranarray(weight) + 1}
    found = surgeon.apply_to(given, {"surgeon": 1, "steps": [
        {"op": "scale", "target": "a", "by": 2}, {"op": "transpose", "target": "t"}]})  # fmt: skip
    assert all(type(array) is np.ndarray for array in found.values())
    assert found["a"] is found["b"]
    np.testing.assert_array_equal(found["a"], weight * 2)
    np.testing.assert_array_equal(found["t"], (weight + 1).T)


@pytest.mark.parametrize(
    ("state_dict", "steps", "message"),
    [
        ({"a": 3}, [], "state_dict: 'a': is int, expected"),
        ({}, [], "holds nothing"),
        ({"a": np.ones(2), "b": torch.ones(2)}, [], "one kind"),
        ({"a": torch.ones(2, device="meta")}, [], "without plain values"),
        ({"a": torch.ones(2).to_sparse()}, [], "without plain values"),
        ({"a": np.ones(2)}, [{"op": "cast", "target": "a", "dtype": "bfloat16"}], "BF16, which"),
        ({"a": np.ones(2)}, [{"op": "expect", "target": "a", "shape": [3]}], "expect"),
        ({"a": np.ones(2)}, [{"op": "scale", "target": "a", "by": {1, 2}}], "is not JSON"),
    ],
)
def test_apply_to_refuses(state_dict: Any, steps: list[Any], message: str) -> None:
    with pytest.raises(surgeon.SurgeonError, match=message):
        surgeon.apply_to(state_dict, {"surgeon": 1, "steps": steps})


def test_apply_to_looks_at_values_that_a_recipe_expects() -> None:
    recipe = {"surgeon": 1, "steps": [{"op": "expect", "target": "a", "finite": True}]}
    with pytest.raises(surgeon.SurgeonError, match="steps"):
        surgeon.apply_to({"a": np.array([1, np.nan])}, recipe)


def test_open_reads_what_is_asked_for_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []
    real = InputFile.read_into

    def counted(file: InputFile, offset: int, buffer: memoryview) -> None:
        reads.append((offset, len(buffer)))
        real(file, offset, buffer)

    monkeypatch.setattr(InputFile, "read_into", counted)
    header = 8 + int.from_bytes((folder / "in.safetensors").read_bytes()[:8], "little")
    with surgeon.open("in.safetensors") as opened:
        rows = opened["embed.weight"][2:5]
        assert (rows.dtype, rows.shape, len(opened)) == ("BF16", (3, 8), len(in_memory()))
        assert (opened.ties, opened.metadata) == (TIES, {"format": "pt"})
        assert all(offset + size <= max(header, 512) for offset, size in reads)
        reads.clear()
        found = rows.torch()
    assert [size for _, size in reads] == [3 * 8 * 2]
    assert torch.equal(found, example_tensors()["embed.weight"][2:5])
    with pytest.raises(surgeon.SurgeonError, match="is closed"):
        rows.numpy()


def test_open_gives_every_tensor_as_torch_has_it(folder: Path) -> None:
    torch.save(in_memory(), "in.pt")
    for path in ("in.safetensors", "in.pt"):
        with surgeon.open(path) as opened:
            assert_identical({name: tensor.torch() for name, tensor in opened.items()}, in_memory())
            for name, tensor in in_memory().items():
                values = tensor.float() if tensor.dtype.itemsize < 4 else tensor
                np.testing.assert_array_equal(opened[name].numpy(), values.numpy(), err_msg=name)


def test_rows_are_those_of_numpy(folder: Path) -> None:
    whole = load_file("in.safetensors")["stem.weight"].numpy()
    with surgeon.open("in.safetensors") as opened:
        tensor = opened["stem.weight"]
        for rows in (slice(1, 3), slice(None), slice(-2, None), slice(3, 1), 2, -1):
            np.testing.assert_array_equal(tensor[rows].numpy(), whole[rows])
        np.testing.assert_array_equal(tensor[3][1][1:].numpy(), whole[3][1][1:])
        np.testing.assert_array_equal(np.stack([row.numpy() for row in tensor]), whole)
        np.testing.assert_array_equal(np.asarray(tensor[1:]), whole[1:])
        with pytest.raises(IndexError):
            tensor[4]
        for wrong in (slice(None, None, 2), (1, 2)):
            with pytest.raises(surgeon.SurgeonError):
                tensor[wrong]  # type: ignore[index]


def test_errors_are_lines_of_what_is_wrong(folder: Path) -> None:
    with pytest.raises(surgeon.SurgeonError) as error:
        surgeon.plan({"surgeon": 1, "steps": [{"op": "scael"}, {"op": "cast"}]}, "in.safetensors")
    assert [line.partition(":")[0] for line in error.value.problems] == ["recipe"] * len(
        error.value.problems
    )
    assert "did you mean 'scale'" in error.value.problems[0]
    with pytest.raises(surgeon.SurgeonError, match="model 'other' must be given"):
        surgeon.apply("recipe.json", "in.safetensors", "out.safetensors")
    with pytest.raises(surgeon.SurgeonError, match="no such file"):
        surgeon.open("nothing.pt")


def test_a_loaded_recipe_has_its_variables(folder: Path) -> None:
    recipe = surgeon.Recipe.load("recipe.json", {"rows": 4})
    models = ["other.safetensors"]
    planned = surgeon.plan(recipe, "in.safetensors", models=models)
    assert planned.tensors["classifier.weight"]["shape"] == [11, 8]
    with pytest.raises(surgeon.SurgeonError, match="have their values"):
        surgeon.plan(recipe, "in.safetensors", models=models, vars={"rows": 1})


def test_every_name_is_there_and_nothing_is_imported_before_it_is_used(folder: Path) -> None:
    assert all(getattr(surgeon, name) for name in surgeon.__all__)
    assert set(surgeon.__all__) == set(surgeon._HOMES) <= set(dir(surgeon))
    code = (
        "import sys, surgeon; heavy = {'numpy', 'torch', 'click'}; print(heavy & {*sys.modules});"
        "surgeon.plan('recipe.json', 'in.safetensors', models=['other.safetensors']);"
        "surgeon.apply_to({'a': __import__('numpy').ones(2)}, {'surgeon': 1, 'steps': []});"
        "print(sorted(heavy & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.split("\n") == ["set()", "['numpy']", ""], found.stderr


PAGE = (ROOT / "docs" / "library.md").read_text()


def test_the_page_runs_as_written(folder: Path) -> None:
    """All blocks of Python run, in order; what they claim they assert."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    exec(compile("\n".join(blocks), "docs/library.md", "exec"), {"__name__": "page"})
    assert {f"surgeon.{name}" for name in surgeon.__all__} <= set(re.findall(r"surgeon\.\w+", PAGE))
    assert os.path.exists("grown.safetensors")  # noqa: PTH110


def test_a_system_that_is_not_posix_is_told_so() -> None:
    code = "import os; del os.preadv; import surgeon"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "surgeon needs a POSIX system" in done.stderr.splitlines()[-1]
