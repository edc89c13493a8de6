"""The benchmarks run; what they find is no matter of a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_trial_of_the_benchmarks_fills_its_tables(tmp_path):
    options = ["--folder", tmp_path, "--size", "0.001", "--repeat", "1"]
    command = [sys.executable, "-m", "benchmarks", *options, "--only", "validate", "rename"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line[:1] == "|"]
    assert {"`validate`", "rename 299 tensors"} <= set(rows)
    assert (tmp_path / "RESULTS.md").read_text() == done.stdout.removesuffix("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["RESULTS.md"]
