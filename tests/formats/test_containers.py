"""Which dict of a torch file is the model, what names it, and wrappers' segments in its names."""

from __future__ import annotations

import zipfile

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from surgeon.formats import open_checkpoint, open_optimizer
from tests.formats.test_torch import assert_same, error_of, rewritten

X = torch.arange(6.0)
STATE = {"w": X, "b": X + 1}
OTHER = {"w": X + 2, "b": X + 3}
OPTIMIZER = {"state": {0: {"exp_avg": X}}, "param_groups": [{"params": [0]}]}
HALF = {"w": X, "b": X + 1, "decay": 0.99, "updates": 5}
SCORES = {f"runs/last-v{n}.ckpt": torch.tensor(0.5 + n) for n in range(3)}
# What Lightning writes for ModelCheckpoint(monitor=...) and WeightAveraging.
LIGHTNING = {
    "epoch": 3, "state_dict": STATE, "optimizer_states": [OPTIMIZER], "lr_schedulers": [{}],
    "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best_k_models": SCORES, "kth_value": X[0]}},
    "averaging_state": {"n_averaged": torch.tensor(5)},
    "hyper_parameters": {"loss": torch.nn.CrossEntropyLoss(weight=X)},
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    def save(value):
        torch.save(value, tmp_path / "in.pt")
        return tmp_path / "in.pt"

    return save


@pytest.mark.parametrize(
    ("value", "inner"),
    [
        ((STATE, OPTIMIZER), "0"),
        ([{"epoch": 3}, STATE], "1"),
        ({"models": [STATE]}, "models.0"),
        ({"runs": [{"nets": (1, STATE)}]}, "runs.0.nets.1"),
        (LIGHTNING, "state_dict"),
        ({"ema": HALF, "epoch": 3}, "ema"),
        ({"scores": SCORES, "model": STATE}, "model"),
    ],
)
def test_the_one_model_is_found_and_named(saved, value, inner):
    path = saved(value)
    checkpoint = open_checkpoint(str(path))
    assert f"took the tensors in {inner!r}" in checkpoint.notes
    assert {"w", "b"} <= checkpoint.tensors.keys()
    assert list(open_checkpoint(f"{path}#{inner}").tensors) == list(checkpoint.tensors)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ([STATE, OTHER], ["0", "1"]),
        ({"models": [STATE, OTHER]}, ["models.0", "models.1"]),
        ({"netG": STATE, "netD": OTHER, "optG": OPTIMIZER}, ["netG", "netD"]),
        ({"ema": HALF, "shadow": {**HALF}}, ["ema", "shadow"]),
    ],
)
def test_several_are_listed_under_names_that_open_them(saved, value, names):
    path = saved(value)
    lines = error_of(path).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{path}#{name}" for name in names]
    for name in names:
        assert {"w", "b"} <= open_checkpoint(f"{path}#{name}").tensors.keys()


def test_the_optimizer_beside_a_model_in_a_tuple_is_named(saved):
    state = open_optimizer(f"{saved((STATE, OPTIMIZER))}#1")
    assert list(state.entries[0].values) == ["exp_avg"]


def test_numbers_alone_are_a_model_where_there_is_nothing_else(saved):
    value = {"temperature": X[1].clone(), "bias": X[2].clone()}
    assert_same(saved(value), value)


def test_scores_under_paths_are_not_taken_for_want_of_better(saved):
    path = saved({"scores": SCORES, "ema": STATE | {"n": 1, "m": 2, "o": 3}})
    assert "it holds 'scores' (dict of 3), 'ema' (dict of 5)" in error_of(path)
    assert "w" in open_checkpoint(f"{path}#ema").tensors


def test_a_name_of_endless_keys_takes_no_time(saved, tmp_path):
    """A million dicts, each in the one before: their names would be as long."""
    count = 100_000
    nested = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * count + b"}" + b"s" * count + b"."
    rewritten(saved(STATE), tmp_path / "a.pt", {"data.pkl": nested})
    assert "found no dict of tensors; it holds 'a' (dict of 1)" in error_of(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "opcode",
    [b"]", *(pytest.param(code, marks=pytest.mark.slow) for code in (b"}", b"\x8f", b"]\x94"))],
)
def test_a_pickle_of_nothing_but_containers_is_refused_before_it_fills_the_memory(
    saved, tmp_path, opcode
):
    hostile = b"\x80\x04(" + opcode * 3_000_000 + b"l."
    rewritten(saved(STATE), tmp_path / "a.pt", {"data.pkl": hostile})
    assert "MB of objects" in error_of(tmp_path / "a.pt")


def test_as_many_tensors_as_large_models_have_are_not_too_many(saved):
    """300 000, with their moments: a tenth of it, by what it may take for its size."""
    path = saved({f"model.layers.{n}.mlp.weight": X for n in range(2_000)})
    assert len(open_checkpoint(str(path)).tensors) == 2_000
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("in/data.pkl").file_size * 24 > 2_000 * 800


WRAPPED = [
    ("module.", "", "removed the wrapper 'module.' from all names"),
    ("module.module.", "", "removed the wrapper 'module.' from all names"),
    ("_orig_mod.", "", "removed the wrapper '_orig_mod.' from all names"),
    ("layers.0._fsdp_wrapped_module.", "layers.0.", "'_fsdp_wrapped_module.' from all"),
    ("layers.0._checkpoint_wrapped_module.", "layers.0.", "'_checkpoint_wrapped_module.' fr"),
    ("encoder.module.", "encoder.", "removed the wrapper 'module.' from all names"),
    ("model.", "model.", ""),
    ("my_module.", "my_module.", ""),
]


@pytest.mark.parametrize(("before", "after", "note"), WRAPPED)
def test_segments_of_wrappers_are_removed_and_reported(saved, before, after, note):
    path = saved({f"{before}{name}": tensor for name, tensor in STATE.items()})
    checkpoint = open_checkpoint(str(path))
    assert list(checkpoint.tensors) == [f"{after}{name}" for name in STATE]
    assert note in "".join(checkpoint.notes)
    assert len(checkpoint.notes) == bool(note)


def test_segments_in_some_names_are_removed_from_those(saved):
    state = {"head.w": X, "body.0._checkpoint_wrapped_module._orig_mod.w": X + 1, "x.module": X + 2}
    checkpoint = open_checkpoint(str(saved(state)))
    assert list(checkpoint.tensors) == ["head.w", "body.0.w", "x.module"]
    assert checkpoint.notes == (
        "removed the wrapper '_orig_mod.' from 1 names",
        "removed the wrapper '_checkpoint_wrapped_module.' from 1 names",
    )


def test_segments_stay_where_two_names_would_meet(saved):
    checkpoint = open_checkpoint(str(saved({"module.w": X, "w": X + 1, "_orig_mod.b": X})))
    assert list(checkpoint.tensors) == ["module.w", "w", "b"]
    assert checkpoint.notes[0].startswith("kept 'module.' in 'module.w', since")


def test_an_averaged_model_is_the_model(saved):
    averaged = AveragedModel(torch.nn.Linear(2, 3))
    checkpoint = open_checkpoint(str(saved(averaged.state_dict())))
    assert list(checkpoint.tensors) == ["weight", "bias"]
    assert "AveragedModel" in checkpoint.notes[0]
    assert checkpoint.notes[1] == "removed the wrapper 'module.' from all names"
