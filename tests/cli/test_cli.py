"""The command line: exit codes, streams, options, and what must not be imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from surgeon import __version__
from surgeon.cli.commands import commands
from tests.network import Bench, assert_identical, read, write_recipe

GROW = {"id": "grow", "op": "widen", "target": "classifier", "rows": "${rows}"}


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(commands, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "surgeon", *map(str, arguments)]
    decoding = {"encoding": "utf-8", "errors": "surrogateescape"}
    return subprocess.run(command, capture_output=True, timeout=60, **decoding, **options)


@pytest.fixture
def grow(example: Bench) -> tuple[Path, Path, Path]:
    """A recipe with a variable, its input and where the output goes."""
    recipe = write_recipe(example.folder, GROW, vars={"rows": 1})
    return recipe, example.input, example.output


@pytest.mark.parametrize("name", [None, *commands.commands])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_help_ends_with_an_example(name: str | None, flag: str) -> None:
    result = run(*([name] if name else []), flag)
    *_, head, last = result.output.rstrip().splitlines()
    assert result.exit_code == 0
    assert head.strip() == "Example:"
    assert last.strip().startswith(f"surgeon {name or ''}".strip())


def test_the_contract_names_every_command() -> None:
    expected = {"apply", "plan", "validate", "inspect", "diff", "verify", "ops", "schema"}
    assert expected | {"recipes"} <= set(commands.commands)


def test_version_is_printed() -> None:
    assert run("--version").stdout.startswith("surgeon 0.")


# exit codes


def test_apply_prints_the_output_and_its_manifest(grow: tuple[Path, Path, Path]) -> None:
    recipe, source, output = grow
    result = run("apply", recipe, source, output)
    assert result.exit_code == 0
    assert result.stdout.split() == [str(output), str(output.with_suffix(".manifest.json"))]
    assert "[0] grow (widen): 2 changed" in result.stderr
    assert load_file_shapes(output)["classifier.bias"] == (8,)


def load_file_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    document = json.loads(run("inspect", path, "--json").stdout)
    return {name: tuple(row["shape"]) for name, row in document["tensors"].items()}


def test_exit_code_1_for_a_failed_expectation(example: Bench) -> None:
    recipe = write_recipe(example.folder, {"op": "expect", "target": "classifier", "count": 9})
    result = run("apply", recipe, example.input, example.output)
    assert result.exit_code == 1
    assert not example.output.exists()
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "rows"],
        ["--set", "=1"],
        ["--set", "rows=1", "--set", "rows=2"],
        ["--set", "row=1"],
        ["--set", "rows=0"],
        ["--set", "rows=x"],
        ["--set", "rows=[1,"],
        ["--set", "rows={name:ones}"],
        ["--model", "b"],
        ["--workers", "0"],
        ["--max-memory", "much"],
        ["--checksums", "md5"],
        ["--optimiser", "x.pt"],
    ],
)
def test_exit_code_2_for_wrong_usage(grow: tuple[Path, Path, Path], arguments: list[str]) -> None:
    recipe, source, output = grow
    result = run("apply", recipe, source, output, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr
    assert not output.exists()


def test_exit_code_3_for_an_unreadable_checkpoint(grow: tuple[Path, Path, Path]) -> None:
    recipe, source, output = grow
    source.write_bytes(b"not a checkpoint, by any means")
    result = run("apply", recipe, source, output)
    assert (result.exit_code, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1


def test_exit_code_4_for_an_impossible_plan(example: Bench) -> None:
    recipe = write_recipe(example.folder, {"op": "delete", "target": "clasifier"})
    result = run("plan", recipe, example.input)
    assert result.exit_code == 4
    assert result.stderr.startswith(
        "recipe.json: steps[0] (delete): no tensor matches 'clasifier'; did you mean 'classifier'"
    )
    assert len(result.stderr.splitlines()) == 1


def test_exit_code_5_where_writing_fails(grow: tuple[Path, Path, Path]) -> None:
    recipe, source, output = grow
    result = run("apply", recipe, source, output.parent / "missing" / "out.safetensors")
    assert (result.exit_code, result.stdout) == (5, "")


def test_an_existing_output_needs_force(grow: tuple[Path, Path, Path]) -> None:
    recipe, source, output = grow
    output.write_text("precious")
    assert run("apply", recipe, source, output).exit_code == 2
    assert output.read_text() == "precious"
    refused = run("apply", recipe, source, output, "--force")
    assert refused.exit_code == 2
    assert "--force-any replaces it all the same" in refused.stderr
    assert output.read_text() == "precious"
    assert run("apply", recipe, source, output, "--force-any").exit_code == 0
    assert f"{output}: exists; --force replaces it" in run("apply", recipe, source, output).stderr
    assert run("apply", recipe, source, output, "--force").exit_code == 0


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_forgotten_output_is_told_from_an_input(example: Bench, force: list[str]) -> None:
    paths = [example.folder / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path in paths:
        path.write_bytes(example.input.read_bytes())
    result = run("apply", "average-checkpoints", *paths, *force)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert (
        f"the last path is OUTPUT, so average-checkpoints of {paths[0]} and {paths[1]} would be "
        f"written into {paths[2]}; -o OUTPUT names the output apart" in result.stderr
    )
    done = run("apply", "average-checkpoints", *paths, "-o", example.output)
    assert done.exit_code == 0
    assert set(json.loads((example.folder / "out.manifest.json").read_text())["inputs"]) == {
        "input", "1", "2"
    }  # fmt: skip


def test_a_model_taken_for_the_output_is_told(example: Bench) -> None:
    result = run("apply", "interpolate-two-models", example.input, example.models["other"])
    assert result.exit_code == 2
    assert "'other' must be given" in result.stderr
    assert "the last path is OUTPUT" in result.stderr


def test_a_model_that_nothing_uses_is_refused(example: Bench) -> None:
    other = example.models["other"]
    paths = [example.input, other, other]
    result = run("apply", "interpolate-two-models", *paths, "-o", example.output)
    assert result.exit_code == 2
    assert "model '1'" in result.stderr
    assert "no step and no training section uses it" in result.stderr
    recipe = write_recipe(example.folder, {"op": "delete", "target": "head"}, models={"m": other})
    assert run("plan", recipe, example.input).exit_code == 2


def test_a_teacher_is_a_use_of_a_model(example: Bench) -> None:
    step = {"op": "average", "models": ["other"], "target": "classifier"}
    training = {"teacher": {"model": "t", "outputs": ["head.weight"]}, "stages": [{"name": "a"}]}
    models = dict.fromkeys(("other", "t"), example.models["other"])
    recipe = write_recipe(example.folder, step, models=models, training=training)
    result = run("plan", recipe, example.input)
    assert "no training section uses it" not in result.stderr


def test_all_mistakes_come_at_once_one_per_line(example: Bench) -> None:
    recipe = write_recipe(example.folder, {"op": "widn"}, {"op": "delete", "targt": "x"})
    result = run("validate", recipe)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("recipe.json: steps[") for line in lines)


# apply


@pytest.mark.parametrize(("text", "rows"), [("3", 10), ("1", 8)])
def test_set_takes_json(grow: tuple[Path, Path, Path], text: str, rows: int) -> None:
    recipe, source, output = grow
    assert run("apply", recipe, source, output, "--set", f"rows={text}").exit_code == 0
    assert load_file_shapes(output)["classifier.bias"] == (rows,)


def test_set_takes_what_is_not_json_as_a_string(example: Bench) -> None:
    step = {"op": "delete", "target": "${layer}"}
    recipe = write_recipe(example.folder, step, vars={"layer": None})
    assert run("plan", recipe, example.input).exit_code == 2
    result = run("plan", recipe, example.input, "--set", "layer=classifier", "--json")
    assert json.loads(result.stdout)["dropped"] == ["classifier.bias", "classifier.weight"]


def test_set_keeps_a_name_as_it_was_written(bench: Bench) -> None:
    source = bench.folder / "in.safetensors"
    save_file(dict.fromkeys(("v.1.10.w", "v.1.1.w", "2"), np.ones(1)), source)
    recipe = write_recipe(
        bench.folder, {"op": "delete", "target": ["v.${layer}", "${name}"]},
        vars={"layer": None, "name": None},
    )  # fmt: skip
    given = ("--set", "layer=1.10", "--set", "name=2", "--json")
    result = run("plan", recipe, source, *given)
    assert json.loads(result.stdout)["dropped"] == ["2", "v.1.10.w"]


def test_models_on_the_command_line_fill_open_ones(example: Bench) -> None:
    step = {"op": "average", "models": ["other"], "target": "classifier"}
    recipe = write_recipe(example.folder, step, models={"other": None})
    other = example.models["other"]
    by_position = run("apply", recipe, example.input, other, example.output)
    first = example.output.read_bytes()
    by_name = run(
        "apply", recipe, example.input, example.output, "--force", "--model", f"other={other}"
    )
    assert (by_position.exit_code, by_name.exit_code) == (0, 0)
    assert example.output.read_bytes() == first
    assert run("plan", recipe, example.input).exit_code == 2


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("validate {bad} --json", 2,
         ("bad.json", "steps[0].op", "there is no op 'delet'", "did you mean 'delete'?")),
        ("plan {bad} {source} --json", 2,
         ("bad.json", "steps[0].op", "there is no op 'delet'", "did you mean 'delete'?")),
        ("plan {recipe} no.pt --json", 3, ("no.pt", None, "no such file", None)),
        ("plan --json {recipe} {source} --set rows=0", 2,
         ("recipe.json", "steps[0].rows", "0 is less than the minimum of 1", None)),
        ("apply {recipe} {source} out.pt --json", 2,
         ("out.pt", None, "surgeon writes safetensors",
          "say out.safetensors for one file, or out for a model folder")),
        ("plan {recipe} {source} -o out.jit --json", 2,
         ("out.jit", None, "surgeon writes safetensors",
          "say out.safetensors for one file, or out for a model folder")),
        ("inspect {source} clasifier --json", 2,
         (None, None, "no tensor matches 'clasifier'", "did you mean 'classifier'?")),
        ("diff {source} no.pt --json", 3, ("no.pt", None, "no such file", None)),
        ("compare {source} --json", 2,
         (None, None, "compare takes two models or more", None)),
        ("ops widn --json", 2, (None, None, "there is no op 'widn'", "did you mean 'widen'?")),
        ("apply {recipe} {source} o.safetensors --json --checksums md5", 2,
         (None, "--checksums", "'md5' is not one of 'crc32', 'sha256', 'none'.", None)),
        ("plan {recipe} {source} --optimiser x --json", 2,
         (None, "--optimiser", "there is no such option",
          "did you mean '--optimizer' or '--optimizer-order'?")),
    ],
)  # fmt: skip
def test_json_is_one_document_on_failure_too(
    grow: tuple[Path, Path, Path], command: str, code: int, error: tuple[Any, ...]
) -> None:
    recipe, source, _ = grow
    bad = recipe.with_name("bad.json")
    bad.write_text(json.dumps({"surgeon": 1, "steps": [{"op": "delet", "target": "a"}]}))
    result = run(*command.format(recipe=recipe, source=source, bad=bad).split())
    assert (result.exit_code, result.stderr) == (code, "")
    document = {"$schema": "urn:surgeon:errors:1",
                "errors": [dict(zip(FIELDS, error, strict=True))], "exit_code": code}  # fmt: skip
    assert json.loads(result.stdout) == document


FIELDS = ("file", "place", "message", "hint")


def test_json_lists_all_errors_and_says_yes_to_a_valid_recipe(grow: tuple[Path, ...]) -> None:
    two = ("validate", grow[0], "--json", "--set", "rows=0", "--set", "row=1")
    assert len(json.loads(run(*two).stdout)["errors"]) == 1
    document = json.loads(run("validate", grow[0], "--json").stdout)
    assert (document["errors"], document["exit_code"]) == ([], 0)
    assert document["recipes"][0]["steps"] == 1
    assert document["recipes"][0]["file"] == str(grow[0])


def test_a_failed_expectation_is_a_document_too(example: Bench) -> None:
    recipe = write_recipe(example.folder, {"op": "expect", "target": "classifier", "count": 9})
    result = run("apply", recipe, example.input, example.output, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["exit_code"]) == (1, 1)
    assert document["errors"][0]["place"] == "steps[0] (expect)"


def test_json_is_one_document_and_the_same_each_time(grow: tuple[Path, Path, Path]) -> None:
    recipe, source, output = grow
    results = [run("apply", recipe, source, output, "--json", "--force") for _ in range(2)]
    assert results[0].stdout == results[1].stdout
    document = json.loads(results[0].stdout)
    assert document["output"] == str(output)
    assert document["files"][0]["bytes"] == output.stat().st_size
    assert document["steps"][0]["changed"] == ["classifier.bias", "classifier.weight"]


def test_quiet_prints_the_answer_alone(grow: tuple[Path, Path, Path]) -> None:
    result = run("apply", *grow, "--quiet")
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize("checksums", ["crc32", "sha256", "none"])
def test_workers_and_checksums_leave_the_bytes_alone(
    grow: tuple[Path, Path, Path], checksums: str
) -> None:
    recipe, source, output = grow
    written = set()
    for workers in (1, 2, 8):
        arguments = ("--force", "--workers", workers, "--checksums", checksums)
        assert run("apply", recipe, source, output, *arguments).exit_code == 0
        written.add(output.read_bytes())
        assert run("verify", output).exit_code == 0
    assert len(written) == 1


def test_too_little_memory_is_said_before_anything_is_written(
    grow: tuple[Path, Path, Path],
) -> None:
    recipe, source, output = grow
    result = run("apply", recipe, source, output, "--max-memory", "100KB")
    assert result.exit_code == 4
    assert result.stderr.startswith("--max-memory 100.0 kB: the plan needs 1.0 MB for one worker")
    assert not output.exists()
    assert run("apply", recipe, source, output, "--max-memory", "100MB").exit_code == 0


def test_a_model_folder_carries_its_other_files_along(example: Bench) -> None:
    recipe = write_recipe(example.folder, output={"shard_size": "300B"})
    folder = example.folder / "model"
    result = run("apply", recipe, example.input, folder, "--json")
    document = json.loads(result.stdout)
    assert len(document["files"]) > 1
    assert all((folder / file["file"]).exists() for file in document["files"])
    planned = json.loads(run("plan", recipe, example.input, "--json").stdout)
    for file in document["files"]:
        assert len(file.pop("header_sha256")) == 64  # known once the data is
    assert planned["files"] == document["files"]
    assert run("verify", folder).exit_code == 0


# plan


def test_plan_reads_no_tensor_data(example: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"op": "average", "models": ["other"]}
    recipe = write_recipe(example.folder, step, models={"other": example.models["other"]})

    def fail(*arguments: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("surgeon.lazy.Stored.elements", fail)
    assert run("plan", recipe, example.input).exit_code == 0


def test_plan_lists_stages_with_their_groups(example: Bench) -> None:
    training = {
        "optimizer": {"class": "torch.optim.SGD", "args": {"lr": 0.01}},
        "stages": [{"name": "warm-up", "duration": {"epochs": 5}, "train": ["@new"]}],
    }
    recipe = write_recipe(example.folder, {**GROW, "rows": 2}, training=training)
    stdout = run("plan", recipe, example.input).stdout
    lines = [line.split() for line in stdout.splitlines()]
    assert "stage warm-up, 5 epochs" in stdout
    assert ["default", "2", "18", "0.01"] in lines
    assert "in eval mode: encoder.1.norm" in stdout


# inspect


def test_a_pattern_that_matches_nothing_is_wrong_usage(example: Bench) -> None:
    result = run("inspect", example.input, "clasifier.weight")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'classifier.weight'" in result.stderr


def test_patterns_select_and_remove(example: Bench) -> None:
    document = json.loads(run("inspect", example.input, "encoder", "!**.norm", "--json").stdout)
    assert sorted(document["tensors"]) == [
        f"encoder.{i}.{leaf}" for i in (0, 1) for leaf in ("bias", "weight")
    ]
    remaining = json.loads(run("inspect", example.input, "!encoder", "--json").stdout)
    assert not any(name.startswith("encoder") for name in remaining["tensors"])


def test_inspect_shows_who_wrote_a_file(grow: tuple[Path, Path, Path]) -> None:
    document = json.loads(run("apply", *grow, "--json").stdout)
    manifest = json.loads(Path(document["manifest"]).read_text())
    stdout = run("inspect", document["output"]).stdout
    assert f"surgeon: version {__version__}, recipe {manifest['recipe']['sha256']}" in stdout


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"evil\x1b[2Jname": np.zeros(1, np.float32)}, path)
    stdout = run("inspect", path).stdout
    assert "\x1b" not in stdout
    assert "evil\\x1b[2Jname" in stdout


# diff and verify


def test_diff_exits_with_1_where_files_differ(example: Bench) -> None:
    other = example.models["other"]
    assert run("diff", example.input, example.input).exit_code == 0
    result = run("diff", example.input, other, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["equal"] is False
    assert run("diff", example.input, other, "position").exit_code == 0


def test_verify_lists_each_mismatch(grow: tuple[Path, Path, Path]) -> None:
    run("apply", *grow)
    content = bytearray(grow[2].read_bytes())
    content[-1] ^= 1
    grow[2].write_bytes(content)
    result = run("verify", grow[2], "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [line.split("'")[1] for line in document["mismatches"]] == ["position.mask"]


# the process


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    source, output = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_file({f"{i}.w": np.zeros(1 << 20, np.float32) for i in range(32)}, source)
    recipe = write_recipe(tmp_path, {"op": "reinit", "target": "**", "init": "trunc_normal"})
    command = [sys.executable, "-m", "surgeon", "apply", recipe, source, output]
    slower = {**os.environ, "SURGEON_KERNELS": "numpy"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=slower
    ) as running:
        begun = time.monotonic()
        while not any(path.stat().st_size for path in tmp_path.glob(".out*")):
            assert time.monotonic() - begun < 30
            time.sleep(0.005)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    assert (running.returncode, stdout, stderr) == (130, b"", b"interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "recipe.json"]


INTERRUPTED = """
import click
from surgeon.cli import commands as cli
@cli.commands.command("wait")
def wait():
    exec("raise KeyboardInterrupt")
