"""Whose state an optimizer's state is: proven by names or shapes, or said to be a guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from surgeon import surgery
from surgeon.base.errors import SurgeonError
from surgeon.output.execute import Options
from surgeon.recipe import load

Json = dict[str, Any]
CARRY = {
    "optimizer": {"class": "torch.optim.Adam", "args": {"lr": 0.1}},
    "stages": [{"name": "all", "optimizer_state": "carry"}],
}


def twins() -> nn.Module:
    """Two equal layers and one of its own shape."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))


def distinct() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))


def stepped(model: nn.Module, members: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(members)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


class Carried:
    """What went along: the manifest's entry, the notes, and the file's tensors."""

    def __init__(
        self, folder: Path, source: str, optimizer: str | None = None, order: str | None = None
    ) -> None:
        recipe = folder / "r.json"
        recipe.write_text(json.dumps({"surgeon": 1, "steps": [], "training": CARRY}))
        out = folder / "out.safetensors"
        with surgery.opened(
            load(str(recipe), {}), source, {}, optimizer, optimizer_order=order
        ) as opened:
            self.notes = opened.notes
            result = surgery.write(opened, out, Options(workers=1), force=True)
        self.entry = json.loads(result.manifest.read_text())["optimizer_state"]
        assert result.optimizer is not None
        self.path, self.tensors = result.optimizer, load_file(result.optimizer)

    def is_of(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        return all(
            torch.equal(self.tensors[f"{name}/exp_avg"], optimizer.state[parameter]["exp_avg"])
            for name, parameter in model.named_parameters()
        )


def refused(folder: Path, source: str, *given: str | None) -> str:
    with pytest.raises(SurgeonError) as caught:
        Carried(folder, source, *given)
    return str(caught.value)


def reordered(model: nn.Sequential) -> list[nn.Parameter]:
    return [parameter for layer in reversed(model) for parameter in layer.parameters()]


def saved(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    path = folder / "in.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("order", [None, "strict"])
@pytest.mark.parametrize("in_groups", [False, True])
def test_shapes_that_differ_prove_it_in_any_order(
    tmp_path: Path, order: str | None, in_groups: bool
) -> None:
    model = distinct()
    members: Any = reordered(model)
    members = [{"params": members[:1]}, {"params": members[1:]}] if in_groups else members
    optimizer = stepped(model, members)
    made = Carried(tmp_path, saved(tmp_path, model, optimizer), None, order)
    assert made.entry["matched_by"] == "shapes"
    assert made.is_of(model, optimizer)


def test_shapes_that_differ_need_no_order_of_the_input(tmp_path: Path) -> None:
    model = distinct()
    optimizer = stepped(model, reordered(model))
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    made = Carried(tmp_path, str(tmp_path / "in.safetensors"), str(tmp_path / "optimizer.pt"))
    assert made.is_of(model, optimizer)


def test_the_order_alone_is_said_to_be_a_guess(tmp_path: Path) -> None:
    model = twins()
    optimizer = stepped(model, model.parameters())
    made = Carried(tmp_path, saved(tmp_path, model, optimizer))
    assert made.is_of(model, optimizer)
    assert made.entry["matched_by"] == "order"
    assert any("matched by the order of the input's parameters alone" in n for n in made.notes)
    found = refused(tmp_path, str(tmp_path / "in.pt"), None, "strict")
    assert "which --optimizer-order strict refuses" in found


def test_a_guess_stays_one_in_the_next_surgery(tmp_path: Path) -> None:
    model = twins()
    first = Carried(tmp_path, saved(tmp_path, model, stepped(model, model.parameters())))
    state = first.path.rename(tmp_path / "earlier.safetensors")
    source = (tmp_path / "out.safetensors").rename(tmp_path / "again.safetensors")
    assert Carried(tmp_path, str(source), str(state)).entry["matched_by"] == "order"


@pytest.mark.parametrize("order", [None, "strict"])
def test_names_prove_it(tmp_path: Path, order: str | None) -> None:
    model = twins()
    optimizer = stepped(model, list(model.named_parameters())[::-1])
    made = Carried(tmp_path, saved(tmp_path, model, optimizer), None, order)
    assert made.entry["matched_by"] == "names"
    assert made.is_of(model, optimizer)


def test_a_file_of_names_proves_it(tmp_path: Path) -> None:
    model = twins()
    named = dict(model.named_parameters())
    groups = [[n for n in named if "weight" in n], [n for n in named if "bias" in n]]
    optimizer = stepped(model, [{"params": [named[n] for n in group]} for group in groups])
    source = saved(tmp_path, model, optimizer)
    found = refused(tmp_path, source)
    assert "has 2 groups of parameters without names, and several parameters of one shape" in found
    for text in (groups, groups[0] + groups[1]):
        (tmp_path / "order.json").write_text(json.dumps(text))
        made = Carried(tmp_path, source, None, str(tmp_path / "order.json"))
        assert made.entry["matched_by"] == "names"
        assert made.is_of(model, optimizer)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["0.weight"], "keeps the state of 6 parameters, and --optimizer-order names 1"),
        (["0.weight"] * 6, "--optimizer-order: '0.weight' is there twice"),
        (["0.wieght", *"abcde"], "the input has no '0.wieght'; did you mean '0.weight'?"),
        ({"a": 1}, "is not a JSON list of names"),
        (["2.weight", "0.bias", "1.weight", "1.bias", "0.weight", "2.bias"], "'2.weight' is F32"),
    ],
)
def test_a_file_of_other_names_is_refused(tmp_path: Path, names: Any, problem: str) -> None:
    model = twins()
    source = saved(tmp_path, model, stepped(model, model.parameters()))
    (tmp_path / "order.json").write_text(json.dumps(names))
    assert problem in refused(tmp_path, source, None, str(tmp_path / "order.json"))


