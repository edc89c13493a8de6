"""What a killed run left is finished, or undone, by the next command that names the output."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from surgeon.base.errors import WriteError
from surgeon.formats import open_checkpoint, swapping
from surgeon.formats.remains import settled
from surgeon.formats.swapping import aside_of, temporary_beside
from surgeon.inspection import diff
from surgeon.inspection.compare import compare
from surgeon.inspection.verify import verify
from tests.network import read, write

PARTS = ("out.manifest.json", "out.safetensors")


TOKEN = "-0123456789abcdef"


@pytest.fixture(params=["", TOKEN])
def killed(bench, request):
    """An output, and beside it all of what is to replace it, complete.

    In a folder that others may write to, the names of a run end in a secret.
    """
    bench.token = request.param
    bench.folder.chmod(0o777 if bench.token else 0o755)
    write(bench.input, {"a": torch.ones(3)})
    bench.operate()
    newer = bench.folder / "newer"
    newer.mkdir()
    write(bench.input, {"a": torch.zeros(3)})
    bench.operate(to=newer / "out.safetensors")
    for name in reversed(PARTS):  # the manifest is the last to be written
        os.utime(newer / name, ns=(time.time_ns(),) * 2)
        (newer / name).rename(temporary_beside(bench.folder / name, bench.token))
    newer.rmdir()
    return bench


def swap(bench, name):
    swapping.swap(bench.folder / name, bench.token)


def left(bench):
    return left_in(bench.folder)


def left_in(folder):
    return sorted(path.name for path in folder.glob(".*"))


def test_manifest_in_place_is_followed_by_the_weights(killed):
    swap(killed, PARTS[0])
    note = settled(killed.output)
    assert note == "a killed run was replacing it: all of it was written, and is in place now"
    assert read(killed.output)["a"].tolist() == [0, 0, 0]
    assert verify(killed.output, 1).verified
    assert left(killed) == []


@pytest.mark.parametrize("swapped", [(), PARTS])
def test_whole_output_stays_as_it_is(killed, swapped):
    for name in swapped:
        swap(killed, name)
    assert settled(killed.output) == ""
    assert read(killed.output)["a"].tolist() == [0.0 if swapped else 1.0] * 3
    assert verify(killed.output, 1).verified
    killed.operate()
    assert left(killed) == []


def test_weights_that_somebody_wrote_since_stay(killed):
    swap(killed, PARTS[0])
    write(killed.output, {"mine": torch.ones(1)})
    assert settled(killed.output) == ""
    assert read(killed.output).keys() == {"mine"}
    assert temporary_beside(killed.output, killed.token).exists()


def test_run_that_is_alive_is_left_alone(killed):
    swap(killed, PARTS[0])
    with temporary_beside(killed.output, killed.token).open("rb") as held:
        assert swapping.lock(held.fileno())
        assert settled(killed.output) == ""
        with pytest.raises(WriteError, match="another run is writing this output"):
            killed.operate()
    assert settled(killed.output) != ""


@pytest.mark.parametrize("name", ["out.safetensors", "out.manifest.json"])
def test_verify_tells_of_it(killed, name):
    swap(killed, PARTS[0])
    found = verify(killed.folder / name, 1)
    assert found.verified
    assert "a killed run was replacing it" in found.notes[0]


@pytest.mark.parametrize(
    "looking", [lambda a: diff.compare(a, a, ()), lambda a: compare([a] * 2, 1)]
)
def test_what_compares_tells_of_it_too(killed, looking):
    swap(killed, PARTS[0])
    (note,) = looking(str(killed.output)).notes
    assert note.startswith(f"{killed.output}: a killed run was replacing it")


def test_output_that_lies_aside_comes_back(bench):
    write(bench.input, {"a": torch.ones(3)})
    target = bench.folder / "model"
    bench.operate(to=target)
    shutil.copytree(target, temporary_beside(target))
    target.rename(aside_of(target))
    with_note = open_checkpoint(str(target))
    with_note.close()
    assert with_note.notes[0] == (
        "a killed run was replacing it: model is back, from .model.surgeon-replaced"
    )
    bench.operate(to=target)
    assert left(bench) == []


def test_failure_between_two_names_undoes_the_first(bench, monkeypatch):
    write(bench.input, {"a": torch.ones(3)})
    bench.operate()
    write(bench.input, {"a": torch.zeros(3)})
    places = []

    def failing(place, token, swap=swapping.swap):
        places.append(place.name)
        if len(places) == 2:
            raise OSError(5, "Input/output error")
        swap(place, token)

    monkeypatch.setattr("surgeon.output.publish.swap", failing)
    with pytest.raises(WriteError, match="input/output error"):
        bench.operate()
    assert places == ["out.manifest.json", "out.safetensors", "out.manifest.json"]
    assert read(bench.output)["a"].tolist() == [1, 1, 1]
    assert verify(bench.output, 1).verified
    assert left(bench) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_names_are_swapped_by_steps_too(tmp_path, monkeypatch, has_links):
    monkeypatch.setattr(swapping, "_exchanged", lambda first, second: False)
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *names: Path("/nowhere").stat())
    place, temporary = tmp_path / "out", temporary_beside(tmp_path / "out")
    place.write_text("old")
    temporary.write_text("new")
    swapping.swap(place)
    assert (place.read_text(), temporary.read_text()) == ("new", "old")
    assert not aside_of(place).exists()


@pytest.mark.parametrize("kind", [Path.touch, Path.mkdir])
def test_swap_whose_last_step_fails_is_undone(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(swapping, "_exchanged", lambda first, second: False)
    place, temporary = tmp_path / "out", temporary_beside(tmp_path / "out")
    kind(place)
    old = place.stat().st_ino
    kind(temporary)

    def rename(self, target, real=Path.rename):
        if (self, target) == (aside_of(place), temporary):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        swapping.swap(place)
    assert place.stat().st_ino == old
    assert left_in(tmp_path) == [temporary.name]


@pytest.mark.parametrize("number", [38, 37, 95])  # ENOSYS, ENOLCK, ENOTSUP
@pytest.mark.parametrize("kind", ["out.safetensors", "model"])
def test_file_system_without_locks_is_told_in_a_note(bench, monkeypatch, number, kind):
    def refused(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(swapping.fcntl, "flock", refused)
    write(bench.input, {"a": torch.ones(3)})
    made = bench.operate(to=bench.folder / kind)
    assert any("has no locks" in note for note in made.notes)
    assert left(bench) == []


def test_folder_that_cannot_be_flushed_is_no_failure(bench, monkeypatch):
    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(22, os.strerror(22))

    monkeypatch.setattr(os, "fsync", fsync)
    write(bench.input, {"a": torch.ones(3)})
    bench.operate()
    assert verify(bench.output, 1).verified
