"""Signals, streams, limits and inputs that change: the exit code that is documented, one line."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SURGEON = [sys.executable, "-m", "surgeon"]
AVERAGE = {"op": "average", "models": ["other"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 72 MB, which takes several workers, another, and a recipe that takes a while."""
    for seed, name in enumerate(("in", "other")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"{i}.weight": torch.randn(500, 500, generator=generator) for i in range(72)}
        save_file(tensors, tmp_path / f"{name}.safetensors", {"format": "pt"})
    models = {"other": "other.safetensors"}
    recipe = {"surgeon": 1, "models": models, "steps": [AVERAGE]}
    (tmp_path / "slow.json").write_text(json.dumps(recipe))
    (tmp_path / "none.json").write_text(json.dumps({"surgeon": 1, "steps": []}))
    return tmp_path


def run(folder: Path, *arguments: str, shell: str = "", **options: object):
    command = [*SURGEON, *arguments]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                          timeout=300, **options)  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


APPLY = ("apply", "slow.json", "in.safetensors", "out.safetensors")


def await_listening(process: subprocess.Popen[str]) -> None:
    """Wait for surgeon's first line; before it, Python ends by the signal in its own words."""
    status = Path(f"/proc/{process.pid}/status")
    caught = 0
    while not caught >> (signal.SIGHUP - 1) & 1 and process.poll() is None:
        time.sleep(0.005)
        with suppress(OSError, IndexError):
            caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)


