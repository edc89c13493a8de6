"""The models that a reader of the README starts from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from surgeon import samples


def test_samples_are_the_same_every_time(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        samples.main(folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["base.safetensors", "chat.safetensors", "code.safetensors", "in.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.safetensors").write_bytes(b"mine")
    samples.main(tmp_path)
    assert (tmp_path / "in.safetensors").read_bytes() == b"mine"
    assert "stays as it is" in capsys.readouterr().err
    assert load_file(tmp_path / "base.safetensors").keys() == samples.LANGUAGE_MODEL.keys()


def test_samples_need_no_torch() -> None:
    code = "import sys, surgeon.samples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere: there is no such folder"):
        samples.main(tmp_path / "nowhere")