cli.commands(["wait"], prog_name="surgeon")
"""


def test_an_interrupt_inside_of_an_exec_has_the_same_exit_code(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"layer.{i}.weight": np.zeros(1, np.float32) for i in range(20000)}, path)
    command = f"{sys.executable} -m surgeon inspect {path} | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("name")
    assert result.stderr == ""


def test_a_terminal_that_lacks_characters_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"層": np.zeros(1, np.float32)}, path)
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = process("inspect", path, env=environment)
    assert result.returncode == 0
    assert "\\u5c64" in result.stdout


@pytest.mark.parametrize("words", ["validate {}", "inspect {}", "verify {}", "diff {} {}"])
def test_a_path_that_cannot_be_one_is_a_line(words: str) -> None:
    result = run(*words.format("a" * 5000, "b").split())
    assert result.exit_code in (2, 3)
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)


def test_a_file_name_that_is_not_utf8(grow: tuple[Path, Path, Path]) -> None:
    recipe, source, output = grow
    odd_source, odd_output = (path.with_name(f"\udcff{path.name}") for path in (source, output))
    source.rename(odd_source)
    result = process("apply", recipe, odd_source, odd_output)
    assert result.returncode == 0, result.stderr
    result = process("verify", odd_output, "--json")
    assert json.loads(result.stdout)["manifest"].endswith("\udcffout.manifest.json")


def test_threads_of_numpy_are_pinned_before_it_is_imported() -> None:
    code = (
        "import os, sys; os.environ.pop('OMP_NUM_THREADS', None); import surgeon.cli.commands;"
        "print('numpy' in sys.modules, os.environ['OMP_NUM_THREADS'])"
    )
    environment = {k: v for k, v in os.environ.items() if "NUM_THREADS" not in k}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.split() == ["False", "1"]


MODULES = """
import sys
from surgeon.cli.commands import main
sys.argv[1:] = sys.argv[1].split()
try:
    main()
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""
# What a command starts without, however short it is: each takes as long as Python itself.
SLOW = {"torch", "jsonschema", "numpy", "tabulate", "difflib", "importlib.metadata", "asyncio",
        "multiprocessing", "concurrent.futures", "email", "http", "ssl"}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("--help", set()),
        ("apply --help", set()),
        ("completion bash", set()),
        ("man", set()),
        ("recipes ties", {"numpy"}),
        ("validate ties", {"numpy"}),
        ("inspect in.safetensors", {"tabulate", "importlib.metadata", "email"}),
    ],
)
def test_what_starts_a_command_is_little(words: str, allowed: set[str], tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "in.safetensors")
    done = subprocess.run([sys.executable, "-c", MODULES, words], cwd=tmp_path, check=True,
                          capture_output=True, text=True)  # fmt: skip
    loaded = set(done.stderr.split())
    assert not loaded & SLOW - allowed
    ours = {name.split(".")[1] for name in loaded if name.startswith("surgeon.")}
    assert ours <= {"cli", "base"} or allowed