def heard() -> None:
    """Hear signals that a shell has its jobs in the background, or nohup, ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def remove_outputs(folder):
    names = ["out", "out.safetensors", "out.manifest.json"]
    subprocess.run(["rm", "-rf", *names], cwd=folder, check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_signals_clean_up_at_any_moment(folder, attack, number, target):
    before = names(folder)
    ended = 0
    began = time.monotonic()
    assert run(folder, *APPLY[:3], target).returncode == 0
    whole = time.monotonic() - began
    remove_outputs(folder)
    for _ in attack.within(range(25), 40):
        process = subprocess.Popen([*SURGEON, *APPLY[:3], target], cwd=folder, text=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   preexec_fn=heard)  # fmt: skip
        await_listening(process)
        time.sleep(attack.random.uniform(0, 0.7 * whole))
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
        # A signal may come once the output is in place: then it is whole, and stays.
        is_there = target in names(folder)
        assert is_there or process.returncode, said
        if process.returncode > 0:
            assert process.returncode == 128 + number, said
            assert said.splitlines()[-1] in ("terminated", "interrupted", "hung up")
            assert is_there or len(said.splitlines()) == 1, said
            ended += 1
        if is_there:
            assert run(folder, "verify", target).returncode == 0
            remove_outputs(folder)
        assert names(folder) == before
        attack.count(f"runs ended by {signal.Signals(number).name}")
    assert ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_while_python_ends_are_no_tracebacks(folder, attack, number):
    for _ in attack.within(range(10), 10):
        process = subprocess.Popen([*SURGEON, "inspect", "in.safetensors"], cwd=folder, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   preexec_fn=heard)  # fmt: skip
        process.stdout.readline()
        time.sleep(attack.random.uniform(0, 0.03))
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
        assert process.returncode in (0, 128 + number)
        assert said in ("", "terminated\n", "interrupted\n", "hung up\n")
        attack.count("signals while Python ends")


@pytest.mark.parametrize(
    ("shell", "code"),
    [("2>&-", 0), ("1>&-", 0), ("<&- 1>&- 2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 5)],
)
def test_streams_that_take_nothing(folder, attack, shell, code):
    found = run(folder, *APPLY, shell=shell)
    assert found.returncode == code
    assert "Traceback" not in found.stderr
    assert run(folder, "verify", "out.safetensors").returncode == 0
    attack.count("streams that are closed or full")


@pytest.mark.parametrize("arguments", [["--help"], ["ops"], ["inspect", "in.safetensors"]])
def test_answer_that_cannot_be_written_is_one_line(folder, attack, arguments):
    found = run(folder, *arguments, shell=">/dev/full")
    assert (found.returncode, found.stderr.count("\n")) == (5, 1)
    assert found.stderr == "stdout: cannot be written: no space left on device\n"
    attack.count("streams that are closed or full")


def limited(what: int, value: int):
    return {"preexec_fn": lambda: resource.setrlimit(what, (value, value))}


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20, 39_999_999])
@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_files_may_not_be_that_long(folder, attack, size, target):
    before = names(folder)
    found = run(folder, *APPLY[:3], target, **limited(resource.RLIMIT_FSIZE, size))
    assert found.returncode == 5, found.stderr
    assert "file too large" in found.stderr
    assert names(folder) == before
    attack.count("limits")


@pytest.mark.parametrize("mebibytes", [40, 70, 90, 118, 122, 124, 128, 140, 200, 400])
def test_little_address_space(folder, attack, mebibytes):
    before = names(folder)
    found = run(folder, *APPLY, **limited(resource.RLIMIT_AS, mebibytes << 20))
    assert found.returncode == 0 or names(folder) == before
    assert "Traceback" not in found.stderr
    # The line of NumPy's linear algebra, which ends the process, stands for ours.
    is_theirs = found.stderr.startswith("OpenBLAS")
    assert is_theirs or (found.returncode, found.stderr.count("\n")) in ((0, 3), (5, 1))
    attack.count("limits")


@pytest.mark.parametrize("most", [16, 24, 40, 256])
def test_few_files_may_be_open(folder, attack, most):
    before = names(folder)
    found = run(folder, *APPLY, **limited(resource.RLIMIT_NOFILE, most))
    assert found.returncode in (0, 3, 5), found.stderr
    assert "Traceback" not in found.stderr
    assert found.returncode == 0 or names(folder) == before
    attack.count("limits")


def small(folder: Path) -> Path | None:
    """Mount a small file system, where that is allowed."""
    made = folder / "small"
    made.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(made)]
    try:
        return made if subprocess.run(command, capture_output=True).returncode == 0 else None
    except OSError:
        return None


def test_full_disk_leaves_the_old_output(folder, attack):
    disk = small(folder)
    if disk is None:
        pytest.skip("nothing can be mounted here; the limit on files stands for a full disk")
    try:
        old = {"a": torch.ones(3)}
        save_file(old, disk / "tiny.safetensors", {"format": "pt"})
        output = str(disk / "out.safetensors")
        assert run(folder, "apply", "none.json", str(disk / "tiny.safetensors"), output)
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        found = run(folder, *APPLY[:3], output, "--force")
        assert found.returncode == 5
        assert "no space left on device" in found.stderr
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
        attack.count("full disks")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


TRUNCATED = """
import os, sys
from surgeon.lazy.views import View
def cut(self, *place, real=View._read_rows):
    os.truncate(self.file.path, 4096)
    real(self, *place)
