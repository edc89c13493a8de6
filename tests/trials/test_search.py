"""Search: the best of the trials is found and kept, and nothing that was done is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import surgeon
from surgeon.cli import environment
from surgeon.cli.commands import commands
from surgeon.trials import pictures
from surgeon.trials.scores import NoNumberError, last_number
from tests.network import write, write_recipe

# Larger rows make a larger file, so that its size can be a score.
GROW = {"op": "widen", "target": "fc", "rows": "${rows}", "init": "zeros"}
SIZE = "wc -c < {output}"
MIX = {
    "surgeon": 1,
    "vars": {"shares": [1, 1]},
    "steps": [
        {"op": "average", "models": "*", "weights": "${shares}", "normalize": False},
    ],
}
A, B = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
BEST = torch.tensor([0.25, 0.75])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: a recipe, its input, and a folder of its own for scratch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    write(tmp_path / "in.safetensors", {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)})
    write_recipe(tmp_path, GROW, vars={"rows": 1})
    return tmp_path


def run(*words: str, evaluate: str = SIZE, rows: str = "1:4:int") -> Result:
    arguments = ["recipe.json", "in.safetensors", "--evaluate", evaluate, "--vary", f"rows={rows}"]
    found = CliRunner().invoke(commands, ["search", *arguments, "-o", "best.json", *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def nearness(made: dict[str, torch.Tensor]) -> float:
    return -(made["w"] - BEST).square().sum().item()


def mixed(**options: Any) -> Any:
    given = {"vary": {"shares.*": (0, 1)}, "evaluate": nearness, "trials": 8, **options}
    return surgeon.search(MIX, {"w": A}, models=[{"w": B}], **given)


# the command


def test_the_best_recipe_is_written_and_gives_the_best_number(folder: Path) -> None:
    found = json.loads(run("--trials", "6", "--json", "--quiet").stdout)
    assert found["variables"] == {"rows": 4}
    assert found["trials"][0]["variables"] == {"rows": 1}  # the recipe's own comes first
    done = surgeon.apply("best.json", "in.safetensors", "out.safetensors", checksums="none")
    assert done.output.stat().st_size == found["value"]
    assert json.loads(Path("best.json").read_text())["vars"] == {"rows": 4}
    assert not list((folder / "scratch").iterdir())


def test_a_command_that_fails_is_a_failed_trial(folder: Path) -> None:
    limit = surgeon.apply("recipe.json", "in.safetensors", "a.safetensors", vars={"rows": 2})
    most = limit.output.stat().st_size
    command = f"x=$({SIZE}); if [ $x -gt {most} ]; then echo $x is much >&2; exit 3; fi; echo $x"
    found = run("--trials", "8", evaluate=command, rows="[1, 2, 90]")
    failed = [line for line in found.stderr.splitlines() if "failed" in line]
    assert found.exit_code == 0
    assert failed
    assert all("the command ended with 3: " in line and "is much" in line for line in failed)
    assert json.loads(Path("best.json").read_text())["vars"] == {"rows": 2}


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("echo well {output}", "the command's last line is no number: 'well"),
        ("echo nan # {output}", "the command's last line is nan"),
        ("true {output}", "is no number: ''"),
        ("kill -9 $$ # {output}", "was ended by signal 9: it said nothing"),
    ],
)
def test_what_gives_no_number_says_why(command: str, what: str) -> None:
    with pytest.raises(NoNumberError, match=re.escape(what)):
        last_number(command, Path("a b"), None)


def test_the_last_line_is_the_number(tmp_path: Path) -> None:
    assert last_number("printf '1\\n%s\\n\\n' '2.5' # {output}", tmp_path, None) == 2.5
    assert last_number("basename {output}", tmp_path / "it's 5\n7", None) == 7


def test_a_search_without_a_number_is_an_answer_of_no(folder: Path) -> None:
    found = run("--trials", "2", "--quiet", evaluate="false {output}")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "none of 2 trials gave a number; the last: the command ended with 1" in found.stderr
    assert not Path("best.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--vary", "row=0:1"], 2, "no variable 'row'; did you mean 'rows'"),
        (["--sampler", "cmaes"], 2, "sampler cmaes: varies two numbers or more"),
        (["-o", "best.txt"], 2, "the best recipe is a .json file"),
        (["-o", "none/best.json"], 2, "there is no folder"),
        (["-o", "recipe.json", "--force"], 2, "recipe.json: is the recipe itself"),
        (["--evaluate", "true"], 2, "has no {output}"),
        (["--storage", "nothing://x"], 2, "nothing://x: cannot be used to keep trials"),
        (["--set", "layer=fc"], 2, "declares no variable of that name"),
        (["--picture", "a.gif"], 2, "a picture is a .png or .svg file"),
        (["in.safetensors"], 2, "no step and no training section uses it"),
    ],
)
def test_what_cannot_be_searched_is_told_before_any_trial(
    folder: Path, words: list[str], code: int, what: str
) -> None:
    found = run(*words)
    assert (found.exit_code, found.stdout) == (code, "")
    assert what in found.stderr
    assert "trial 0" not in found.stderr


@pytest.mark.parametrize("name", ["best.json", "best.trials.sqlite"])
def test_a_link_is_not_followed_to_what_is_replaced(folder: Path, name: str) -> None:
    Path("victim").write_text("precious")
    Path(name).symlink_to("victim")
    found = run("--force")
    assert (found.exit_code, Path("victim").read_text()) == (2, "precious")
    assert f"{name}: is no regular file, and not replaced" in found.stderr


@pytest.mark.parametrize("url", ["none://me:pw@host/x?pw", "redis://:pw@host/0"])
def test_a_database_s_password_is_not_shown(folder: Path, url: str) -> None:
    found = run("--storage", url)
    assert found.exit_code == 2
    assert "cannot be used to keep trials" in found.stderr
    assert "pw" not in found.output


def test_a_plan_that_is_impossible_is_told_before_any_trial(folder: Path) -> None:
    write_recipe(folder, {**GROW, "target": "fd"}, vars={"rows": 1})
    found = run()
    assert found.exit_code == 4
    assert "no tensor matches 'fd'" in found.stderr


@pytest.mark.slow
def test_trials_that_are_there_are_not_mixed_with_others(folder: Path) -> None:
    assert run("--trials", "2").exit_code == 0
    assert "exists; --resume goes on" in run("--trials", "3").stderr
    other = run("--trials", "3", "--resume", evaluate=f"{SIZE} ")
    assert other.exit_code == 2
    assert "its trials had another command" in other.stderr
    assert len(json.loads(run("--trials", "3", "--resume", "--json").stdout)["trials"]) == 3
    assert len(json.loads(run("--trials", "2", "--force", "--json").stdout)["trials"]) == 2


@pytest.mark.slow
def test_what_is_of_no_search_is_not_replaced_by_going_on(folder: Path) -> None:
    Path("best.json").write_text("precious")
    for _ in range(2):
        found = run("--trials", "2", "--resume")
        assert found.exit_code == 2
        assert "best.json: exists, and" in found.stderr
        assert Path("best.json").read_text() == "precious"
    assert run("--trials", "2", "--force").exit_code == 0


@pytest.mark.slow
def test_a_best_recipe_elsewhere_finds_its_models(folder: Path) -> None:
    step = {"op": "average", "models": ["b"], "weights": ["${rows}", 1]}
    shutil.copy("in.safetensors", "b.safetensors")
    write_recipe(folder, step, vars={"rows": 1}, models={"b": "b.safetensors"})
    (folder / "there").mkdir()
    found = run("-o", "there/best.json", "--trials", "2")
    assert found.exit_code == 0, found.stderr
    assert json.loads(Path("there/best.json").read_text())["models"] == {"b": "../b.safetensors"}
    assert surgeon.plan("there/best.json", "in.safetensors").tensors


def test_the_command_gets_the_callers_number_of_threads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environment.CALLERS, "OMP_NUM_THREADS", "13")
    monkeypatch.setitem(environment.CALLERS, "MKL_NUM_THREADS", None)
    command = "echo ${OMP_NUM_THREADS:-0}00${MKL_NUM_THREADS:-7} # {output}"
    found = run("--trials", "1", "--json", evaluate=command)
    assert json.loads(found.stdout)["value"] == 13007


def test_a_model_may_be_what_is_varied(folder: Path) -> None:
    for name, size in (("b", 4), ("c", 2)):
        write(folder / f"{name}.safetensors", {"x": torch.ones(size)})
    step = {"op": "copy", "from": "x", "to": "x", "model": "m"}
    vars = {"file": "b.safetensors"}
    write_recipe(folder, step, vars=vars, models={"m": "${file}"})
    vary = ["--vary", 'file=["c.safetensors", "b.safetensors"]', "--trials", "6", "--json"]
    words = ["recipe.json", "in.safetensors", "--evaluate", SIZE, "-o", "best.json", *vary]
    found = json.loads(CliRunner().invoke(commands, ["search", *words]).stdout)
    by_file: dict[str, set[float]] = {}
    for trial in found["trials"]:
        by_file.setdefault(trial["variables"]["file"], set()).add(trial["value"])
    assert found["variables"] == {"file": "b.safetensors"}
    assert by_file.keys() == {"b.safetensors", "c.safetensors"}
    assert by_file["b.safetensors"] == {max(by_file["c.safetensors"]) + 8}


def test_what_only_a_folder_has_is_told_before_any_trial(folder: Path) -> None:
    write_recipe(folder, GROW, vars={"rows": 1}, output={"shard_size": "1GB"})
    found = run()
    assert found.exit_code == 2
    assert "output.shard_size is for model folders" in found.stderr


@pytest.mark.slow
def test_a_folder_gives_the_command_a_folder(folder: Path) -> None:
    (folder / "model").mkdir()
    shutil.copy("in.safetensors", "model/model.safetensors")
    Path("model/config.json").write_text('{"a": 1}')
    words = ["recipe.json", "model", "--vary", "rows=1:3:int", "-o", "best.json", "--trials", "3"]
    command = "test -f {output}/config.json && wc -c < {output}/model.safetensors"
    found = CliRunner().invoke(commands, ["search", *words, "--evaluate", command])
    assert found.exit_code == 0, found.stderr
    assert "failed" not in found.stdout


@pytest.mark.slow
def test_two_processes_share_their_trials(folder: Path) -> None:
    words = ["search", "recipe.json", "in.safetensors", "--vary", "rows=1:9:int", "-o", "best.json"]
    words += ["--trials", "12", "--resume", "--quiet", "--evaluate", f"sleep 0.1; {SIZE}", "--json"]
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "surgeon", *words, "--seed", seed],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in "12"
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in begun]
    assert [process.returncode for process in begun] == [0, 0], said
    found = [json.loads(out) for out, _ in said]
    assert all(12 <= len(one["trials"]) <= 13 for one in found)
    assert json.loads(Path("best.json").read_text())["vars"] == found[0]["variables"]


@pytest.mark.slow
def test_an_interrupt_ends_the_search_and_keeps_what_was_done(folder: Path) -> None:
    count = "$(ls scratch | grep -vc surgeon)"
    command = f"if [ {count} -gt 4 ]; then sleep 60; fi; touch scratch/$$; {SIZE}"
    words = ["search", "recipe.json", "in.safetensors", "--vary", "rows=1:9:int", "-o", "best.json"]
    environ = {**os.environ, "TMPDIR": str(folder / "scratch"), "PYTHONUNBUFFERED": "1"}
    begun = subprocess.Popen(
        [sys.executable, "-m", "surgeon", *words, "--evaluate", command],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert begun.stderr is not None
    while "trial 4" not in begun.stderr.readline():
        assert begun.poll() is None
    time.sleep(1)
    begun.send_signal(signal.SIGINT)
    said, complaint = begun.communicate(timeout=30)
    assert begun.returncode == 130
    assert "interrupted; --resume goes on" in complaint
    assert "best:" in said
    assert not list((folder / "scratch").glob("surgeon*"))
    assert json.loads(Path("best.json").read_text())["vars"]["rows"] >= 1


# the library


def test_a_function_scores_what_a_recipe_makes(folder: Path) -> None:
    found = mixed(trials=60)
    shares = [trial["variables"].values() for trial in found.trials]
    tried = [nearness({"w": x * A + y * B}) for x, y in shares]
    assert found.value == pytest.approx(max(tried), abs=1e-6)
    assert found.value > -0.02
    (made,) = surgeon.apply_to({"w": A}, found.recipe, models=[{"w": B}]).values()
    assert nearness({"w": made}) == found.value
    assert not found.interrupted


def test_cmaes_comes_near_the_best(folder: Path) -> None:
    pytest.importorskip("cmaes")
    assert mixed(trials=80, sampler="cmaes").value > -1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_search_that_goes_on_is_the_search_without_a_break(folder: Path, sampler: Any) -> None:
    whole = mixed(sampler=sampler, seed=3, trials=14)
    mixed(sampler=sampler, seed=3, trials=5, output="best.json")
    resumed = mixed(sampler=sampler, seed=3, trials=14, output="best.json", resume=True)
    assert resumed.trials == whole.trials
    assert mixed(sampler=sampler, seed=4, trials=14).trials != whole.trials


def test_an_interrupt_keeps_the_best_so_far(folder: Path) -> None:
    seen: list[float] = []

    def score(made: dict[str, torch.Tensor]) -> float:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(nearness(made))
        return seen[-1]

    found = mixed(evaluate=score, output="best.json")
    assert (found.interrupted, found.value, len(found.trials)) == (True, max(seen), 4)
    assert json.loads(Path("best.json").read_text()) == found.recipe
    assert len(mixed(output="best.json", resume=True).trials) == 8


def test_an_exception_is_a_failed_trial(folder: Path) -> None:
    def score(made: dict[str, torch.Tensor]) -> float:
        if made["w"][0] > 0.5:
            raise ValueError("too much")
        return nearness(made)

    failed = [t for t in mixed(evaluate=score).trials if t["value"] is None]
    assert failed[0]["message"] == "ValueError: too much"


def test_an_input_of_a_file_keeps_its_ties(folder: Path) -> None:
    write(folder / "tied.safetensors", {"a": torch.ones(2)}, {"b": "a"})
    recipe = {"surgeon": 1, "vars": {"by": 1.0}, "steps": [{"op": "scale", "target": "a",
                                                            "by": "${by}"}]}  # fmt: skip
    seen = []
    surgeon.search(
        recipe, "tied.safetensors", vary={"by": (1, 2)}, trials=1,
        evaluate=lambda made: seen.append(made["a"] is made["b"]) or 1.0,
    )  # fmt: skip
    assert seen == [True]


def test_without_optuna_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(surgeon.SurgeonError, match=r"pip install 'surgeon-checkpoints\[search\]'"):
        mixed()


def test_a_picture_of_a_search_is_drawn_the_same_each_time(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    found = mixed(vary={"shares.0": (0, 1), "shares.1": [0.5, 1]})
    for name in ("a.svg", "b.svg"):
        pictures.draw(found, folder / name)
    assert Path("a.svg").read_bytes() == Path("b.svg").read_bytes()
    assert "shares.1" in Path("a.svg").read_text()
