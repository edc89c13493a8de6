"""TorchScript archives: the weights that torch's own state_dict() gives, and no code."""

from __future__ import annotations

import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.base.errors import CheckpointError
from surgeon.formats import open_checkpoint
from tests.formats.test_torch import error_of, values

pytestmark = pytest.mark.filterwarnings("ignore")


class Part(nn.Module):
    """Of everything that a module may hold something."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.plain, self.several = torch.arange(3.0), [torch.ones(2)]
        self.register_buffer("scale", torch.full((2,), 3.0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.norm(self.linear(inputs + self.plain)) * self.scale
        return outputs + self.several[0]


class Whole(nn.Module):
    """Twice the same class, tied weights, numbered modules and a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Part(), Part()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        self.layers[2].weight = self.layers[0].weight
        self.recurrent = nn.LSTM(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(self.first(inputs) + self.second(inputs))
        return outputs


@pytest.fixture(scope="module", params=["script", "trace"])
def archive(request, tmp_path_factory):
    torch.manual_seed(0)
    model = Whole().eval()
    path = tmp_path_factory.mktemp("jit") / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = (torch.jit.script(model) if request.param == "script"
                else torch.jit.trace(model, torch.ones(2, 3)))  # fmt: skip
        torch.jit.save(made, path)
        return path, torch.jit.load(path).state_dict()


def saved(module, path):
    torch.jit.save(module, path)
    return path


def test_weights_are_those_of_the_state_dict(archive):
    path, expected = archive
    checkpoint = open_checkpoint(str(path))
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        assert values(checkpoint.tensors[name]) == np.asarray(tensor).tobytes(), name
    tied = checkpoint.tensors["layers.0.weight"]
    assert tied is checkpoint.tensors["layers.2.weight"]


def test_what_is_left_behind_is_said(archive):
    (note,) = [n for n in open_checkpoint(str(archive[0])).notes if n.startswith("TorchScript")]
    assert note.startswith("TorchScript: its code and constants are left behind")


def test_plain_tensors_of_modules_are_named(tmp_path):
    torch.jit.save(torch.jit.script(Whole()), tmp_path / "a.pt")
    notes = " ".join(open_checkpoint(str(tmp_path / "a.pt")).notes)
    assert "tensors that are no parameters or buffers: 'Part.plain', 'Part.several'" in notes


def test_packed_weights_are_refused_and_not_lost(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    torch.jit.save(torch.jit.script(quantised), tmp_path / "a.pt")
    assert "which are packed or quantised" in error_of(tmp_path / "a.pt")


def test_a_frozen_module_is_refused_as_what_it_is(tmp_path):
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(4, 2).eval()))
    assert not torch.jit.load(saved(frozen, tmp_path / "a.pt")).state_dict()
    assert "constants of its code, as torch.jit.freeze leaves them" in error_of(tmp_path / "a.pt")


@pytest.mark.slow
def test_a_program_of_export_is_refused_as_what_it_is(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), tmp_path / "a.pt2")
    message = error_of(tmp_path / "a.pt2")
    assert "this is a program of torch.export; save its weights with torch.save(" in message


def with_code(folder, code):
    """Save a layer, and put other code in place of its own."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "a.pt")
    with zipfile.ZipFile(folder / "a.pt") as old, zipfile.ZipFile(folder / "b.pt", "w") as new:
        for item in old.infolist():
            data = code if item.filename.endswith(".py") else old.read(item)
            new.writestr(item.filename, data)
    return folder / "b.pt"


def test_versions_that_list_no_buffers_have_all_tensors(tmp_path):
    path = with_code(tmp_path, b'class Linear(Module):\n  __parameters__ = ["weight", ]\n')
    assert set(open_checkpoint(str(path)).tensors) == {"weight", "bias"}


@pytest.mark.parametrize(
    "code", [b"", b"class Linear(Module):\n  __parameters__ = []\n  __buffers__ = []\n"]
)
def test_code_that_lists_nothing_gives_no_weights(tmp_path, code):
    assert "found no dict of tensors" in error_of(with_code(tmp_path, code))


def test_damaged_archives_are_refused_in_one_line_or_read(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    data, random, refused = (tmp_path / "a.pt").read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[random.integers(len(data) // 2, len(data), 3)] = random.integers(0, 256, 3)
        (tmp_path / "b.pt").write_bytes(damaged.tobytes())
        try:
            open_checkpoint(str(tmp_path / "b.pt")).close()
        except CheckpointError:
            refused += 1
    assert refused > 20
