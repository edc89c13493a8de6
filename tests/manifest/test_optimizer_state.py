"""An optimizer's state goes through the surgery that its parameters go through."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from surgeon import recipe, surgery
from surgeon.base.errors import CheckpointError, PlanError, SurgeonError, UsageError, WriteError
from surgeon.formats.checkpoint import Checkpoint
from surgeon.formats.files import InMemory
from surgeon.formats.optimizers import Entry, SavedState
from surgeon.inspection import verify
from surgeon.lazy import Joined, Selected, Stored, TensorSpec
from surgeon.manifest.optimizer_names import Order
from surgeon.manifest.optimizer_state import OptimizerState, carried
from surgeon.output.execute import Options
from tests.cli.test_cli import process, run
from tests.network import Json, write_recipe

WIDEN = {"op": "widen", "target": "fc", "rows": 1}
KINDS: dict[str, tuple[type[torch.optim.Optimizer], Json]] = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {}),
    "AdamW amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "AdamW fused": (torch.optim.AdamW, {"fused": True}),
    "AdamW foreach": (torch.optim.AdamW, {"foreach": True}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "Rprop": (torch.optim.Rprop, {}),
}


class Network(nn.Module):
    """body (4 to 6), BatchNorm, fc (6 to 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 7)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.body(inputs)))


