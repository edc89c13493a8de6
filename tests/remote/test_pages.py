"""docs/remote.md's first run runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "remote.md"
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_first_run_of_the_page_runs(tmp_path):
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    first = re.search(r"```sh\n(.*?)```", PAGE.read_text(), re.S)[1]
    assert len(first.splitlines()) == 5
    recipe = re.search(r"```json\n(.*?)```", README.read_text(), re.S)[1]
    (tmp_path / "recipe.json").write_text(recipe)
    body = {f"body.{n}.weight": torch.ones(64, 64) for n in (0, 2)}
    torch.save(
        body | {"fc.weight": torch.ones(7, 64), "fc.bias": torch.ones(7)}, tmp_path / "in.pt"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", f"trap 'kill %1' EXIT\n{first}"], cwd=tmp_path, capture_output=True,
        text=True, timeout=100, check=False, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
