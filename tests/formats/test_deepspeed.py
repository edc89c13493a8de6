"""DeepSpeed ZeRO folders: laid out as its ranks do, put together as zero_to_fp32.py does."""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict

import pytest
import torch

from surgeon.formats import open_checkpoint, open_optimizer
from tests.formats.test_torch import error_of, expected, values

SHAPES = [{"embed.weight": (5, 3), "fc.weight": (4, 3)}, {"fc.bias": (4,), "norm": (7,)}]
BUFFERS = {"mask": torch.tensor([True, False]), "running": torch.randn(3)}
FROZEN = {"frozen.weight": torch.randn(3, 5).bfloat16()}


class LossScaler:
    """DeepSpeed pickles one of its own class into every file."""

    cur_scale = 1.0


class ZeroStageEnum(int, enum.Enum):
    """What DeepSpeed states a stage as."""

    optimizer_states = 1
    gradients = 2
    weights = 3


ZeroStageEnum.__module__ = "deepspeed.runtime.zero.config"


@pytest.fixture(autouse=True)
def _deepspeed(monkeypatch):
    """Pickle looks a class up before it writes its name."""
    module = types.ModuleType("deepspeed.runtime.zero.config")
    module.ZeroStageEnum = ZeroStageEnum
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero.config", module)


def parameters():
    torch.manual_seed(0)
    return [{name: torch.randn(shape) for name, shape in group.items()} for group in SHAPES]


def padded(flat, multiple):
    return torch.cat([flat, torch.full((-len(flat) % multiple,), 77.0)])


def parts_of(groups, ranks, stage):
    """Return, for each rank, the flat tensors that it holds."""
    if stage < 3:  # a group end to end, then cut
        flats = [padded(torch.cat([t.reshape(-1) for t in g.values()]), 2 * ranks) for g in groups]
        cut = [flat.chunk(ranks) for flat in flats]
        return [[pieces[rank].clone() for pieces in cut] for rank in range(ranks)]
    every = [padded(t.reshape(-1), ranks).chunk(ranks) for g in groups for t in g.values()]
    whole = [torch.cat([pieces[rank] for pieces in every]) for rank in range(ranks)]
    first = len(every[0][0])  # sub-groups end where parameters do
    return [[flat[:first].clone(), flat[first:].clone()] for flat in whole]


@pytest.fixture
def saved(tmp_path):
    def save(stage, ranks, groups=None, extra=None):
        groups = groups or parameters()
        folder = tmp_path / "run" / "global_step3"
        folder.mkdir(parents=True)
        (tmp_path / "run" / "latest").write_text("global_step3")
        whole = {name: t.half() for group in groups for name, t in group.items()}
        empty = {name: torch.empty(0) for name in whole}
        module = {**BUFFERS, **(empty if stage == 3 else whole), "tied.weight": torch.empty(0)}
        module |= {name: torch.empty(0) if stage == 3 else t for name, t in FROZEN.items()}
        parts = parts_of(groups, ranks, stage)
        if stage < 3:  # the padding at a group's end is not saved, but that of its moments is
            sizes = [sum(t.numel() for t in group.values()) for group in groups]
            parts[-1] = [part[: len(part) - -size % (2 * ranks)].clone()
                         for part, size in zip(parts[-1], sizes, strict=True)]  # fmt: skip
        moments = parts_of([{n: t * 2 for n, t in g.items()} for g in groups], ranks, stage)
        for rank in range(ranks):
            frozen = {n: padded(t.reshape(-1).float(), ranks).bfloat16().chunk(ranks)[rank].clone()
                      if stage == 3 else t for n, t in FROZEN.items()}  # fmt: skip
            state = {
                "module": module, "buffer_names": list(BUFFERS),
                "param_shapes": [OrderedDict((n, torch.Size(s)) for n, s in g.items())
                                 for g in SHAPES],
                "frozen_param_shapes": {n: t.shape for n, t in FROZEN.items()},
                "frozen_param_fragments": frozen, "shared_params": {"tied.weight": "embed.weight"},
                "ds_version": "0.16.0", **(extra or {}),
            }  # fmt: skip
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            if stage == 3 or rank == 0:
                torch.save(state, folder / f"{prefix}mp_rank_00_model_states.pt")
            base = {
                "state": {n: {"step": 3, "exp_avg": m} for n, m in enumerate(moments[rank])},
                "param_groups": [{"lr": 0.1, "params": [n]} for n in range(2)],
            }
            key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
            where = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
            optimizer = {
                "loss_scaler": LossScaler(), "zero_stage": ZeroStageEnum(stage),
                key: parts[rank], where: base,
                "partition_count": ranks if stage == 3 else [ranks] * 2,
            }  # fmt: skip
            torch.save(
                {"optimizer_state_dict": optimizer},
                folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
            )
        return tmp_path / "run"

    return save


