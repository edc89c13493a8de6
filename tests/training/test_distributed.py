"""Row blocks and stage changes on two ranks, and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small import HEAD, NAMES, batches, copied, group, loaded, network, stage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from surgeon.training import Manifest
from tests.network import Bench, assert_identical

BODY = [name for name in NAMES if name not in HEAD]
ROWS = stage(
    "rows",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]", "body.weight[:,2:4]", "norm.weight"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.weight[:,0:2]", "body.bias", "norm.bias"],
)
JOINT = stage("joint", group("all", NAMES), frozen=[], optimizer_state="carry")
FUSED = {"class": "torch.optim.AdamW", "args": {"lr": 0.0625, "weight_decay": 0.5, "fused": True}}
STEPS = 4
pytestmark = pytest.mark.slow


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()


def alone(folder: Path) -> tuple[dict[str, Tensor], ...]:
    """Train on one process; return the weights before, after "rows" and after "joint"."""
    model = network().eval()
    run = loaded(model, folder, ROWS, JOINT, optimizer=FUSED).bind(model)
    states = [copied(model)]
    for name in ("rows", "joint"):
        optimizer, _ = run.start(name)
        for inputs, labels in batches(STEPS):
            step(model, optimizer, inputs, labels)
        states.append(copied(model))
    return tuple(dict(state) for state in states)


def on_a_rank(rank: int, folder: Path, work: Callable[..., None], *more: Any) -> None:
    torch.set_num_threads(1)
    at = f"file://{folder}/meeting-point"
    dist.init_process_group("gloo", init_method=at, rank=rank, world_size=2)
    work(rank, folder, *more)
    dist.destroy_process_group()


def on_two_ranks(folder: Path, work: Callable[..., None], *more: Any) -> None:
    torch.multiprocessing.spawn(on_a_rank, (folder, work, *more), nprocs=2)


def require_frozen(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert torch.equal(before["fc.weight"][:7], after["fc.weight"][:7])
    assert torch.equal(before["body.weight"][:, :2], after["body.weight"][:, :2])
    assert torch.equal(before["body.bias"], after["body.bias"])
    assert not torch.equal(before["fc.weight"][7:], after["fc.weight"][7:])
    assert not torch.equal(before["body.weight"][:, 2:], after["body.weight"][:, 2:])


def ddp(rank: int, folder: Path, expected: Any, as_views: bool) -> None:
    model = network().eval()
    run = Manifest.load(folder / "out.manifest.json").bind(model)
    for index, name in enumerate(("rows", "joint"), 1):
        optimizer, _ = run.start(name)
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=as_views)
        half = slice(8 * rank, 8 * rank + 8)
        for inputs, labels in batches(STEPS):
            step(wrapped, optimizer, inputs[half], labels[half])
        if name == "rows":
            require_frozen(expected[0], dict(model.state_dict()))
        torch.testing.assert_close(model.state_dict(), expected[index], rtol=1e-3, atol=1e-4)
        for parameter in model.parameters():
            other = [torch.empty_like(parameter) for _ in range(2)]
            dist.all_gather(other, parameter.detach())
            assert torch.equal(other[0], other[1])


@pytest.mark.parametrize("as_views", [False, True])
def test_ranks_stay_equal_under_ddp(tmp_path: Path, as_views: bool) -> None:
    on_two_ranks(tmp_path, ddp, alone(tmp_path), as_views)


def fsdp2(rank: int, folder: Path, expected: Any, clip_own: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network().eval()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.fc, mesh=mesh)
    fully_shard(model, mesh=mesh)
    run = Manifest.load(folder / "out.manifest.json").bind(model)
    half = slice(8 * rank, 8 * rank + 8)
    for index, name in enumerate(("rows", "joint"), 1):
        optimizer, _ = run.start(name)
        for inputs, labels in batches(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[half]), labels[half]).backward()
            own = [parameter for entry in optimizer.param_groups for parameter in entry["params"]]
            clip_grad_norm_(own if clip_own else model.parameters(), 0.5)
            optimizer.step()
        whole = {n: p.full_tensor().detach() for n, p in model.named_parameters()}  # type: ignore[attr-defined]
        if name == "rows":
            require_frozen(expected[0], whole)
        wanted = {name: expected[index][name] for name in whole}
        torch.testing.assert_close(whole, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("clip_own", [False, True])
def test_rows_of_sharded_parameters_are_trained_under_fsdp2(tmp_path: Path, clip_own: bool) -> None:
    on_two_ranks(tmp_path, fsdp2, alone(tmp_path), clip_own)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, importing it
@pytest.mark.parametrize("compile_first", [False, True])
def test_stages_of_a_compiled_model(tmp_path: Path, compile_first: bool) -> None:
    expected = alone(tmp_path)
    model = network().eval()
    compiled = torch.compile(model, backend="aot_eager")
    run = Manifest.load(tmp_path / "out.manifest.json").bind(compiled if compile_first else model)
    for index, name in enumerate(("rows", "joint"), 1):
        optimizer, _ = run.start(name)
        for inputs, labels in batches(STEPS):
            step(compiled, optimizer, inputs, labels)
        if name == "rows":
            require_frozen(expected[0], dict(model.state_dict()))
        torch.testing.assert_close(model.state_dict(), expected[index], rtol=1e-3, atol=1e-4)


def saved_by_ranks(rank: int, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network().eval()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters())
    for inputs, labels in batches(STEPS):
        step(model, optimizer, inputs, labels)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "ranks")
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(model, optimizer, options=whole)
    if rank == 0:
        torch.save({"model": weights, "optimizer": state}, folder / "whole.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_ranks_saved_goes_through_the_same_surgery_as_one_file(tmp_path: Path) -> None:
    on_two_ranks(tmp_path, saved_by_ranks)
    assert len(list((tmp_path / "ranks").glob("*.distcp"))) == 2
    training = {"stages": [{"name": "on", "optimizer_state": "carry"}], "optimizer": FUSED}
    steps = [{"op": "widen", "target": "fc", "rows": 2}]
    bench, outputs = Bench(tmp_path), []
    for source in ("ranks", "whole.pt"):
        bench.input = tmp_path / source
        made = bench.operate(*steps, training=training)
        state = bench.output.with_suffix(".optimizer.safetensors").read_bytes()
        outputs.append(
            (sorted(made.manifest["optimizer_state"]["parameters"]), made.tensors, state)
        )
    (parameters, tensors, state), expected = outputs
    assert (parameters, state) == (expected[0], expected[2])
    assert_identical(tensors, expected[1])
