"""docs/frameworks.md: every block of it runs as written, and trains exactly."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from surgeon.training import Manifest

README = (Path(__file__).parents[2] / "README.md").read_text()
PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
BLOCKS = {
    re.split(r"[:\n]", block)[0].removeprefix("# "): block
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
}
Names = dict[str, Any]
Snapshots = list[dict[str, Tensor]]


class Network(nn.Module):
    """What the first screen's recipe widens from 7 classes to 8."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 16), nn.ReLU())
        self.fc = nn.Linear(16, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.body(inputs))


class OldNetwork(Network):
    """The network before the surgery, with other weights."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(7)


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(16, 64, generator=generator),
            torch.randint(0, 8, (16,), generator=generator),
        )
        for _ in range(6)
    ]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, part: slice = slice(None)) -> None:
    for inputs, labels in data()[part]:
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights, of all ranks where they are sharded."""
    found: dict[str, Any] = dict(model.state_dict())
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
        for name, value in found.items()
    }


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first screen's files; "joint" freezes the body, and there is a teacher."""
    folder = tmp_path_factory.mktemp("operated")
    recipe = json.loads(re.findall(r"```json\n(.*?)```", README, flags=re.S)[0])
    recipe["training"]["stages"][1]["freeze"] = ["body"]
    recipe["training"]["teacher"] = {"model": "input"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    torch.manual_seed(0)
    torch.save(Network(7).state_dict(), folder / "in.pt")
    words = ["-m", "surgeon", "apply", "recipe.json", "in.pt", "out.safetensors"]
    subprocess.run(
        [sys.executable, *words], cwd=folder, check=True, capture_output=True, timeout=120
    )
    return folder


@pytest.fixture
def names(operated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Names:
    """What a block finds: the names of the page, in the folder of the manifest."""
    folder = tmp_path / "run"
    shutil.copytree(operated, folder)
    monkeypatch.chdir(folder)
    return prepared()


def prepared() -> Names:
    loaded: Names = {"torch": torch, "Manifest": Manifest, "cross_entropy": cross_entropy}
    exec(re.findall(r"```python\n(.*?)```", README, flags=re.S)[1].partition("\nmodel.")[0], loaded)
    model = loaded["model"] = Network(8)
    model.load_state_dict(loaded["load_file"]("out.safetensors"))
    loaded["run"] = Manifest.load("out.manifest.json").bind(model)
    return loaded


def watch(names: Names) -> Snapshots:
    """Give the block a `train` that notes the weights: before, and after every stage."""
    seen = [whole(names["model"])]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        report = names["run"].report()
        expected = {"warm-up": 0.1, "joint": 0.02}[report.stage]
        assert [entry["lr"] for entry in optimizer.param_groups] == [expected]
        assert scheduler is None
        steps(model, optimizer)
        names["run"].check()
        seen.append(whole(names["model"]))

    names["train"] = train
    return seen


def require_exact(seen: Snapshots) -> None:
    """Both stages were trained, and what each froze has its bits."""
    before, warm, joint = seen
    for name in ("body.0.weight", "body.0.bias"):
        assert torch.equal(before[name], warm[name])
        assert torch.equal(before[name], joint[name])
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(before[name][:7], warm[name][:7])
        assert not torch.equal(before[name][7:], warm[name][7:])
        assert not torch.equal(warm[name][:7], joint[name][:7])


def require_joint(before: dict[str, Tensor], model: nn.Module) -> None:
    assert torch.equal(before["body.0.weight"], model.body[0].weight)
    assert torch.equal(before["body.0.bias"], model.body[0].bias)
    assert not torch.equal(before["fc.weight"][:7], model.fc.weight[:7])


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    at = f"file://{tmp_path}/meeting-point"
    dist.init_process_group("gloo", init_method=at, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_every_block_is_tested() -> None:
    assert list(BLOCKS) == [
        "PyTorch",
        "torch.compile",
        "DistributedDataParallel",
        "FSDP2",
        "Lightning",
        "Hugging Face Trainer",
        "Resume",
        "Learning without Forgetting",
        "Looking",
    ]


def test_pytorch(names: Names) -> None:
    seen = watch(names)
    exec(BLOCKS["PyTorch"], names)
    require_exact(seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler's imports
def test_torch_compile(names: Names) -> None:
    seen = watch(names)
    exec(BLOCKS["torch.compile"], names)
    require_exact(seen)


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel(names: Names) -> None:
    from torch.nn.parallel import DistributedDataParallel

    seen = watch(names)
    names["DistributedDataParallel"] = DistributedDataParallel
    exec(BLOCKS["DistributedDataParallel"], names)
    require_exact(seen)


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_fsdp2(names: Names) -> None:
    from functools import partial

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    seen = watch(names)
    # Without a mesh it takes all devices of the machine's accelerator, if there is one.
    names["fully_shard"] = partial(fully_shard, mesh=init_device_mesh("cpu", (1,)))
    exec(BLOCKS["FSDP2"], names)
    assert hasattr(names["model"].fc.weight, "full_tensor")
    require_exact(seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice, and its imports' own
def test_lightning(names: Names, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    model, before = names["model"], whole(names["model"])

    class Classifier(lightning.LightningModule):  # type: ignore[misc]
        """The user's own module."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return cross_entropy(self.model(batch[0]), batch[1])

    names["Classifier"] = Classifier
    exec(BLOCKS["Lightning"], names)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(names["Joint"](), torch.utils.data.DataLoader(data(), batch_size=None))
    assert [entry["lr"] for entry in trainer.optimizers[0].param_groups] == [0.02]
    names["run"].check()
    require_joint(before, model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of imports, and of data loaders without an accelerator
def test_hugging_face_trainer(names: Names, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")

    class WithLoss(Network):
        """The network as Trainer calls it."""

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            logits = super().forward(inputs)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    model = WithLoss(8)
    model.load_state_dict(names["model"].state_dict())
    before = whole(model)
    names |= {
        "model": model,
        "run": Manifest.load("out.manifest.json").bind(model),
        "Trainer": transformers.Trainer,
        "data": [
            {"inputs": inputs, "labels": label}
            for batch in data()
            for inputs, label in zip(*batch, strict=True)
        ],
        "arguments": transformers.TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            num_train_epochs=1,
            per_device_train_batch_size=16,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
        ),
    }
    exec(BLOCKS["Hugging Face Trainer"], names)
    (entry,) = names["optimizers"][0].param_groups
    assert (entry["initial_lr"], entry["lr"]) == (0.02, 0.0)  # the linear schedule's end
    names["run"].check()
    require_joint(before, model)


def test_resume(names: Names) -> None:
    save, _, go_on = BLOCKS["Resume"].partition("\n\n")
    optimizer, _ = names["run"].start("warm-up")
    before = whole(names["model"])
    steps(names["model"], optimizer, slice(3))
    exec(save, names)
    steps(names["model"], optimizer, slice(3, None))
    resumed = prepared()
    exec(go_on, resumed)
    assert [entry["lr"] for entry in resumed["optimizer"].param_groups] == [0.1]
    assert not torch.equal(resumed["model"].fc.weight, names["model"].fc.weight)
    steps(resumed["model"], resumed["optimizer"], slice(3, None))
    for name, value in resumed["model"].state_dict().items():
        assert torch.equal(value, names["model"].state_dict()[name])
    assert torch.equal(resumed["model"].fc.weight[:7], before["fc.weight"][:7])


def test_learning_without_forgetting(names: Names) -> None:
    optimizer, _ = names["run"].start("warm-up")
    before = whole(names["model"])
    inputs, labels = data()[0]
    names |= {"OldNetwork": OldNetwork, "inputs": inputs, "labels": labels}
    exec(BLOCKS["Learning without Forgetting"], names)
    plain = cross_entropy(names["logits"], labels)
    torch.testing.assert_close(names["loss"], plain)  # old outputs are the teacher's still
    names["loss"].backward()
    optimizer.step()
    assert torch.equal(names["model"].fc.weight[:7], before["fc.weight"][:7])
    optimizer, _ = names["run"].start("joint")
    steps(names["model"], optimizer)
    exec(BLOCKS["Learning without Forgetting"], names)
    plain = cross_entropy(names["logits"], labels)
    assert names["loss"] > plain
    (distilled,) = torch.autograd.grad(names["loss"] - plain, names["model"].fc.weight)
    assert distilled[:7].abs().min() > 0


def test_looking(names: Names, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer, _ = names["run"].start("warm-up")
    before = whole(names["model"])
    steps(names["model"], optimizer)
    exec(BLOCKS["Looking"], names)
    printed = capsys.readouterr().out
    assert printed.startswith("stage warm-up: SGD")
    assert "fc.weight[7:8]" in printed
    assert "fc.weight[7:8]" in printed.partition("(frozen)")[2]  # the gradients' table too
    assert torch.equal(names["model"].fc.weight[:7], before["fc.weight"][:7])
