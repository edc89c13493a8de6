"""Looking, aligning and resuming on two ranks: DDP's reduced gradients, FSDP2's shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small import NAMES, batches, group, loaded, network, stage
from test_distributed import FUSED, ROWS, on_two_ranks, step
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from surgeon.training import Manifest, ManifestError

AFTER = [{"align_rows": ["fc.weight[7:8]"]}]
JOINT = stage("joint", group("all", NAMES), frozen=[], optimizer_state="carry", after=AFTER)
pytestmark = pytest.mark.slow


def alone(folder: Path) -> dict[str, Any]:
    """On one process: the norms of the first batch, and the weights after both stages."""
    model = network().eval()
    run = loaded(model, folder, ROWS, JOINT, optimizer=FUSED).bind(model)
    optimizer, _ = run.start("rows")
    inputs, labels = batches(1)[0]
    nn.functional.cross_entropy(model(inputs), labels).backward()
    norms = {block.block: block.norm for block in run.gradients().blocks}
    for name in ("rows", "joint"):
        optimizer, _ = run.start(name)
        for inputs, labels in batches(4):
            step(model, optimizer, inputs, labels)
    run.finish()
    return {"norms": norms, "weights": {n: t.clone() for n, t in model.state_dict().items()}}


def half_of(rank: int, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [part[8 * rank : 8 * rank + 8] for part in batch]


def ddp(rank: int, folder: Path, expected: Any) -> None:
    model = network().eval()
    run = Manifest.load(folder / "out.manifest.json").bind(model)
    run.start("rows")
    wrapped = DistributedDataParallel(model)
    inputs, labels = half_of(rank, batches(1)[0])
    nn.functional.cross_entropy(wrapped(inputs), labels).backward()
    found = {block.block: block.norm for block in run.gradients().blocks}
    assert found == pytest.approx(expected["norms"], rel=1e-4)


def test_gradients_under_ddp_are_those_of_all_ranks(tmp_path: Path) -> None:
    on_two_ranks(tmp_path, ddp, alone(tmp_path))


def sharded() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network().eval()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.fc, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def fsdp2(rank: int, folder: Path, expected: Any) -> None:
    model = sharded()
    run = Manifest.load(folder / "out.manifest.json").bind(model)
    run.start("rows")
    inputs, labels = half_of(rank, batches(1)[0])
    nn.functional.cross_entropy(model(inputs), labels).backward()
    found = {block.block: block.norm for block in run.gradients().blocks}
    assert found == pytest.approx(expected["norms"], rel=1e-4)
    for name in ("rows", "joint"):
        optimizer, _ = run.start(name)
        for number, batch in enumerate(batches(4)):
            step(model, optimizer, *half_of(rank, batch))
            run.check()
            if number == 1:
                model, run, optimizer = resumed(model, run, folder / f"{name}-{rank}.pt")
    run.finish()
    whole = {n: p.full_tensor().detach() for n, p in model.named_parameters()}  # type: ignore[attr-defined]
    wanted = {name: expected["weights"][name] for name in whole}
    torch.testing.assert_close(whole, wanted, rtol=1e-3, atol=1e-4)
    dist.barrier()
    run.start("rows")
    with torch.no_grad():
        model.body.bias.to_local().add_(1)  # type: ignore[union-attr, operator]
    with pytest.raises(ManifestError, match=r"'body\.bias' is frozen, and has moved"):
        run.check()


def resumed(model: nn.Module, run: Any, path: Path) -> Any:
    """Save this rank's weights and state, and load them into a model of its own."""
    torch.save({"model": model.state_dict(), "run": run.state_dict()}, path)
    saved = torch.load(path, weights_only=True)
    again = sharded()
    again.load_state_dict(saved["model"])
    run = Manifest.load(run.manifest.path).bind(again)
    optimizer, _ = run.load_state_dict(saved["run"])
    return again, run, optimizer


def test_shards_are_looked_at_aligned_and_resumed(tmp_path: Path) -> None:
    on_two_ranks(tmp_path, fsdp2, alone(tmp_path))
