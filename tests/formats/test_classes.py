"""Objects of classes that are not known, and whole modules: read as data, never built."""

from __future__ import annotations

import collections
import enum
import functools
import os
import zipfile
from dataclasses import dataclass

import pytest
import torch

from surgeon.formats import open_checkpoint, open_contents
from tests.formats.test_torch import assert_same, error_of

MODEL = {"w": torch.arange(6.0), "b": torch.ones(2)}


class Colour(enum.Enum):
    RED = 1


@dataclass
class Settings:
    depth: int = 3


class LossScaler:
    def __init__(self):
        self.cur_scale = torch.tensor(65536.0)

    class Inner:
        pass


class Config(dict):
    pass


class Averages(collections.OrderedDict):
    pass


def some_function():
    raise AssertionError("nobody calls this")


OBJECTS = {
    "enum": Colour.RED, "dataclass": Settings(), "partial": functools.partial(some_function, 1),
    "exception": ValueError("x"), "function": some_function, "class": Settings,
    "scaler": LossScaler(), "nested": LossScaler.Inner(), "dict": Config(a=1), "long": 1 << 70,
    "range": range(3), "default": collections.defaultdict(int, a=1), "lambda": len,
    "method": LossScaler().__init__,
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_of_any_class_stand_beside_a_model(tmp_path, kind, protocol):
    value = {"model": MODEL, "extra": OBJECTS[kind], "hyper_parameters": {"deep": [OBJECTS[kind]]}}
    torch.save(value, tmp_path / "a.pt", pickle_protocol=protocol)
    checkpoint = assert_same(tmp_path / "a.pt", MODEL)
    is_plain = kind in ("long", "range", "default")
    names = [note for note in checkpoint.notes if note.startswith("not built")]
    assert len(names) == (not is_plain)


def test_their_names_are_one_note(tmp_path):
    torch.save({"model": MODEL, "a": Settings(), "b": [Colour.RED] * 3}, tmp_path / "a.pt")
    assert open_checkpoint(str(tmp_path / "a.pt")).notes[1:] == (
        "not built, since their classes are not known: 'tests.formats.test_classes.Settings', "
        "'tests.formats.test_classes.Colour'",
    )


def test_python_2_names_of_numbers_and_ranges(tmp_path):
    """Protocol 2 calls them `__builtin__ long` and `__builtin__ xrange`."""
    value = {"x": MODEL["w"], "types": [int, range(4), collections.defaultdict(int)]}
    torch.save(value, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        pickled = archive.read("a/data.pkl")
    assert b"c__builtin__\nlong\n" in pickled
    assert b"c__builtin__\nxrange\n" in pickled
    contents = open_contents(tmp_path / "a.pt")
    assert contents.value["types"][1] == (0, 4, 1)
    contents.close()


def test_a_dict_of_another_class_is_a_dict(tmp_path):
    torch.save({"model": Averages(MODEL), "config": Config(a=1)}, tmp_path / "a.pt")
    assert_same(tmp_path / "a.pt", MODEL)


class Holder:
    def __init__(self):
        self.data = torch.ones(3)


class _Rebuilt:
    def __reduce__(self):
        return some_function, (torch.ones(3), "nf4")


@pytest.mark.parametrize("made", [Holder, _Rebuilt])
def test_tensors_inside_an_object_among_weights_are_not_lost_in_silence(tmp_path, made):
    torch.save({**MODEL, "quantised": made()}, tmp_path / "a.pt")
    message = error_of(tmp_path / "a.pt")
    assert "tensor 'quantised': found 'tests.formats.test_classes." in message
    assert "save plain tensors instead" in message


class _Distributed:
    def __reduce__(self):
        from torch.distributed.tensor import DTensor  # takes seconds

        function = torch._utils._rebuild_tensor_v2
        return torch._tensor._rebuild_from_type_v2, (function, DTensor, (torch.ones(3),), {})


def test_distributed_tensors_are_named_as_what_they_are(tmp_path):
    torch.save({**MODEL, "sharded": _Distributed()}, tmp_path / "a.pt")
    message = error_of(tmp_path / "a.pt")
    assert "'sharded': found 'torch.distributed.tensor.DTensor', of which this file" in message


@pytest.fixture
def one_rank():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["DTensor", "ShardedTensor"])
def test_what_ranks_of_fsdp_save_one_by_one_is_refused_once_with_the_way_out(
    tmp_path, one_rank, kind
):
    from torch.distributed._shard import sharded_tensor, sharding_spec
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    fully_shard(model, mesh=one_rank)
    halves = sharding_spec.ChunkShardingSpec(0, placements=["rank:0/cpu"])
    shards = {name: sharded_tensor.zeros(halves, 4, 4) for name in "abcd"}
    torch.save(model.state_dict() if kind == "DTensor" else shards, tmp_path / "rank_0.pt")
    (line,) = error_of(tmp_path / "rank_0.pt").splitlines()
    assert f"{kind}', of which this file holds one rank's part; in the run that" in line
    assert "a file for each rank holds parts alone; in the run" in error_of(tmp_path)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(3)
        self.scale = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("anchors", torch.arange(4))
        self.register_buffer("cache", torch.arange(5), persistent=False)
        self.register_buffer("nothing", None)
        self.settings = Settings()

    def __setstate__(self, state):
        os.environ["SURGEON_TEST_RAN"] = "1"
        super().__setstate__(state)


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(Block(), Block(), torch.nn.Linear(3, 4))
        self.model[1].conv.weight = self.model[0].conv.weight
        self.yaml = {"nc": 4}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_read_as_its_state_dict(tmp_path, legacy, monkeypatch):
    monkeypatch.delenv("SURGEON_TEST_RAN", raising=False)
    module = Detector()
    value = {"epoch": -1, "model": module, "ema": None, "optimizer": None}
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = assert_same(tmp_path / "a.pt", module.state_dict())
    tensors = checkpoint.tensors
    assert tensors["model.0.conv.weight"] is tensors["model.1.conv.weight"]
    assert checkpoint.notes[:2] == (
        "took the tensors in 'model'",
        "read the tensors of a pickled 'tests.formats.test_classes.Detector' by its structure, "
        "under the names that state_dict() gives them; none of its code ran",
    )
    assert not any("torch.nn.modules" in note for note in checkpoint.notes)
    assert "SURGEON_TEST_RAN" not in os.environ


def test_one_of_two_modules_has_to_be_named(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2), "ema": torch.nn.Linear(2, 2)}, tmp_path / "a.pt")
    assert f"{tmp_path}/a.pt#ema: found one of 2" in error_of(tmp_path / "a.pt")
    assert list(open_checkpoint(f"{tmp_path}/a.pt#ema").tensors) == ["weight", "bias"]


def test_a_part_of_a_module_wrapped_in_data_parallel(tmp_path):
    module = torch.nn.DataParallel(torch.nn.Linear(2, 2))
    torch.save(module, tmp_path / "a.pt")
    checkpoint = assert_same(tmp_path / "a.pt", module.module.state_dict())
    assert checkpoint.notes[-1] == "removed the wrapper 'module.' from all names"


def test_hooks_that_change_a_state_dict_are_mentioned(tmp_path):
    module = torch.nn.Linear(2, 2)
    module._register_state_dict_hook(some_function)
    torch.save(module, tmp_path / "a.pt")
    assert any("names may differ" in n for n in open_checkpoint(str(tmp_path / "a.pt")).notes)


def test_a_module_in_itself_is_refused(tmp_path):
    module = torch.nn.Linear(2, 2)
    module._modules["again"] = module
    torch.save(module, tmp_path / "a.pt")
    assert "modules nested more than 100 deep" in error_of(tmp_path / "a.pt")
