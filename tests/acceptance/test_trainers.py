"""What trainers really leave behind goes through a surgery: weights, and whose state is whose.

Each file is made by the trainer itself; what is expected is what it holds in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from surgeon import surgery
from surgeon.output.execute import Options
from surgeon.recipe import load

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Json = dict[str, Any]
CARRY: Json = {
    "optimizer": {"class": "torch.optim.AdamW", "args": {"lr": 0.1}},
    "stages": [{"name": "all", "optimizer_state": "carry"}],
}
GPT2 = {"vocab_size": 20, "n_embd": 8, "n_layer": 11, "n_head": 2, "n_positions": 8}
BERT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 8, "num_labels": 3}  # fmt: skip
LLAMA = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "intermediate_size": 8}  # fmt: skip
MODELS = {
    "GPT2LMHeadModel": GPT2,
    "BertForSequenceClassification": BERT,
    "LlamaForCausalLM": LLAMA,
}


def operated(folder: Path, source: object, optimizer: object = None) -> tuple[Any, Any, Json]:
    """Take a checkpoint and its state through a surgery; return tensors, state and manifest."""
    recipe = folder / "r.json"
    recipe.write_text(json.dumps({"surgeon": 1, "steps": [], "training": CARRY}))
    out = folder / "out.safetensors"
    given = None if optimizer is None else str(optimizer)
    with surgery.opened(load(str(recipe), {}), str(source), {}, given) as opened:
        result = surgery.write(opened, out, Options(workers=1), force=True)
    assert result.optimizer is not None
    return load_file(out), load_file(result.optimizer), json.loads(result.manifest.read_text())


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.detach().cpu()), name


def require_moments(state: Mapping[str, Tensor], model: nn.Module, kept: Any) -> None:
    """Compare with what the optimizer keeps in memory for each of the model's parameters."""
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[f"{name}/{key}"], kept[parameter][key].cpu()), name
    assert {name.rpartition("/")[0] for name in state} == set(names)


def saved_names(model: Any) -> dict[str, Tensor]:
    tied = {id(p): n for n, p in reversed(list(model.named_parameters()))}
    return {n: p for n, p in model.named_parameters() if tied[id(p)] == n}


@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_of_trainer(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    model = made(made.config_class(**MODELS[kind]))
    tokens = [torch.randint(20, (6,)) for _ in range(6)]
    is_classifier = "num_labels" in MODELS[kind]
    data = [{"input_ids": t, "labels": t[0] % 3 if is_classifier else t} for t in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, save_steps=3, use_cpu=True, report_to=[],
        per_device_train_batch_size=2, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-3"
    tensors, state, manifest = operated(tmp_path, folder, folder / "optimizer.pt")
    require_same(tensors, saved_names(model))
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    require_moments(state, model, optimizer.state)
    assert manifest["optimizer_state"]["matched_by"] == "order"


class Network(nn.Module):
    """Two layers of one shape, and one of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.second(self.first(inputs).relu()).relu())
        return outputs


def test_a_folder_of_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    plain = Network()
    optimizer = torch.optim.AdamW(plain.named_parameters(), lr=0.1)
    model, stepper = accelerator.prepare(plain, optimizer)
    for _ in range(2):
        accelerator.backward(model(torch.randn(5, 4)).square().sum())
        stepper.step()
        stepper.zero_grad()
    accelerator.save_state(str(tmp_path / "state"))
    folder = tmp_path / "state"
    tensors, state, manifest = operated(tmp_path, folder, folder / "optimizer.bin")
    require_same(tensors, plain.state_dict())
    require_moments(state, plain, optimizer.state)
    assert manifest["optimizer_state"]["matched_by"] == "names"


def test_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = Network()

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            loss = self.net(batch).square().sum()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    best = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor="loss", save_last=True)
    fit = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, callbacks=[best],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Module(width=4)
    fit.fit(module, torch.utils.data.DataLoader(torch.randn(12, 4), batch_size=4))
    path = tmp_path / "last.ckpt"
    tensors, state, manifest = operated(tmp_path, path)
    require_same(tensors, module.state_dict())
    require_moments(state, module, fit.optimizers[0].state)
    assert manifest["optimizer_state"]["matched_by"] == "order"
    assert operated(tmp_path, path, f"{path}#optimizer_states.0")[1].keys() == state.keys()


def test_a_distributed_checkpoint_of_torch(tmp_path: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict

    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optim": moments}, checkpoint_id=tmp_path / "ck")
    found = operated(tmp_path, f"{tmp_path / 'ck'}#model", f"{tmp_path / 'ck'}#optim")
    require_same(found[0], model.state_dict())
    require_moments(found[1], model, optimizer.state)
    assert found[2]["optimizer_state"]["matched_by"] == "names"