CASES = [(stage, ranks) for stage in (1, 2, 3) for ranks in (1, 2, 3)]


@pytest.mark.parametrize(("stage", "ranks"), CASES)
def test_parameters_are_put_together_byte_for_byte(saved, stage, ranks):
    groups = parameters()
    checkpoint = open_checkpoint(str(saved(stage, ranks, groups)))
    whole = {**BUFFERS, **groups[0], **groups[1], **FROZEN}
    assert set(checkpoint.tensors) == {*whole, "tied.weight"}
    for name, tensor in whole.items():
        assert checkpoint.tensors[name].spec.shape == tuple(tensor.shape)
        assert values(checkpoint.tensors[name]) == expected(tensor), name
    assert checkpoint.tensors["tied.weight"] is checkpoint.tensors["embed.weight"]
    assert f"DeepSpeed ZeRO stage {stage}: float32 parameters of {ranks} ranks" in checkpoint.notes
    checkpoint.close()


@pytest.mark.parametrize(("stage", "ranks"), [(2, 3), (3, 2)])
def test_moments_are_there_under_the_parameters_names(saved, stage, ranks):
    groups = parameters()
    state = open_optimizer(str(saved(stage, ranks, groups)))
    entries = {entry.block: entry for entry in state.entries}
    assert [len(group) for group in state.groups] == [2, 2]
    for name, tensor in {**groups[0], **groups[1]}.items():
        assert values(entries[name].values["exp_avg"]) == expected(tensor * 2)
        assert entries[name].numbers == {"step"}
    state.close()


def test_state_of_another_layout_is_not_taken_for_moments(saved):
    folder = saved(2, 2)
    path = folder / "global_step3" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    value = torch.load(path, weights_only=False)
    value["optimizer_state_dict"]["base_optimizer_state"] = [{"exp_avg": torch.ones(3)}]
    torch.save(value, path)
    open_checkpoint(str(folder)).close()
    state = open_optimizer(str(folder))
    assert all("not one of moments" in entry.problem for entry in state.entries)


def test_the_folder_of_the_ranks_opens_too(saved):
    checkpoint = open_checkpoint(str(saved(3, 2) / "global_step3"))
    assert "fc.weight" in checkpoint.tensors


def test_one_rank_s_placeholders_are_named_as_what_they_are(saved):
    path = saved(3, 2) / "global_step3" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    module = f"{path}#module"
    with pytest.raises(Exception, match=r"6 of 8 tensors of shape \(0,\), which DeepSpeed's ZeRO"):
        open_checkpoint(module)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero_pp_rank_1_mp_rank_00_optim_states.pt", "found 1 ranks' optimizers, expected 2"),
        ("mp_rank_00_model_states.pt", "0 files of model states"),
    ],
)
def test_files_that_are_missing_are_told(saved, name, words):
    folder = saved(2, 2)
    (folder / "global_step3" / name).unlink()
    assert words in error_of(folder / "global_step3")


def test_parts_of_pipelines_are_refused_by_name(saved):
    folder = saved(2, 2) / "global_step3"
    (folder / "layer_01-model_00-model_states.pt").touch()
    assert "'layer_01-model_00-model_states.pt': parts of a pipeline" in error_of(folder)


def test_shapes_that_do_not_fit_are_refused(saved):
    shapes = [{"embed.weight": torch.Size([50, 3])}, {"fc.bias": torch.Size([4])}]
    folder = saved(2, 2, extra={"param_shapes": shapes}) / "global_step3"
    assert "fewer elements of parameters than their shapes" in error_of(folder)
