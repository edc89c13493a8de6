"""Aligning rows after a stage: what the recipe says, what the manifest lists, when it happens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import HEAD, NAMES, Network, copied, group, loaded, network, stage, train
from torch import Tensor, nn

from surgeon import recipe, surgery
from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from surgeon.training import Manifest, ManifestError

BODY = [name for name in NAMES if name not in HEAD]
AFTER = [{"align_rows": ["fc.weight[7:8]"]}]
JOINT = stage("joint", group("all", NAMES), frozen=[], after=AFTER)
NEXT = stage("next", group("all", HEAD), frozen=BODY, optimizer_state="carry")
ADAMW = {"class": "torch.optim.AdamW", "args": {"lr": 0.0625}}


def aligned(weight: Tensor, first_new: int = 7) -> Tensor:
    """Zhao et al.'s equation 8, row by row in float64."""
    norms = [row.double().square().sum().sqrt().item() for row in weight]
    old, new = norms[:first_new], norms[first_new:]
    factor = (sum(old) / len(old)) / (sum(new) / len(new))
    return torch.cat([weight[:first_new], (weight[first_new:].double() * factor).to(weight.dtype)])


def test_finish_aligns_the_new_rows(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, JOINT).bind(model)
    train(model, run.start("joint")[0])
    before = copied(model)
    run.finish()
    assert torch.equal(model.fc.weight[:7], before["fc.weight"][:7])
    assert torch.equal(model.fc.weight, aligned(before["fc.weight"]))
    assert not torch.equal(model.fc.weight, before["fc.weight"])
    assert torch.equal(model.fc.bias, before["fc.bias"])


def test_the_next_start_finishes_the_stage(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, JOINT, NEXT, optimizer=ADAMW).bind(model)
    optimizer, _ = run.start("joint")
    train(model, optimizer)
    before, state = copied(model), copy.deepcopy(optimizer.state[model.fc.weight])
    following, _ = run.start("next")
    assert torch.equal(model.fc.weight, aligned(before["fc.weight"]))
    torch.testing.assert_close(following.state[model.fc.weight], state, rtol=0, atol=0)
    run.check()


def test_a_stage_is_finished_once(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, JOINT, NEXT, optimizer=ADAMW).bind(model)
    train(model, run.start("joint")[0])
    run.finish()
    model.fc.weight.data[7] *= 3
    before = copied(model)
    run.finish()
    run.start("next")
    assert torch.equal(model.fc.weight, before["fc.weight"])


def test_a_finished_stage_that_is_resumed_stays_finished(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, JOINT, NEXT, optimizer=ADAMW).bind(model)
    train(model, run.start("joint")[0])
    run.finish()
    before = copied(model)
    run.load_state_dict(run.state_dict())
    run.start("next")
    assert torch.equal(model.fc.weight, before["fc.weight"])