def trained(
    kind: str = "Adam", *, named: bool = True, model: nn.Module | None = None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Train the network for some steps."""
    torch.manual_seed(0)
    model = model or Network()
    optimizer_class, args = KINDS[kind]
    members = model.named_parameters() if named else model.parameters()
    optimizer = optimizer_class(members, lr=0.1, **args)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()


LATER = {"stages": [{"name": "a"}, {"name": "b", "optimizer_state": "carry"}]}
NOBODY = {"stages": [{"name": "a"}, {"name": "b", "optimizer_state": "reset"}]}


class Operated:
    """What a recipe made of an optimizer's state."""

    def __init__(self, manifest: Json, path: Path, notes: list[str]) -> None:
        self.manifest, self.path, self.notes = manifest, path, notes
        self.blocks = manifest.get("optimizer_state", {}).get("parameters")
        self.tensors = load_file(path) if path.exists() else {}


def operate(
    folder: Path, saved: Any, *steps: Json, optimizer: str | None = None, output: str = "",
    force: bool = False, training: Json | None = None, **rest: Any,
) -> Operated:  # fmt: skip
    """Apply steps to what is saved as in.pt, or to the file of that name.

    The second of two stages carries the state that there is, unless `training` says otherwise.
    """
    rest["training"] = LATER if training is None else training
    source = folder / "in.pt" if not isinstance(saved, str) else folder / saved
    if not isinstance(saved, str):
        torch.save(saved, source)
    path = folder / (output or "out.safetensors")
    loaded = recipe.load(str(write_recipe(folder, *steps, **rest)), {})
    with surgery.opened(loaded, str(source), {}, optimizer) as opened:
        result = surgery.write(opened, path, Options(workers=1), force=force)
        notes = opened.notes
    manifest = json.loads(result.manifest.read_text())
    return Operated(manifest, result.optimizer or folder / "none", notes)


def both(model: nn.Module, optimizer: torch.optim.Optimizer) -> Json:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def kept(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Mapping[str, Any]:
    return optimizer.state[model.get_parameter(name)]


def message(folder: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(SurgeonError) as caught:
        operate(folder, *arguments, **options)
    return str(caught.value)


# through the ops


@pytest.mark.parametrize("kind", KINDS)
def test_widened_rows_are_zeros_and_old_ones_what_they_were(tmp_path: Path, kind: str) -> None:
    model, optimizer = trained(kind)
    made = operate(tmp_path, both(model, optimizer), WIDEN)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            found = made.tensors.pop(f"{name}/{key}")
            old = found[:7] if name.startswith("fc.") and value.ndim else found
            assert torch.equal(old, value)
            assert not found[7:].any() if old is not found else found.dtype == value.dtype
    assert not made.tensors
    assert [block for block in made.blocks if "[" in block] == ["fc.weight[0:7]", "fc.bias[0:7]"]


def test_renamed_cast_tied_and_deleted(tmp_path: Path) -> None:
    model, optimizer = trained()
    steps = [
        {"op": "rename", "from": "body", "to": "stem"},
        {"op": "cast", "target": "fc", "dtype": "BF16"},
        {"op": "tie", "target": "norm.bias", "to": "norm.weight", "when": "always"},
        {"op": "delete", "target": "stem.bias"},
    ]
    made = operate(tmp_path, both(model, optimizer), *steps)
    assert made.blocks == ["stem.weight", "norm.weight", "fc.weight", "fc.bias"]
    moments = {name: made.tensors[f"{name}/exp_avg"] for name in made.blocks}
    assert torch.equal(moments["stem.weight"], kept(model, optimizer, "body.weight")["exp_avg"])
    assert torch.equal(moments["norm.weight"], kept(model, optimizer, "norm.weight")["exp_avg"])
    assert moments["fc.weight"].dtype == torch.float32


def test_created_tensors_have_no_state(tmp_path: Path) -> None:
    model, optimizer = trained()
    steps = [
        {"op": "reinit", "target": "fc.bias", "init": "zeros"},
        {"op": "copy", "from": "body", "to": "twin"},
        {"op": "replace", "target": "fc", "rows": 3},
    ]
    made = operate(tmp_path, both(model, optimizer), *steps)
    assert made.blocks == ["body.weight", "body.bias", "norm.weight", "norm.bias"]
    assert not any("reset" in note for note in made.notes)


def test_untied_names_both_keep_their_state(tmp_path: Path) -> None:
    table = torch.ones(5, 3)
    model = nn.ParameterDict({"a": nn.Parameter(table)})
    optimizer = torch.optim.Adam(model.named_parameters())
    model["a"].sum().backward()
    optimizer.step()
    saved = {"model": {"a": model["a"].data, "b": model["a"].data}, "o": optimizer.state_dict()}
    made = operate(tmp_path, saved, {"op": "untie", "target": "b"})
    assert made.blocks == ["a", "b"]
    assert torch.equal(made.tensors["a/exp_avg"], made.tensors["b/exp_avg"])
    (tmp_path / "out.safetensors").unlink()
    (tmp_path / "out.manifest.json").unlink()
    made.path.unlink()
    assert operate(tmp_path, saved).blocks == ["a"]


def test_what_is_merged_starts_without(tmp_path: Path) -> None:
    model, optimizer = trained()
    torch.save(both(model, optimizer), tmp_path / "in.pt")
    save_file(Network().state_dict(), tmp_path / "other.safetensors")
    average = {"op": "average", "models": ["other"], "target": "fc"}
    models = {"other": str(tmp_path / "other.safetensors")}
    path = write_recipe(tmp_path, average, models=models, training=LATER)
    loaded = recipe.load(str(path), {})
    with surgery.opened(loaded, str(tmp_path / "in.pt"), models) as opened:
        assert opened.state is not None
        assert opened.state.reset == {
            "their values were made of several tensors": ("fc.weight", "fc.bias")
        }
        assert opened.state.parameters == ("body.weight", "body.bias", "norm.weight", "norm.bias")


def test_widened_twice_and_in_two_surgeries(tmp_path: Path) -> None:
    model, optimizer = trained()
    columns = {"op": "widen", "target": "fc.weight", "columns": 2}
    once = operate(tmp_path, both(model, optimizer), WIDEN, columns)
    assert once.blocks[-2:] == ["fc.weight[0:7,0:6]", "fc.bias[0:7]"]
    again = operate(
        tmp_path, "out.safetensors", WIDEN, optimizer=str(once.path), output="again.safetensors"
    )
    assert sorted(again.blocks) == sorted(once.blocks)
    moment = again.tensors["fc.weight/exp_avg"]
    assert moment.shape == (9, 8)
    assert torch.equal(moment[:7, :6], kept(model, optimizer, "fc.weight")["exp_avg"])
    assert not moment[7:].any()
    assert not moment[:, 6:].any()


def joined_state(k_shape: tuple[int, ...], k_keys: tuple[str, ...]) -> OptimizerState:
    """Carry the state of q (2, 3) and k into their first two and last rows, joined."""
    file = InMemory(Path("in"), np.zeros(64, np.uint8))

    def stored(offset: int, *shape: int) -> Stored:
        return Stored(file, offset, TensorSpec("F32", shape))

    given = {"q": stored(0, 2, 3), "k": stored(24, *k_shape)}
    kept = {"q": ("m", "step"), "k": k_keys}
    entries = tuple(
        Entry(
            name,
            {key: stored(0) if key == "step" else stored(0, *t.spec.shape) for key in kept[name]},
            frozenset({"step"}),
        )
        for name, t in given.items()
    )
    saved = SavedState("in", (entries,), (), lambda: None)
    last = Selected(given["k"], 0, ((k_shape[0] - 1, k_shape[0]),))
    planned = {"qk": Joined((given["q"], last), 0)}
    return carried(
        saved, Checkpoint(Path("in"), dict(given), "", 0), dict(planned), Order(is_kept=False)
    )


def test_parts_from_several_tensors_keep_their_own_step_counts() -> None:
    state = joined_state((4, 3), ("m", "step"))
    assert state.parameters == ("qk[0:2]", "qk[2:3]")
    assert list(state.tensors) == ["qk/m", "qk[0:2]/step", "qk[2:3]/step"]
    assert state.tensors["qk/m"].spec.shape == (3, 3)
    assert state.numbers == ("qk[0:2]/step", "qk[2:3]/step")
    assert not state.reset


def test_parts_of_which_other_things_were_kept_start_without() -> None:
    state = joined_state((4, 3), ("m", "v", "step"))
    assert state.parameters == ("qk[0:2]",)
    assert list(state.tensors) == ["qk/m", "qk/step"]
    assert list(state.reset.values()) == [("qk",)]


def test_moments_of_other_strides_are_carried(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.named_parameters())
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    made = operate(tmp_path, both(model, optimizer), {**WIDEN, "target": "0"})
    moment = kept(model, optimizer, "0.weight")["exp_avg"]
    assert not moment.is_contiguous()
    assert torch.equal(made.tensors["0.weight/exp_avg"][:4], moment)
    assert "0.weight[0:4]" in made.blocks


# what is not kept per element


def test_factored_state_is_kept_where_nothing_changed_and_else_reset(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.Adafactor(model.named_parameters())
    step(model, optimizer)
    made = operate(tmp_path, both(model, optimizer), WIDEN)
    body = kept(model, optimizer, "body.weight")
    assert all(torch.equal(made.tensors[f"body.weight/{key}"], body[key]) for key in body)
    assert "fc.bias[0:7]" in made.blocks
    assert not any(name.startswith("fc.weight") for name in made.blocks)
    assert [note for note in made.notes if "reset" in note] == [
        "optimizer state: reset for 'fc.weight': 'row_var', 'col_var' are not kept per "
        "element, so that it starts fresh"
    ]


@pytest.mark.parametrize("steps", [[], [WIDEN]])
def test_quantised_state_of_untouched_tensors_is_kept(tmp_path: Path, steps: list[Json]) -> None:
    model, _ = trained()
    quantised = {"state1": torch.ones(7, 6, dtype=torch.uint8), "absmax1": torch.ones(3), "step": 4}
    state = {
        "state": {0: quantised},
        "param_groups": [{"params": [0], "param_names": ["fc.weight"]}],
    }
    made = operate(tmp_path, {"m": model.state_dict(), "o": state}, *steps)
    assert made.blocks == ([] if steps else ["fc.weight"])
    assert ("fc.weight/absmax1" in made.tensors) == (not steps)


def test_lists_are_never_carried(tmp_path: Path) -> None:
    model, optimizer = trained()
    saved = both(model, optimizer)
    saved["optimizer"]["state"][0]["history"] = [torch.zeros(2)]
    made = operate(tmp_path, saved)
    assert "body.weight" not in made.blocks
    assert "optimizer state: reset for 'body.weight': has a list under 'history'" in made.notes


def test_numbers_come_back_as_numbers(tmp_path: Path) -> None:
    model, optimizer = trained()
    saved = both(model, optimizer)
    for state in saved["optimizer"]["state"].values():
        state |= {"step": 3, "rate": 0.1, "nothing": None}
    made = operate(tmp_path, saved)
    with safe_open(made.path, "pt") as opened:
        described = json.loads(opened.metadata()["optimizer_state"])
    assert made.tensors["fc.bias/step"].item() == 3
    assert made.tensors["fc.bias/rate"].item() == 0.1
    assert described["numbers"][:2] == ["body.weight/step", "body.weight/rate"]
    assert not any("nothing" in name for name in made.tensors)


# which state, and of which parameter


def test_names_are_honoured_in_any_order(tmp_path: Path) -> None:
    model = Network()
    groups = [
        {"params": [("fc.weight", model.fc.weight), ("body.weight", model.body.weight)]},
        {"params": [("norm.bias", model.norm.bias)]},
    ]
    optimizer = torch.optim.Adam(groups)
    step(model, optimizer)
    made = operate(tmp_path, both(model, optimizer))
    assert made.blocks == ["body.weight", "norm.bias", "fc.weight"]
    for name in made.blocks:
        assert torch.equal(made.tensors[f"{name}/exp_avg"], kept(model, optimizer, name)["exp_avg"])


def test_wrapped_names_are_unwrapped_as_the_models_are(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(Network())
    _, optimizer = trained(model=wrapped)
    made = operate(tmp_path, {"model": wrapped.state_dict(), "optimizer": optimizer.state_dict()})
    assert "fc.weight" in made.blocks


def test_names_in_place_of_numbers_are_names(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = optimizer.state_dict()
    names = state["param_groups"][0].pop("param_names")
    state["param_groups"][0]["params"] = names
    state["state"] = dict(zip(names, state["state"].values(), strict=True))
    assert operate(tmp_path, {"m": model.state_dict(), "o": state}).blocks == names


def test_without_names_the_order_of_parameters_tells(tmp_path: Path) -> None:
    model, optimizer = trained(named=False)
    made = operate(tmp_path, both(model, optimizer))
    assert made.blocks == [name for name, _ in model.named_parameters()]
    for name in made.blocks:
        assert torch.equal(made.tensors[f"{name}/exp_avg"], kept(model, optimizer, name)["exp_avg"])


def carrying() -> Json:
    """A training section whose first stage cannot do without a state."""
    adam = {"class": "torch.optim.Adam", "args": {"lr": 0.1}}
    return {"optimizer": adam, "stages": [{"name": "all", "optimizer_state": "carry"}]}


def groups_of(model: Network, *names: tuple[str, ...]) -> list[Json]:
    return [{"params": [model.get_parameter(name) for name in group]} for group in names]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([("fc.weight", "fc.bias")], "keeps the state of 2 parameters without their names, and the "
                                     "input has 6"),
        ([("norm.weight", "body.weight", "body.bias", "norm.bias", "fc.weight", "fc.bias")],
         "'body.bias' is F32 (6,) in the input, but its 'exp_avg' is (6, 4)"),
        ([("body.weight", "body.bias", "fc.weight", "fc.bias"), ("norm.weight", "norm.bias")],
         "has 2 groups of parameters without names, and several parameters of one shape"),
    ],
)  # fmt: skip
def test_an_order_that_does_not_tell_is_refused(
    tmp_path: Path, names: list[tuple[str, ...]], problem: str
) -> None:
    model = Network()
    optimizer = torch.optim.Adam(groups_of(model, *names))
    step(model, optimizer)
    assert f"in.pt#optimizer: {problem}" in message(
        tmp_path, both(model, optimizer), training=carrying()
    )
    # What nobody asked for stops nothing.
    (note,) = [note for note in operate(tmp_path, "in.pt").notes if "left behind" in note]
    assert problem in note


def test_sorted_files_have_no_order(tmp_path: Path) -> None:
    model, optimizer = trained(named=False)
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = message(tmp_path, "in.safetensors", optimizer=str(tmp_path / "optimizer.pt"))
    assert "of the model's parameters (only a torch file keeps it)" in found
    assert "model.named_parameters()" in found


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    model, _ = trained()
    model.fc = nn.Linear(6, 8)
    _, optimizer = trained()
    assert message(tmp_path, both(model, optimizer), training=carrying()).splitlines() == [
        f"{tmp_path}/in.pt#optimizer: '{name}' is F32 {here} in the input, but its 'exp_avg' is "
        f"{there}; it is not the state of this checkpoint, or its parameters have another order"
        for name, here, there in [("fc.weight", (8, 6), (7, 6)), ("fc.bias", (8,), (7,))]
    ]  # fmt: skip


def test_names_that_are_all_unknown_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    renamed = {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    saved = {"model": renamed, "optimizer": optimizer.state_dict()}
    found = message(tmp_path, saved, training=carrying())
    assert "the input has no 'body.weight', nor any other" in found
    del renamed["net.fc.bias"]
    saved["model"] = {"fc.bias": torch.zeros(7), **renamed}
    assert "reset for 'body.weight'" in "".join(operate(tmp_path, saved).notes)


@pytest.mark.parametrize(
    ("optimizer", "blocks"), [(None, 6), ("none", None), ("in.pt", 6), ("in.pt#optimizer", 6)]
)
def test_the_state_in_the_input_is_found(
    tmp_path: Path, optimizer: str | None, blocks: int | None
) -> None:
    saved = both(*trained())
    place = str(tmp_path / optimizer) if optimizer not in (None, "none") else optimizer
    made = operate(tmp_path, saved, optimizer=place)
    assert (made.blocks and len(made.blocks)) == blocks
    found = f"found the state of an optimizer in {tmp_path}/in.pt#optimizer; --optimizer none " \
            "leaves it behind"  # fmt: skip
    assert (found in made.notes) == (optimizer is None)
    assert ("optimizer_state" in made.manifest) == (blocks is not None)


def test_of_several_states_one_has_to_be_named(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = optimizer.state_dict()
    saved = {"state_dict": model.state_dict(), "optimizer_states": [state, {**state}]}
    lines = message(tmp_path, saved, training=carrying()).splitlines()
    assert [line.partition("--optimizer ")[2] for line in lines] == [
        f"{tmp_path}/in.pt#optimizer_states.0", f"{tmp_path}/in.pt#optimizer_states.1"
    ]  # fmt: skip
    made = operate(tmp_path, "in.pt", optimizer=f"{tmp_path}/in.pt#optimizer_states.1")
    assert len(made.blocks) == 6


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"model": {}}, "found no optimizer's state"),
        ({"state": [], "param_groups": []}, "are not a dict and a list"),
        ({"state": {}, "param_groups": [{"lr": 1}]}, "without a list of them"),
        ({"state": {}, "param_groups": [{"params": [0], "param_names": []}]}, "do not go with"),
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, content: Json, problem: str) -> None:
    torch.save(content, tmp_path / "optimizer.pt")
    found = message(tmp_path, trained()[0].state_dict(), optimizer=str(tmp_path / "optimizer.pt"))
    assert found.startswith(f"{tmp_path}/optimizer.pt: ")
    assert problem in found


def test_a_safetensors_file_of_others_is_refused(tmp_path: Path) -> None:
    save_file({"a/exp_avg": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="surgeon did not write it"):
        operate(tmp_path, trained()[0].state_dict(), optimizer=str(tmp_path / "a.safetensors"))
    with pytest.raises(CheckpointError, match="no container 'x'"):
        operate(tmp_path, "in.pt", optimizer=f"{tmp_path}/a.safetensors#x")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        operate(tmp_path, "in.pt", optimizer=f"{tmp_path}/missing.pt")


def test_a_first_stage_that_carries_needs_a_state(tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"stage 'all' carries .* --optimizer FILE says where it is"
    ):
        operate(tmp_path, trained()[0].state_dict(), training=carrying())


# what is written


def test_an_older_state_beside_the_input_is_mentioned(tmp_path: Path) -> None:
    made = operate(tmp_path, both(*trained()))
    again = operate(tmp_path, "out.safetensors", output="again.safetensors")
    assert again.notes == [f"{made.path} is not carried; --optimizer {made.path} does that"]
    assert again.blocks is None


@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
def test_the_manifest_pins_the_file_and_verify_looks(tmp_path: Path, output: str) -> None:
    made = operate(tmp_path, both(*trained()), output=output)
    stated = made.manifest["optimizer_state"]
    assert stated["file"] == made.path.name
    assert stated["sha256"] == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert verify.verify(tmp_path / output, 1).mismatches == []
    content = bytearray(made.path.read_bytes())
    content[-1] ^= 1
    made.path.write_bytes(content)
    (line,) = verify.verify(tmp_path / output, 1).mismatches
    assert line.startswith(f"{made.path}: has sha256")
    made.path.unlink()
    (line,) = verify.verify(tmp_path / output, 1).mismatches
    assert "cannot be opened" in line


def test_a_folders_old_state_is_not_copied_along(tmp_path: Path) -> None:
    first = operate(tmp_path, both(*trained()), output="folder")
    assert first.path.name == "surgeon.optimizer.safetensors"
    second = operate(tmp_path, "folder", output="again")
    assert second.blocks is None
    assert not (tmp_path / "again" / first.path.name).exists()


@pytest.mark.parametrize("optimizer", [None, "none"])
def test_a_state_that_exists_needs_force(tmp_path: Path, optimizer: str | None) -> None:
    (tmp_path / "out.optimizer.safetensors").write_text("mine")
    with pytest.raises(
        UsageError, match=r"out.optimizer.safetensors: exists.* --force-any replaces"
    ):
        operate(tmp_path, both(*trained()), optimizer=optimizer)


def test_a_state_that_no_stage_carries_is_left_behind(tmp_path: Path) -> None:
    made = operate(tmp_path, both(*trained()), training=NOBODY)
    place = f"{tmp_path}/in.pt#optimizer"
    assert made.notes[1:] == [
        f"no stage carries the optimizer's state in {place}, so it is left behind; "
        f"--optimizer {place} takes it through the surgery"
    ]
    assert made.blocks is None
    assert not (tmp_path / "out.optimizer.safetensors").exists()


def test_a_state_that_is_asked_for_is_written_though_no_stage_carries_it(tmp_path: Path) -> None:
    asked = str(tmp_path / "in.pt")
    made = operate(tmp_path, both(*trained()), optimizer=asked, training=NOBODY)
    assert len(made.blocks) == 6
    assert made.notes[1:] == [
        'optimizer state: no stage takes it up with "optimizer_state": "carry"'
    ]


def test_a_run_without_state_leaves_none_of_an_earlier_run(tmp_path: Path) -> None:
    first = operate(tmp_path, both(*trained()))
    second = operate(tmp_path, "in.pt", WIDEN, optimizer="none", training=NOBODY, force=True)
    assert second.blocks is None
    assert not first.path.exists()


def test_a_run_that_fails_before_its_end_leaves_the_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = operate(tmp_path, both(*trained()))
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(WriteError, match=r"out.safetensors: cannot be written: permission denied"):
        operate(tmp_path, "in.pt", WIDEN, optimizer="none", training=NOBODY, force=True)
    assert first.path.exists()
    assert verify.verify(tmp_path / "out.safetensors", 1).mismatches == []


def test_a_state_that_cannot_be_removed_is_out_of_its_place_until_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = operate(tmp_path, both(*trained()))
    left, unlink = tmp_path / f".{first.path.name}.surgeon-unfinished", Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda p: refused(p) if p == left else unlink(p))
    again = {"optimizer": "none", "training": NOBODY, "force": True}
    operate(tmp_path, "in.pt", WIDEN, **again)
    assert left.exists()
    assert not first.path.exists()
    assert verify.verify(tmp_path / "out.safetensors", 1).mismatches == []
    monkeypatch.undo()
    operate(tmp_path, "in.pt", WIDEN, **again)
    assert not left.exists()


def refused(*_: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
def test_the_state_of_an_input_is_not_replaced_with_it_unasked(tmp_path: Path, output: str) -> None:
    first = operate(tmp_path, both(*trained()), output=output)
    again = {"output": output, "training": NOBODY, "force": True}
    with pytest.raises(UsageError, match=r"is the state of the input's .* --optimizer none leaves"):
        operate(tmp_path, output, WIDEN, **again)
    assert verify.verify(tmp_path / output, 1).mismatches == []
    carried_along = operate(tmp_path, output, WIDEN, optimizer=str(first.path), **again)
    assert "fc.bias[0:7]" in carried_along.blocks
    operate(tmp_path, output, optimizer="none", **again)
    assert not first.path.exists()


def test_a_damaged_state_leaves_nothing_behind(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = tmp_path / "in.pt"
    torch.save(both(model, optimizer), path)
    content = path.read_bytes()
    moment = kept(model, optimizer, "fc.weight")["exp_avg"].numpy().tobytes()
    path.write_bytes(content.replace(moment, moment[:-1] + bytes([moment[-1] ^ 1])))
    with pytest.raises(CheckpointError, match="damaged"):
        operate(tmp_path, "in.pt", WIDEN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pt", "recipe.json"]


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    saved = both(*trained())
    one, two = (operate(tmp_path, saved, WIDEN, output=f"{i}.safetensors") for i in "12")
    assert one.path.read_bytes() == two.path.read_bytes()


def test_plan_and_apply_say_what_is_carried(tmp_path: Path) -> None:
    torch.save(both(*trained()), tmp_path / "in.pt")
    text, source = write_recipe(tmp_path, WIDEN, training=LATER), tmp_path / "in.pt"
    line = (
        f"optimizer state of {source}#optimizer: goes on whole for 4 parameters, in part for 2 "
        "parameters ('fc.weight[0:7]', 'fc.bias[0:7]')"
    )
    assert line in run("plan", text, source).stdout
    document = json.loads(run("plan", text, source, "--json").stdout)["optimizer_state"]
    assert document["from"] == f"{source}#optimizer"
    assert document["parameters"][-1] == "fc.bias[0:7]"
    done = run("apply", text, source, tmp_path / "out.safetensors", "--max-memory", "64MB")
    assert f"{line}; in {tmp_path}/out.optimizer.safetensors" in done.stderr
    left = run("plan", text, source, "--optimizer", "none", "--json")
    assert json.loads(left.stdout)["optimizer_state"] is None


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "goes on whole for 6 parameters\n"),
        ([{"op": "replace", "target": "fc", "rows": 7}],
         "goes on whole for 4 parameters, not for 2 parameters ('fc.bias', 'fc.weight')\n"),
        ([{"op": "delete", "target": ["body", "norm"]}, WIDEN],
         "goes on in part for 2 parameters ('fc.weight[0:7]', 'fc.bias[0:7]')\n"),
    ],
)  # fmt: skip
def test_plan_says_what_goes_on(tmp_path: Path, steps: list[Json], said: str) -> None:
    torch.save(both(*trained()), tmp_path / "in.pt")
    text = write_recipe(tmp_path, *steps, training=LATER)
    assert f"optimizer: {said}" in run("plan", text, tmp_path / "in.pt").stdout


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch.save(both(*trained()), tmp_path / "in.pt")
    write_recipe(tmp_path, WIDEN, training=LATER)
    program = (
        "import sys; sys.modules['torch'] = None; from surgeon.cli.commands import main; "
        "sys.argv = ['surgeon', 'apply', 'recipe.json', 'in.pt', 'out.safetensors']; main()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out.optimizer.safetensors").exists()


def test_unusable_options_end_with_their_exit_codes(tmp_path: Path) -> None:
    torch.save(both(*trained()), tmp_path / "in.pt")
    text = write_recipe(tmp_path)
    done = process("plan", text, tmp_path / "in.pt", "--optimizer", tmp_path / "in.pt#model")
    assert done.returncode == 3
    assert "found no optimizer's state in 'model'" in done.stderr
