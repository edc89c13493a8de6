"""Names of files steer no terminal: all that is printed is escaped, JSON without a loss."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.test_cli import process, run
from tests.house import ROOT

# Colours, bells, a forged line, C1's one-byte CSI, DEL, directions, no width, ends of lines.
ODD = "\x1b[31mred\x07\r\nFORGED: all is well\x9b2J\x7f\u202etxt\u2066\u200b\ufeff\u2028\u2029\x00"
RENAME = {"op": "rename", "from": f"{ODD}.{{i}}", "to": "x.{i}"}
JOBS: dict[str, list[str]] = {
    "inspect": ["inspect", "A"],
    "inspect --json": ["inspect", "A", "--json"],
    "inspect --tree": ["inspect", "A", "--tree"],
    "inspect --tree --json": ["inspect", "A", "--tree", "--json"],
    "inspect --stats": ["inspect", "A", "--stats"],
    "inspect, no match": ["inspect", "A", ODD.replace("\x00", "")],
    "diff": ["diff", "A", "B"],
    "diff --json": ["diff", "A", "B", "--json"],
    "compare": ["compare", "A", "B"],
    "compare --json": ["compare", "A", "B", "--json"],
    "plan": ["plan", "R", "A"],
    "plan --json": ["plan", "R", "A", "--json"],
    "plan, unlike": ["plan", "U", "A", "C"],
    "plan, unknown": ["plan", "W", "A"],
    "apply": ["apply", "R", "A", "O"],
    "apply --json": ["apply", "R", "A", "O", "--json"],
    "apply, there is one": ["apply", "R", "A", "A"],
    "verify": ["verify", "A"],
    "validate": ["validate", "R"],
    "validate, wrong": ["validate", "W"],
    "no such command": ["\x1b[31m"],
    "no such option": ["inspect", "--\x1b[31m"],
    "no such recipe": ["plan", "\x1b[31m\n", "A"],
    "no such op": ["ops", "\x1b[31m\x9b"],
}  # fmt: skip

EXITS = {"diff": 1, "diff --json": 1, "plan, unlike": 4, "plan, unknown": 2, "verify": 3,
         "apply, there is one": 2, "validate, wrong": 2}  # fmt: skip


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, str]:
    """A checkpoint, models and recipes with names that hold everything, by a letter each."""
    folder = tmp_path / ODD.replace("\x00", "")
    folder.mkdir()
    tensor = np.arange(4, dtype=np.float32)
    paths = {letter: folder / f"{letter}.safetensors" for letter in "ABCO"}
    save_file({f"{ODD}.1": tensor, f"{ODD}.2": tensor}, paths["A"], metadata={ODD: ODD})
    save_file({f"{ODD}.1": tensor + 1, f"{ODD}.2": tensor}, paths["B"], metadata={ODD: ODD})
    save_file({f"{ODD}.1": tensor, f"{ODD}.2": tensor[:2]}, paths["C"])
    check = {"op": "expect", "target": "x.2", "finite": True}
    optimizer = {"class": "torch.optim.SGD", "args": {"lr": 1}}
    stage = {"name": ODD, "freeze": [], "groups": [{"name": ODD, "params": ["**"]}]}
    documents: dict[str, Any] = {
        "R": {
            "about": ODD,
            "steps": [RENAME, check],
            "training": {"optimizer": optimizer, "stages": [stage]},
        },
        "U": {"models": {"other": None}, "steps": [{"op": "slerp", "models": ["other"], "t": 0.5}]},
        "W": {"steps": [{"op": "rename", "from": f"{ODD}.9", "to": ODD}, {"op": ODD, ODD: ODD}]},
    }
    for letter, document in documents.items():
        paths[letter] = folder / f"{letter}.json"
        paths[letter].write_text(json.dumps({"surgeon": 1, **document}))
    return {letter: str(path) for letter, path in paths.items()}


@pytest.mark.parametrize("job", JOBS)
def test_nothing_that_is_printed_steers_a_terminal(odd: dict[str, str], job: str) -> None:
    ran = run(*(odd.get(word, word) for word in JOBS[job]))
    assert ran.exit_code == EXITS.get(job, 2 if "no " in job else 0), ran.stderr
    texts = [ran.stdout, ran.stderr]
    if job == "apply":  # the paths, as a script takes them
        paths = [odd["O"], odd["O"].replace(".safetensors", ".manifest.json")]
        assert ran.stdout_bytes == "".join(f"{path}\n" for path in paths).encode()
        texts = [ran.stderr]
    for text in texts:
        assert [c for c in text if not c.isprintable()] == ["\n"] * text.count("\n")
        assert not [line for line in text.splitlines() if line.startswith("FORGED")]
    if "--json" in job:
        assert ODD in str_of(json.loads(ran.stdout))


def str_of(document: object) -> str:
    """Return all strings of a document."""
    match document:
        case dict():
            return "".join(f"{key}{str_of(value)}" for key, value in document.items())
        case list():
            return "".join(map(str_of, document))
    return str(document)


def test_what_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "\udcff.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path)
    assert json.loads(process("inspect", path, "--json").stdout)["file"] == str(path)
    assert "\\udcff" in process("verify", path).stderr


@pytest.mark.slow
def test_one_module_prints() -> None:
    names = {"echo", "print", "secho"}
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) in names
    }
    assert found == {"cli/group.py", "cli/process.py", "samples.py"}