def test_row_blocks_are_aligned_too(tmp_path: Path) -> None:
    blocks = group("new", ["fc.weight[7:8]"])
    frozen = [*BODY, "fc.bias", "fc.weight[0:7]"]
    model = network()
    rows = stage("rows", blocks, frozen=frozen, after=AFTER)
    run = loaded(model, tmp_path, rows).bind(model)
    optimizer, _ = run.start("rows")
    train(model, optimizer)
    before = copied(model)
    run.finish()
    run.check()
    assert torch.equal(model.fc.weight, aligned(before["fc.weight"]))
    assert torch.equal(optimizer.param_groups[0]["params"][0], model.fc.weight[7:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_every_dtype_are_aligned(tmp_path: Path, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    run = loaded(model, tmp_path, JOINT).bind(model)
    run.start("joint")
    before = copied(model)
    run.finish()
    torch.testing.assert_close(model.fc.weight.data, aligned(before["fc.weight"]))


def test_rows_without_a_norm_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, JOINT, NEXT).bind(model)
    run.start("joint")
    nn.init.zeros_(model.fc.weight[7:])
    before = copied(model)
    for end in (run.finish, lambda: run.start("next")):
        with pytest.raises(ManifestError, match="the mean norm of its new rows is 0"):
            end()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.body.weight.requires_grad


@pytest.mark.parametrize(
    ("rows", "frozen", "problem"),
    [
        (["fc.bias[7:8]"], [], "'fc.bias[7:8]' is not some of the rows of a weight"),
        (["fc.weight"], [], "'fc.weight' is not some of the rows of a weight"),
        (["fc.weight[:,0:2]"], [], "'fc.weight[:,0:2]' is not some of the rows of a weight"),
        (["fcc.weight[7:8]"], [], "there is no parameter 'fcc.weight'; did you mean 'fc.weight'?"),
        (["fc.weight[7:9]"], [], "[7:9] is empty or outside of dimension 0"),
        (["fc.weight[7:8]"], HEAD, "'fc.weight[7:8]' is frozen in this stage"),
    ],
)
def test_bind_refuses_what_cannot_be_aligned(
    tmp_path: Path, rows: list[str], frozen: list[str], problem: str
) -> None:
    model = network()
    names = [name for name in NAMES if name not in frozen]
    wanted = stage("joint", group("all", names), frozen=frozen, after=[{"align_rows": rows}])
    with pytest.raises(ManifestError) as raised:
        loaded(model, tmp_path, wanted).bind(model)
    assert "stage 'joint': after: align_rows: " in str(raised.value)
    assert problem in str(raised.value)


def test_an_unknown_action_is_refused(tmp_path: Path) -> None:
    wanted = stage("joint", group("all", NAMES), frozen=[], after=[{"align_row": ["fc"]}])
    with pytest.raises(ManifestError, match=r"stages\[0\]\.after\[0\]: 'align_row' is unknown"):
        loaded(network(), tmp_path, wanted)


# --- From a recipe --------------------------------------------------------------------------------


def written(folder: Path, steps: list[Any], **section: Any) -> dict[str, Any]:
    """Apply a recipe to the network with seven outputs; return the manifest's only stage."""
    old = network()
    old.fc = nn.Linear(6, 7)
    save_file(old.state_dict(), folder / "in.safetensors")
    training = {"stages": [{"name": "joint", **section}]}
    text = {"surgeon": 1, "steps": steps, "training": training}
    (folder / "recipe.json").write_text(json.dumps(text))
    wanted = recipe.load(str(folder / "recipe.json"), {})
    with surgery.opened(wanted, str(folder / "in.safetensors"), {}) as opened:
        surgery.write(opened, folder / "out.safetensors", Options(), force=False)
    (entry,) = json.loads((folder / "out.manifest.json").read_text())["stages"]
    return dict(entry)


WIDEN = {"op": "widen", "target": "fc", "rows": 1}


@pytest.mark.parametrize("target", ["fc", "fc.weight", "@new", "**", ["fc.weight[7:8]"]])
def test_the_manifest_lists_the_new_rows_of_weights(tmp_path: Path, target: Any) -> None:
    assert written(tmp_path, [WIDEN], after=[{"align_rows": target}])["after"] == AFTER


def test_rows_that_no_step_made_are_named(tmp_path: Path) -> None:
    after = [{"align_rows": ["fc.weight[5:7]"]}]
    assert written(tmp_path, [], after=after)["after"] == after


def test_a_stage_without_actions_has_no_entry(tmp_path: Path) -> None:
    assert "after" not in written(tmp_path, [WIDEN])


@pytest.mark.parametrize(
    ("steps", "target", "section", "problem"),
    [
        ([], "fc", {}, "'fc' has no new rows beside old ones; name rows: 'fc.weight[7:8]'"),
        ([WIDEN], "fc.bias", {}, "'fc.bias' has no new rows beside old ones"),
        ([WIDEN], "body", {}, "'body' has no new rows beside old ones"),
        ([{"op": "reinit", "target": "fc"}], "fc", {}, "'fc' has no new rows beside old ones"),
        ([WIDEN], "fcc", {}, "no tensor matches 'fcc'; did you mean 'fc'?"),
        ([WIDEN], "fc", {"freeze": ["fc"]}, "'fc.weight[7:8]' is frozen in this stage"),
    ],
)
def test_a_recipe_that_cannot_be_aligned_is_refused(
    tmp_path: Path, steps: list[Any], target: str, section: Any, problem: str
) -> None:
    with pytest.raises(PlanError) as raised:
        written(tmp_path, steps, after=[{"align_rows": target}], **section)
    assert "training: stage 'joint': after: align_rows: " in str(raised.value)
    assert problem in str(raised.value)


def test_the_op_and_the_stage_do_the_same(tmp_path: Path) -> None:
    written(tmp_path, [WIDEN], after=[{"align_rows": "fc"}])
    model = Network()
    model.load_state_dict(load_file(tmp_path / "out.safetensors"))
    run = Manifest.load(tmp_path / "out.safetensors").bind(model)
    run.start("joint", optimizer=torch.optim.SGD)
    run.finish()
    (tmp_path / "out.safetensors").unlink()
    (tmp_path / "out.manifest.json").unlink()
    written(tmp_path, [WIDEN, {"op": "weight_align", "target": "fc"}])
    offline = load_file(tmp_path / "out.safetensors")
    assert torch.equal(model.fc.weight, offline["fc.weight"])