View._read_rows = cut
from surgeon.__main__ import main
main()
"""


@pytest.mark.parametrize("checksums", ["crc32", "none"])
def test_input_that_shrinks_while_it_is_read(tmp_path, attack, checksums):
    torch.save({"weight": torch.randn(2000, 300).T}, tmp_path / "in.pt")
    (tmp_path / "none.json").write_text(json.dumps({"surgeon": 1, "steps": []}))
    command = [sys.executable, "-c", TRUNCATED, "apply", "none.json", "in.pt", "out.safetensors",
               "--checksums", checksums]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False,
                           env=environment)  # fmt: skip
    assert found.returncode == 3, found.stderr
    assert "in.pt: was changed while it was read" in found.stderr
    assert names(tmp_path) == ["in.pt", "none.json"]
    attack.count("inputs that shrink")


@pytest.mark.parametrize("arguments", [(), ("--link",), ("--checksums", "none")])
def test_many_shards_and_few_open_files(tmp_path, attack, arguments):
    tensors = {f"{i}.weight": torch.full((8,), float(i)) for i in range(300)}
    save_file(tensors, tmp_path / "in.safetensors", {"format": "pt"})
    steps = [{"op": "scale", "target": "7.weight", "by": 2.0}]
    models = {"other": "b"}
    for name, recipe in {
        "cut": {"steps": [], "output": {"shard_size": 32}},
        "scale": {"steps": steps, "output": {"shard_size": 32}},
        "both": {"steps": [AVERAGE], "models": models, "output": {"shard_size": 32}},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"surgeon": 1, **recipe}))
    few = limited(resource.RLIMIT_NOFILE, 100)
    for command in (
        ("apply", "cut.json", "in.safetensors", "a"), ("apply", "cut.json", "a", "b"),
        ("apply", "scale.json", "a", "c", *arguments),
        ("apply", "both.json", "a", "d", *arguments), ("verify", "c"), ("verify", "d"),
    ):  # fmt: skip
        found = run(tmp_path, *command, **few)
        assert found.returncode == 0, found.stderr
    attack.count("folders of more shards than open files")


def test_file_that_cannot_be_opened_is_no_mismatch(tmp_path, attack):
    save_file({"a": torch.ones(1)}, tmp_path / "in.safetensors", {"format": "pt"})
    (tmp_path / "none.json").write_text(json.dumps({"surgeon": 1, "steps": []}))
    run(tmp_path, "apply", "none.json", "in.safetensors", "out.safetensors")
    (tmp_path / "out.safetensors").unlink()
    (tmp_path / "out.safetensors").symlink_to("out.safetensors")
    found = run(tmp_path, "verify", "out.safetensors")
    assert (found.returncode, found.stderr.count("\n")) == (3, 1), found.stderr
    attack.count("files that cannot be opened")


# Root may look into every folder, unless this is taken away.
_PLAIN_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.parametrize(
    ("mode", "arguments", "code"),
    [
        (0o600, ("inspect", "closed/in.safetensors"), 3),
        (0o600, ("verify", "closed/in.safetensors"), 3),
        (0o600, ("apply", "none.json", "in.safetensors", "closed/out.safetensors"), 5),
        (0o600, ("apply", "none.json", "in.safetensors", "closed/out"), 5),
        (0o500, ("apply", "none.json", "in.safetensors", "closed/out.safetensors"), 5),
        (0o300, ("apply", "none.json", "in.safetensors", "closed/out.safetensors"), 0),
        (0o300, ("apply", "none.json", "in.safetensors", "closed/out"), 0),
    ],
)
def test_folders_without_some_permission(tmp_path, attack, mode, arguments, code):
    (tmp_path / "closed").mkdir()
    for place in (tmp_path, tmp_path / "closed"):
        save_file({"a": torch.ones(1)}, place / "in.safetensors", {"format": "pt"})
    (tmp_path / "none.json").write_text(json.dumps({"surgeon": 1, "steps": []}))
    prefix = _PLAIN_RIGHTS if os.geteuid() == 0 else []
    (tmp_path / "closed").chmod(mode)
    try:
        found = subprocess.run([*prefix, *SURGEON, *arguments], cwd=tmp_path, text=True,
                               capture_output=True, check=False)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("root's rights cannot be taken away here")
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert found.returncode == code, found.stderr
    assert code == 0 or found.stderr.count("\n") == 1, found.stderr
    assert code == 0 or names(tmp_path / "closed") == ["in.safetensors"]
    attack.count("folders without some permission")


def test_no_shared_memory_is_needed(folder, attack):
    inner = 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", inner, "sh", *SURGEON, *APPLY, "--workers", "2"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if "mount" in found.stderr or "unshare" in found.stderr:
        pytest.skip("nothing can be mounted here")
    assert found.returncode == 0, found.stderr
    expected = run(folder, *APPLY[:3], "shared.safetensors", "--workers", "2")
    assert expected.returncode == 0
    made = [(folder / name).read_bytes() for name in ("out.safetensors", "shared.safetensors")]
    assert made[0] == made[1]
    attack.count("runs without shared memory")