REFUSES = """
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {refused}:
            raise AssertionError('imported ' + name)
sys.meta_path.insert(0, Refuse())
sys.argv = {arguments}
from surgeon.cli.commands import main
main()
"""


def refusing(refused: set[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = ["surgeon", *map(str, arguments)]
    code = REFUSES.format(refused=refused, arguments=argv)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        "apply {recipe} {source} {output}",
        "plan {recipe} {source}",
        "validate {recipe}",
        "inspect {source} --stats",
        "diff {source} {source}",
        "ops",
        "ops average",
        "schema",
        "schema --manifest",
        "recipes",
    ],
)
def test_no_command_imports_torch(grow: tuple[Path, Path, Path], words: str) -> None:
    recipe, source, output = grow
    arguments = words.format(recipe=recipe, source=source, output=output).split()
    result = refusing({"torch", "transformers"}, *arguments)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "words",
    [
        "inspect {source}",
        "diff {source} {source}",
        "validate {recipe}",
        "plan --json {recipe} {source}",
        "apply {recipe} {source} {output}",
    ],
)
def test_commands_need_no_jsonschema_where_a_recipe_is_valid(
    grow: tuple[Path, Path, Path], words: str
) -> None:
    recipe, source, output = grow
    arguments = words.format(recipe=recipe, source=source, output=output).split()
    result = refusing({"torch", "jsonschema"}, *arguments)
    assert result.returncode == 0, result.stderr


