"""Going on after surgery with the optimizer state of the earlier run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import HEAD, NAMES, Network, group, loaded, network, stage
from test_distributed import on_two_ranks
from torch import nn

from surgeon import recipe, surgery
from surgeon.base.errors import SurgeonError
from surgeon.output.execute import Options
from surgeon.training import Manifest, Run

Json = dict[str, Any]
WIDEN = {"op": "widen", "target": "fc", "rows": 1, "init": "zeros"}
OPTIMIZERS: dict[str, tuple[str, Json]] = {
    "SGD": ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "SGD fused": ("SGD", {"momentum": 0.9, "fused": True}),
    "Adam": ("Adam", {}),
    "AdamW amsgrad": ("AdamW", {"amsgrad": True}),
    "AdamW fused": ("AdamW", {"fused": True}),
    "AdamW foreach": ("AdamW", {"foreach": True}),
    "AdamW loop": ("AdamW", {"foreach": False}),
    "RMSprop": ("RMSprop", {"momentum": 0.9}),
    "Adagrad": ("Adagrad", {}),
    "NAdam": ("NAdam", {}),
    "RAdam": ("RAdam", {}),
    "ASGD": ("ASGD", {}),
    "Rprop": ("Rprop", {}),
}
ADAM = {"class": "torch.optim.Adam", "args": {"lr": 0.25}}


class Rows(nn.Module):
    """A layer whose rows learn nothing from each other."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 8)
        self.fc.weight = nn.Parameter(self.fc.weight.detach()[:rows].clone())
        self.fc.bias = nn.Parameter(self.fc.bias.detach()[:rows].clone())


