"""Learning without Forgetting: the loss, its teacher, and the manifest that describes both."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small import Network, batches, copied, group, loaded, network, stage
from torch import Tensor, nn

from surgeon import recipe, surgery
from surgeon.output.execute import Options
from surgeon.training import Distillation, Manifest, ManifestError, Run

WEIGHT_AND_BIAS = ["fc.weight[0:7]", "fc.bias[0:7]"]


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def narrow() -> Network:
    """The network before surgery, with seven outputs."""
    model = network()
    model.fc = nn.Linear(6, 7)
    return model


class Returns(nn.Module):
    """A teacher of which the outputs are known."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs


def loss_of(student: Tensor, teacher: Tensor, **settings: Any) -> Tensor:
    outputs = range(teacher.shape[1])
    return Distillation(Returns(teacher), outputs, **settings)(student, torch.empty(0))


def naive(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T² times the divergence of softened outputs, the mean over samples, one by one."""
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        ours = [math.exp(z / temperature) for z in ours[: len(theirs)]]
        theirs = [math.exp(z / temperature) for z in theirs]
        for q, p in zip(ours, theirs, strict=True):
            p, q = p / sum(theirs), q / sum(ours)
            total += p * math.log(p / q)
    return temperature**2 * total / len(student)


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_the_loss_is_that_of_the_papers(temperature: float) -> None:
    student, teacher = logits(6, 10), logits(6, 7, seed=1)
    found = loss_of(student.requires_grad_(), teacher, temperature=temperature)
    assert found.item() == pytest.approx(naive(student, teacher, temperature), rel=1e-5)


def test_the_gradient_is_that_of_the_softened_cross_entropy() -> None:
    student, teacher = logits(6, 7).double().requires_grad_(), logits(6, 7, seed=1).double()
    loss_of(student, teacher, temperature=2.0).backward()
    again = student.detach().clone().requires_grad_()
    targets = (teacher / 2).softmax(1)
    (4 * nn.functional.cross_entropy(again / 2, targets)).backward()
    torch.testing.assert_close(student.grad, again.grad)


def gradient_norm(temperature: float) -> float:
    student, teacher = logits(6, 7).requires_grad_(), logits(6, 7, seed=1)
    loss_of(student, teacher, temperature=temperature).backward()
    assert student.grad is not None
    return student.grad.norm().item()


def test_the_gradient_is_as_large_at_every_temperature() -> None:
    norms = [gradient_norm(temperature) for temperature in (8.0, 16.0, 64.0)]
    assert norms == pytest.approx([norms[-1]] * 3, rel=0.02)


def test_weight_scales_the_loss() -> None:
    student, teacher = logits(6, 7).requires_grad_(), logits(6, 7, seed=1)
    half, one = (loss_of(student, teacher, weight=weight).item() for weight in (0.5, 1.0))
    assert half == pytest.approx(one / 2)


def test_agreement_costs_nothing() -> None:
    student = logits(6, 7).requires_grad_()
    loss = loss_of(student, student.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros(6, 7))


def test_new_outputs_get_no_gradient() -> None:
    student, teacher = logits(6, 10).requires_grad_(), logits(6, 3, seed=1)
    Distillation(Returns(teacher), [0, 1, 5])(student, torch.empty(0)).backward()
    assert student.grad is not None
    moved = student.grad.abs().sum(0) > 0
    assert moved.tolist() == [True, True, False, False, False, True] + [False] * 4


def test_positions_count_like_samples() -> None:
    student, teacher = logits(6, 10, 4).requires_grad_(), logits(6, 7, 4, seed=1)
    flat = [values.transpose(1, 2).flatten(0, 1) for values in (student, teacher)]
    torch.testing.assert_close(loss_of(student, teacher), loss_of(*flat))


def test_half_precision_is_computed_in_single() -> None:
    student, teacher = logits(6, 10).bfloat16().requires_grad_(), logits(6, 7, seed=1).bfloat16()
    expected = loss_of(student.float(), teacher.float())
    assert torch.equal(loss_of(student, teacher), expected)


# --- The teacher ----------------------------------------------------------------------------------


def test_the_teacher_stays_as_it_is() -> None:
    teacher, model = network(), network().train()
    before = copied(teacher)
    distillation = Distillation(teacher, range(8))
    teacher.train()
    for inputs, _ in batches(3):
        distillation(model(inputs), inputs).backward()
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)


def test_the_term_alone_teaches_the_student_its_old_outputs() -> None:
    """Fails where the student's side of the term is cut from the graph."""
    teacher, model = network().eval(), network().eval()
    distillation = Distillation(teacher, range(7))
    nn.init.normal_(model.fc.weight, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for inputs, _ in batches(60):
        optimizer.zero_grad()
        loss = distillation(model(inputs), inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20


def test_a_student_without_gradient_is_refused() -> None:
    model = network()
    inputs = batches(1)[0][0]
    distillation = Distillation(network(), range(8))
    with pytest.raises(ManifestError, match="the student's logits carry no gradient"):
        distillation(model(inputs).detach(), inputs)
    with torch.no_grad():
        assert distillation(model(inputs), inputs) >= 0


def test_the_student_as_its_own_teacher_is_refused() -> None:
    model = network()
    distillation = Distillation(model, range(8))
    inputs = batches(1)[0][0]
    with pytest.raises(ManifestError, match="or the student is the teacher"):
        distillation(model(inputs), inputs)


@pytest.mark.parametrize(
    ("outputs", "settings", "problem"),
    [
        ([], {}, "there are no old outputs to keep"),
        (range(8), {"temperature": 0.0}, "temperature 0.0 and weight 1.0: both have to be"),
        (range(8), {"weight": -1.0}, "both have to be positive"),
    ],
)
def test_what_does_not_fit_is_refused(outputs: Any, settings: Any, problem: str) -> None:
    inputs = batches(1)[0][0]
    with pytest.raises(ManifestError, match=problem):
        Distillation(network(), outputs, **settings)(network()(inputs), inputs)


def test_a_teacher_of_other_outputs_is_refused() -> None:
    inputs = batches(1)[0][0]
    with pytest.raises(ManifestError, match="the teacher has 7 outputs, and 6 are to be kept"):
        Distillation(narrow(), range(6))(network()(inputs), inputs)


def test_a_teacher_may_have_the_new_outputs_too() -> None:
    teacher, inputs = network().eval(), batches(1)[0][0]
    old = narrow().eval()
    old.load_state_dict({n: t[:7] if "fc" in n else t for n, t in teacher.state_dict().items()})
    student = network()(inputs) + logits(16, 8)
    found = [Distillation(module, range(7))(student, inputs) for module in (teacher, old)]
    torch.testing.assert_close(*found)


# --- From a manifest ------------------------------------------------------------------------------


def operated(folder: Path, steps: list[Any], source: str = "in.safetensors", **teacher: Any) -> Run:
    """Save the old network, widen it by a recipe with a teacher, bind the new one."""
    old = narrow().state_dict()
    if source.endswith(".pt"):
        torch.save({"model": old, "epoch": 3}, folder / source)
    else:
        save_file(old, folder / source)
    training = {"teacher": {"model": "input", **teacher}}
    written = {"surgeon": 1, "steps": steps, "training": training}
    (folder / "recipe.json").write_text(json.dumps(written))
    wanted = recipe.load(str(folder / "recipe.json"), {})
    with surgery.opened(wanted, str(folder / source), {}) as opened:
        surgery.write(opened, folder / "out.safetensors", Options(), force=False)
    return Manifest.load(folder / "out.safetensors").bind(network())


WIDEN = {"op": "widen", "target": "fc", "rows": 1}


@pytest.mark.parametrize("source", ["in.safetensors", "in.pt"])
def test_the_manifest_describes_the_whole_term(tmp_path: Path, source: str) -> None:
    run = operated(tmp_path, [WIDEN], source, temperature=3.0, weight=0.5)
    torch.manual_seed(7)
    teacher = Network()
    teacher.fc = nn.Linear(6, 7)
    found = run.distillation(teacher)
    assert tuple(found.outputs) == tuple(range(7))
    assert (found.temperature, found.weight) == (3.0, 0.5)
    torch.testing.assert_close(teacher.state_dict(), narrow().state_dict(), rtol=0, atol=0)
    inputs = batches(1)[0][0]
    by_hand = Distillation(narrow(), range(7), 3.0, 0.5)
    student = network()(inputs)
    assert torch.equal(found(student, inputs), by_hand(student, inputs))


def test_the_teacher_may_lie_elsewhere(tmp_path: Path) -> None:
    run = operated(tmp_path, [WIDEN])
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "in.safetensors").rename(tmp_path / "elsewhere" / "old.safetensors")
    assert "say where with file=" in refusal(run, narrow())
    assert run.distillation(narrow(), file=moved).weight == 1.0


def refusal(run: Run, teacher: nn.Module) -> str:
    with pytest.raises(ManifestError) as raised:
        run.distillation(teacher)
    assert str(raised.value).startswith("out.manifest.json: teacher: ")
    return str(raised.value)


def test_another_file_is_refused(tmp_path: Path) -> None:
    run = operated(tmp_path, [WIDEN])
    other = {name: tensor + 1 for name, tensor in narrow().state_dict().items()}
    save_file(other, tmp_path / "in.safetensors")
    assert "is not the file that the manifest calls the teacher" in refusal(run, narrow())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    run = operated(tmp_path, [WIDEN])
    assert "'fc.weight' is (7, 6), and (8, 6) in the teacher's module" in refusal(run, network())
    teacher = narrow()
    teacher.head = teacher.fc
    del teacher.fc
    assert "'fc.bias' is not in the teacher's module; did you mean" in refusal(run, teacher)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_the_model_itself_is_no_teacher(tmp_path: Path) -> None:
    model = network()
    stages = stage("s", group("all", list(dict(model.named_parameters()))), frozen=[])
    described = {"file": "in.safetensors", "sha256": "0" * 64, "outputs": WEIGHT_AND_BIAS}
    teacher = {**described, "temperature": 2.0, "weight": 1.0}
    run = loaded(model, tmp_path, stages, teacher=teacher).bind(model)
    assert "shares parameters with the model" in refusal(run, model)


def test_outputs_of_several_layers_are_refused(tmp_path: Path) -> None:
    run = operated(tmp_path, [WIDEN], outputs=["fc.weight[0:7]", "body.weight[0:3]"])
    assert "the blocks of body, fc are not the same rows of one layer" in refusal(run, narrow())


def test_outputs_that_there_are_not_are_refused(tmp_path: Path) -> None:
    run = operated(tmp_path, [WIDEN], outputs=["fcc.weight[0:7]"])
    assert "outputs: there is no parameter 'fcc.weight'" in refusal(run, narrow())


def test_a_manifest_without_a_teacher_says_so(tmp_path: Path) -> None:
    model = network()
    names = list(dict(model.named_parameters()))
    run = loaded(model, tmp_path, stage("s", group("all", names), frozen=[])).bind(model)
    assert refusal(run, copy.deepcopy(model)).endswith("add training.teacher to the recipe")
