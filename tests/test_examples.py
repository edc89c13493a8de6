"""Each example's README is run as it is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import ROOT

EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/README.md"))


@pytest.mark.slow
@pytest.mark.parametrize("example", [pytest.param(path, id=path.name) for path in EXAMPLES])
def test_the_commands_of_an_example_run(example: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(example, tmp_path / example.name)
    commands = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        subprocess.run(
            command,
            shell=True,
            cwd=folder,
            check=True,
            timeout=300,
            env={**os.environ, "PATH": path},
        )
    assert commands