def train(
    model: Rows, optimizer: torch.optim.Optimizer, seed: int, steps: int = 4, row: int = 0
) -> None:
    """Multi-label steps on one sample each, so that every row's gradient is its own to the bit."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(6, generator=generator)
        labels = torch.randint(0, 2, (8,), generator=generator).float()
        optimizer.zero_grad()
        scores = (model.fc.weight * inputs).sum(1) + model.fc.bias
        loss = nn.functional.binary_cross_entropy_with_logits
        loss(scores, labels[row : row + len(scores)], reduction="sum").backward()
        optimizer.step()


def operated(folder: Path, saved: Json, *steps: Json, training: Json, **more: Any) -> Path:
    """Apply steps to a checkpoint; return where the output is."""
    torch.save(saved, folder / "in.pt")
    content = {"surgeon": 1, "steps": steps, "training": training, **more}
    (folder / "recipe.json").write_text(json.dumps(content))
    wanted = recipe.load(str(folder / "recipe.json"), {})
    with surgery.opened(wanted, str(folder / "in.pt"), {}) as opened:
        surgery.write(opened, folder / "out.safetensors", Options(workers=1), force=True)
    return folder / "out.safetensors"


def saved_by(model: nn.Module, optimizer: torch.optim.Optimizer) -> Json:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def begun(name: str, rows: int = 7) -> tuple[Rows, torch.optim.Optimizer]:
    """Train the rows for a while."""
    model = Rows(rows)
    kind, args = OPTIMIZERS[name]
    optimizer = getattr(torch.optim, kind)(model.named_parameters(), lr=0.25, **args)
    train(model, optimizer, seed=1)
    return model, optimizer


def training_of(name: str, *stages: Json) -> Json:
    kind, args = OPTIMIZERS[name]
    described = {"class": f"torch.optim.{kind}", "args": {"lr": 0.25, **args}}
    return {"optimizer": described, "stages": list(stages)}


ALL = {"name": "all", "optimizer_state": "carry"}


def widened(folder: Path, saved: Json, training: Json) -> tuple[Rows, Run]:
    """Add a row; return the layer with it, bound to its manifest."""
    path = operated(folder, saved, WIDEN, training=training)
    model = Rows(8)
    model.load_state_dict(load_file(path))
    return model, Manifest.load(path).bind(model)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_old_rows_go_on_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    old, optimizer = begun(name)
    model, run = widened(tmp_path, saved_by(old, optimizer), training_of(name, ALL))
    train(old, optimizer, seed=2)
    train(model, run.start("all")[0], seed=2)
    assert torch.equal(model.fc.weight[:7], old.fc.weight)
    assert torch.equal(model.fc.bias[:7], old.fc.bias)
    assert model.fc.weight[7:].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_rows_are_trained_as_by_an_optimizer_of_their_own(tmp_path: Path, name: str) -> None:
    model, run = widened(tmp_path, saved_by(*begun(name)), training_of(name, ALL))
    alone = Rows(1)
    alone.load_state_dict({name: value[7:] for name, value in model.state_dict().items()})
    kind, args = OPTIMIZERS[name]
    train(alone, getattr(torch.optim, kind)(alone.parameters(), lr=0.25, **args), seed=2, row=7)
    train(model, run.start("all")[0], seed=2)
    assert torch.equal(model.fc.weight[7:], alone.fc.weight)


@pytest.mark.parametrize("name", ["Adam", "AdamW amsgrad", "AdamW fused", "AdamW foreach"])
def test_a_new_rows_first_update_has_length_lr(tmp_path: Path, name: str) -> None:
    model, run = widened(tmp_path, saved_by(*begun(name)), training_of(name, ALL))
    before = model.fc.weight[7:].clone()
    train(model, run.start("all")[0], seed=2, steps=1)
    moved = (model.fc.weight[7:] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25), rtol=1e-5, atol=0)


def test_state_waits_for_the_stage_that_needs_it(tmp_path: Path) -> None:
    old, optimizer = begun("Adam")
    warm_up = {"name": "warm-up", "train": ["@new"]}
    joint = {"name": "joint", "optimizer_state": "carry"}
    training = training_of("Adam", warm_up, joint)
    model, run = widened(tmp_path, saved_by(old, optimizer), training)
    train(model, run.start("warm-up")[0], seed=3, steps=2)
    made, _ = run.start("joint")
    steps = {tuple(p.shape): int(made.state[p]["step"]) for p in made.param_groups[0]["params"]}
    assert steps == {(7, 6): 4, (1, 6): 2, (7,): 4, (1,): 2}
    train(old, optimizer, seed=2)
    train(model, made, seed=2)
    assert torch.equal(model.fc.weight[:7], old.fc.weight)


def test_what_an_earlier_stage_trained_takes_nothing_from_the_file(tmp_path: Path) -> None:
    weights = {"name": "weights", "train": ["fc.weight"]}
    biases = {"name": "biases", "train": ["fc.bias"]}
    training = training_of("Adam", weights, biases, ALL)
    model, run = widened(tmp_path, saved_by(*begun("Adam")), training)
    for name in ("weights", "biases"):
        train(model, run.start(name)[0], seed=2, steps=3)
    made, _ = run.start("all")
    # The weights' state ended with their stage; it is not that of the earlier run either.
    steps = [int(state["step"]) for state in made.state.values()]
    assert steps == [3]


def test_reset_takes_nothing(tmp_path: Path) -> None:
    training = training_of("Adam", {**ALL, "optimizer_state": "reset"})
    _, run = widened(tmp_path, saved_by(*begun("Adam")), training)
    assert not run.start("all")[0].state


def test_settings_are_the_manifests_alone(tmp_path: Path) -> None:
    old, optimizer = begun("Adam")
    optimizer.param_groups[0] |= {"lr": 7.0, "weight_decay": 0.5, "betas": (0.1, 0.2)}
    _, run = widened(tmp_path, saved_by(old, optimizer), training_of("Adam", ALL))
    (entry,) = run.start("all")[0].param_groups
    assert (entry["lr"], entry["weight_decay"], entry["betas"]) == (0.25, 0, (0.9, 0.999))


def test_a_cast_model_has_moments_of_its_own_dtype(tmp_path: Path) -> None:
    cast = {"op": "cast", "target": "fc", "dtype": "BF16"}
    training = training_of("AdamW fused", ALL)
    path = operated(tmp_path, saved_by(*begun("AdamW fused")), WIDEN, cast, training=training)
    assert load_file(tmp_path / "out.optimizer.safetensors")["fc.bias/exp_avg"].dtype.itemsize == 4
    model = Rows(8).bfloat16()
    model.load_state_dict(load_file(path))
    optimizer, _ = Manifest.load(path).bind(model).start("all")
    assert {t.dtype for s in optimizer.state.values() for k, t in s.items() if k != "step"} == {
        torch.bfloat16
    }
    optimizer.zero_grad()
    model.fc.weight.square().sum().backward()
    optimizer.step()


def test_number_steps_become_what_the_optimizer_keeps(tmp_path: Path) -> None:
    old, optimizer = begun("Adam")
    saved = saved_by(old, optimizer)
    numbers = saved["optimizer"]["state"].items()
    saved["optimizer"]["state"] = {n: {**s, "step": int(s["step"])} for n, s in numbers}
    model, run = widened(tmp_path, saved, training_of("Adam", ALL))
    train(old, optimizer, seed=2)
    train(model, run.start("all")[0], seed=2)
    assert torch.equal(model.fc.weight[:7], old.fc.weight)


def test_factored_state_of_untouched_parameters_goes_on(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adafactor(model.named_parameters())
    inputs = torch.randn(16, 4)

    def train_one(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(inputs).square().sum().backward()
        optimizer.step()

    train_one(model, optimizer)
    described = {"class": "torch.optim.Adafactor", "args": {}}
    training = {"optimizer": described, "stages": [ALL]}
    path = operated(tmp_path, saved_by(model, optimizer), training=training)
    again = Network()
    again.load_state_dict(load_file(path))
    made, _ = Manifest.load(path).bind(again).start("all")
    for one, other in ((model, optimizer), (again, made)):
        train_one(one, other)
    assert torch.equal(again.body.weight, model.body.weight)
    assert torch.equal(again.fc.bias, model.fc.bias)


def test_parts_with_equal_step_counts_become_one_again(tmp_path: Path) -> None:
    model = Rows(8)
    tensors = {
        "fc.weight/exp_avg": torch.ones(8, 6),
        "fc.weight/exp_avg_sq": torch.ones(8, 6),
        **{f"fc.weight[{a}:{b}]/step": torch.tensor(n) for a, b, n in
           [(0, 2, 3.0), (2, 5, 3.0), (5, 8, 4.0)]},
    }  # fmt: skip
    blocks = ["fc.weight[0:2]", "fc.weight[2:5]", "fc.weight[5:8]"]
    manifest = written(tmp_path, model, tensors, blocks)
    optimizer, _ = manifest.bind(model).start("all")
    assert {(len(p), int(s["step"])) for p, s in optimizer.state.items() if p.ndim == 2} == {
        (5, 3),
        (3, 4),
    }


def written(
    folder: Path, model: nn.Module, tensors: dict[str, torch.Tensor], blocks: list[str],
    optimizer: Json = ADAM, **changes: Any,
) -> Manifest:  # fmt: skip
    """Write a manifest for a state of these tensors."""
    path = folder / "out.optimizer.safetensors"
    save_file(tensors, path)
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": blocks,
        **changes,
    }
    everything = stage("all", group("all", HEAD), frozen=[], optimizer_state="carry")
    return loaded(model, folder, everything, optimizer=optimizer, optimizer_state=entry)


def state_of(rows: int = 8) -> dict[str, torch.Tensor]:
    moments = {f"fc.weight/{key}": torch.ones(rows, 6) for key in ("exp_avg", "exp_avg_sq")}
    return {**moments, "fc.weight/step": torch.tensor(3.0)}


def refused(manifest: Manifest, model: nn.Module) -> str:
    run = manifest.bind(model)
    with pytest.raises(SurgeonError) as caught:
        run.start("all")
    return str(caught.value)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rows", [7, 9])
def test_a_state_of_the_wrong_shape_reaches_no_kernel(
    tmp_path: Path, fused: bool, rows: int
) -> None:
    optimizer = {"class": "torch.optim.AdamW", "args": {"lr": 0.1, "fused": fused}}
    model = Rows(8)
    for blocks in (["fc.weight"], ["fc.weight[0:7]"]):
        manifest = written(tmp_path, model, state_of(rows), blocks, optimizer)
        assert refused(manifest, model) == (
            "out.manifest.json: stage 'all': optimizer_state: 'fc.weight/exp_avg' is "
            f"({rows}, 6) in out.optimizer.safetensors for '{blocks[0]}', and AdamW keeps "
            f"({7 if '[' in blocks[0] else 8}, 6); apply the recipe again, or let the stage reset "
            "the state"
        )


def test_another_optimizers_state_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    sgd = {"class": "torch.optim.SGD", "args": {"lr": 0.1, "momentum": 0.9}}
    model = Rows(8)
    found = refused(written(tmp_path, model, state_of(), ["fc.weight"], sgd), model)
    assert "SGD keeps 'momentum_buffer' of 'fc.weight'" in found
    assert "surgeon apply --optimizer none" in found
    amsgrad = {"class": "torch.optim.Adam", "args": {"lr": 0.1, "amsgrad": True}}
    found = refused(written(tmp_path, model, state_of(), ["fc.weight"], amsgrad), model)
    assert "Adam keeps 'max_exp_avg_sq' of 'fc.weight'" in found


def test_an_optimizer_that_takes_no_plain_step_is_refused(tmp_path: Path) -> None:
    lbfgs = {"class": "torch.optim.LBFGS", "args": {}}
    model = Rows(8)
    found = refused(written(tmp_path, model, state_of(), ["fc.weight"], lbfgs), model)
    assert "LBFGS cannot take up a saved state" in found


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (Path.unlink, "cannot be read: no such file or directory; apply the recipe again"),
        (change, "is not the file that the manifest was written for; apply the recipe again"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    model = Rows(8)
    manifest = written(tmp_path, model, state_of(), ["fc.weight"])
    spoil(tmp_path / "out.optimizer.safetensors")
    assert f"{tmp_path}/out.optimizer.safetensors {problem}" in refused(manifest, model)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"parameters": ["fc.wieght"]}, "optimizer_state: there is no parameter 'fc.wieght'"),
        ({"parameters": ["fc.weight[7:9]"]}, "optimizer_state: 'fc.weight[7:9]': [7:9] is empty"),
        ({"sha256": 3}, "optimizer_state.sha256: 3 is not a string"),
        ({"file": "a/b"}, "optimizer_state.file: 'a/b' is not the name of a file"),
        ({"parameters": [3]}, "optimizer_state.parameters[0]: 3 is not a string"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: Json, problem: str
) -> None:
    model = Rows(8)
    with pytest.raises(SurgeonError) as caught:
        written(tmp_path, model, state_of(), ["fc.weight"], **changes).bind(model).start("all")
    assert problem in str(caught.value)


def test_later_stages_need_the_ones_before(tmp_path: Path) -> None:
    stages = {"name": "first"}, ALL
    _, run = widened(tmp_path, saved_by(*begun("Adam")), training_of("Adam", *stages))
    with pytest.raises(SurgeonError, match="the stage before, and this run has started none"):
        run.start("all")


# under FSDP2


def one_more(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.eye(4)).square().sum().backward()
    optimizer.step()


def sharded(rank: int, folder: Path, expected: dict[str, torch.Tensor]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network().eval()
    model.load_state_dict(load_file(folder / "out.safetensors"))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer, _ = Manifest.load(folder / "out.safetensors").bind(model).start("all")
    one_more(model, optimizer)
    whole = {n: p.full_tensor().detach() for n, p in model.named_parameters()}  # type: ignore[attr-defined]
    torch.testing.assert_close(whole, {name: expected[name] for name in whole})


@pytest.mark.slow
def test_ranks_take_their_own_rows(tmp_path: Path) -> None:
    old = network().eval()
    old.fc = nn.Linear(6, 7)
    optimizer = torch.optim.AdamW(old.named_parameters(), lr=0.25)
    for _ in range(3):
        one_more(old, optimizer)
    training = training_of("AdamW fused", ALL)
    path = operated(tmp_path, saved_by(old, optimizer), WIDEN, training=training)
    alone = network().eval()
    alone.load_state_dict(load_file(path))
    one_more(alone, Manifest.load(path).bind(alone).start("all")[0])
    on_two_ranks(tmp_path, sharded, dict(alone.state_dict()))


def test_bind_warns_of_a_state_that_was_matched_by_order(tmp_path: Path) -> None:
    state = {"file": "s", "sha256": "", "parameters": []}
    changes = {"optimizer_state": {**state, "matched_by": "order"}}
    manifest = loaded(network(), tmp_path, stage("all", group("all", NAMES)), **changes)
    with pytest.warns(UserWarning, match="was matched by the order of the parameters alone"):
        manifest.bind(network())