@pytest.mark.parametrize(
    ("moved", "words"),
    [(sorted, "it has '11' before '2'"), (reversed, "it has '11' before '10'")],
)
def test_numbers_that_do_not_ascend_are_no_order(tmp_path: Path, moved: Any, words: str) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(12)))
    optimizer = stepped(model, model.parameters()).state_dict()
    state = {name: model.state_dict()[name] for name in moved(model.state_dict())}
    torch.save({"model": state, "optimizer": optimizer}, tmp_path / "in.pt")
    assert words in refused(tmp_path, str(tmp_path / "in.pt"))


def test_sorted_names_are_no_order(tmp_path: Path) -> None:
    model = twins()
    state = dict(sorted(model.state_dict().items()))
    optimizer = stepped(model, model.parameters()).state_dict()
    torch.save({"model": state, "optimizer": optimizer}, tmp_path / "in.pt")
    assert "(its names were sorted)" in refused(tmp_path, str(tmp_path / "in.pt"))


def test_a_state_that_may_be_another_models_is_asked_about(tmp_path: Path) -> None:
    generator, other = twins(), twins()
    optimizer = stepped(generator, generator.parameters())
    saved = {"netG": generator.state_dict(), "netD": other.state_dict()}
    torch.save({**saved, "optG": optimizer.state_dict()}, tmp_path / "in.pt")
    source = f"{tmp_path}/in.pt#netD"
    assert "may be the state of 'netG' as well as of 'netD'" in refused(tmp_path, source)
    made = Carried(tmp_path, f"{tmp_path}/in.pt#netG", f"{tmp_path}/in.pt#optG")
    assert made.is_of(generator, optimizer)


def test_the_state_of_a_trainer_in_the_folder_is_mentioned(tmp_path: Path) -> None:
    model = twins()
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(stepped(model, model.parameters()).state_dict(), folder / "optimizer.pt")
    (tmp_path / "r.json").write_text(json.dumps({"surgeon": 1, "steps": []}))
    with surgery.opened(load(str(tmp_path / "r.json"), {}), str(folder), {}) as opened:
        path = folder / "optimizer.pt"
        assert f"{path} is not carried; --optimizer {path} does that" in opened.notes


@pytest.mark.parametrize("is_older", [False, True])
def test_eight_bit_moments_are_refused_by_name(tmp_path: Path, is_older: bool) -> None:
    model = distinct()
    state = stepped(model, model.parameters()).state_dict()
    codes = {"state1": torch.zeros(5, 4, dtype=torch.uint8), "qmap1": torch.zeros(256),
             "absmax1": torch.zeros(1)}  # fmt: skip
    state["state"][0] = codes if is_older else {"__bnb_optimizer_quant_state__": codes, "step": 2}
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "in.pt")
    found = refused(tmp_path, str(tmp_path / "in.pt"))
    assert "is the state of an 8-bit optimizer of bitsandbytes, whose moments are" in found
    assert 'start fresh: let the stage "reset" the state, or leave it out' in found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_state_of_adam8bit_is_refused_by_name(tmp_path: Path) -> None:
    optimizers = pytest.importorskip("bitsandbytes").optim
    model = distinct()
    try:
        optimizer = optimizers.Adam8bit(model.parameters(), min_8bit_size=8)
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    except Exception as error:  # it may need a GPU
        pytest.skip(str(error))
    assert "an 8-bit optimizer of bitsandbytes" in refused(
        tmp_path, saved(tmp_path, model, optimizer)
    )