def test_no_progress_where_stderr_is_no_terminal(grow: tuple[Path, Path, Path]) -> None:
    result = process("apply", *grow)
    assert "writing" not in result.stderr
    assert "\r" not in result.stderr


@pytest.mark.parametrize(("variable", "shown"), [("NO_COLOR", True), ("CI", False)])
def test_progress_is_for_terminals(
    grow: tuple[Path, Path, Path], variable: str, shown: bool
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {variable: "1"}
    terminal, stderr = os.openpty()
    command = [sys.executable, "-m", "surgeon", "apply", *map(str, grow)]
    subprocess.run(command, stderr=stderr, stdout=subprocess.PIPE, env=environment, check=True)
    os.close(stderr)
    text = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert ("writing" in text) == shown
    assert "\x1b[3" not in text


@pytest.mark.slow
def test_a_hundred_thousand_tensors_are_inspected_in_time(tmp_path: Path) -> None:
    header: dict[str, Any] = {}
    for index in range(100_000):
        place = [index * 4, index * 4 + 4]
        name = f"layers.{index // 100}.part{index % 100}.weight"
        header[name] = {"dtype": "F32", "shape": [1], "data_offsets": place}
    text = json.dumps(header).encode()
    path = tmp_path / "big.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(400_000))
    begun = time.process_time()
    assert run("inspect", path).exit_code == 0
    # The target is 2 s of wall time on an idle machine; linear against quadratic is tested here.
    assert time.process_time() - begun < 10


def test_loaded_values_are_those_of_the_input(example: Bench) -> None:
    recipe = write_recipe(example.folder, {"op": "keep", "target": ["classifier"]})
    assert run("apply", recipe, example.input, example.output).exit_code == 0
    assert sorted(load_file(example.output)) == ["classifier.bias", "classifier.weight"]


def test_many_steps_on_one_tensor_are_applied(example: Bench) -> None:
    steps = [{"op": "cast", "target": "head.weight", "dtype": d} for d in ("F16", "F32") * 400]
    recipe = example.folder / "recipe.json"
    recipe.write_text(json.dumps({"surgeon": 1, "steps": steps}))
    output = example.folder / "deep.safetensors"
    assert process("apply", recipe, example.input, output).returncode == 0
    expected = read(example.input)["head.weight"].half().float()
    assert_identical({"head.weight": read(output)["head.weight"]}, {"head.weight": expected})


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_module_is_imported_from_here_with_allow_code_alone(
    example: Bench, command: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "mine.py").write_text("import torch\n\ndef net():\n    return torch.nn.Linear(2, 3)\n")
    save_file({"weight": np.ones((3, 2)), "bias": np.ones(3)}, example.input)
    recipe = write_recipe(example.folder, {"op": "match", "module": "mine:net"})
    output = [example.output] if command == "apply" else []
    refused = process(command, recipe, example.input, *output, cwd=here)
    assert refused.returncode == 2
    assert refused.stderr == (
        "recipe.json: steps[0] (match): 'mine:net' would be imported and run; --allow-code allows "
        "that\n"
    )
    assert (
        process(command, recipe, example.input, *output, "--allow-code", cwd=here).returncode == 0
    )
