"""Optimizer states of model folders: in the order of the class, and in the groups of Trainer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.manifest.test_optimizer_match import Carried, refused

# As transformers' GPT2Block registers them: what is decayed, and what is not.
BLOCK = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
         "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
         "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]  # fmt: skip
# Eleven layers: as words, 10 would come before 2.
ORDER = ["wte.weight", "wpe.weight",
         *(f"h.{layer}.{name}" for layer in range(11) for name in BLOCK),
         "ln_f.weight", "ln_f.bias"]  # fmt: skip
UNDECAYED = ("bias", "ln_1.weight", "ln_2.weight", "ln_f.weight")
CONFIG = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 4, "n_layer": 11,
          "n_head": 1, "vocab_size": 4, "n_positions": 4, "n_inner": 4}  # fmt: skip


def shape_of(name: str) -> tuple[int, ...]:
    if name.endswith("bias") or ".ln_" in name or name.startswith("ln_"):
        return (12,) if "c_attn" in name else (4,)
    return (4, 12) if "c_attn" in name else (4, 4)


def trained(folder: Path, groups: Iterable[Iterable[str]], **changes: Any) -> Any:
    """Write the folder of a GPT-2, and the state of an optimizer of these groups beside it."""
    torch.manual_seed(0)
    named = {f"transformer.{n}": nn.Parameter(torch.randn(shape_of(n))) for n in ORDER}
    lists = [{"params": [named[f"transformer.{n}"] for n in group]} for group in groups]
    optimizer = torch.optim.AdamW(lists)
    for parameter in named.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    folder.mkdir()
    save_file({n: p.detach() for n, p in named.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return {name: optimizer.state[p]["exp_avg"] for name, p in named.items()}


DECAYED = [name for name in ORDER if not name.endswith(UNDECAYED)]
IN_GROUPS = [DECAYED, [name for name in ORDER if name.endswith(UNDECAYED)]]


@pytest.mark.parametrize("groups", [IN_GROUPS, [ORDER]], ids=["trainer", "parameters"])
def test_a_folder_of_a_known_class_tells_whose_state_it_is(tmp_path: Path, groups: Any) -> None:
    kept = trained(tmp_path / "in", groups)
    made = Carried(tmp_path, str(tmp_path / "in"), str(tmp_path / "in" / "optimizer.pt"))
    assert all(torch.equal(made.tensors[f"{name}/exp_avg"], kept[name]) for name in kept)
    assert made.entry["matched_by"] == "order"
    (note,) = [note for note in made.notes if "matched by the order" in note]
    assert "the order of the parameters of GPT2LMHeadModel" in note


@pytest.mark.parametrize(
    ("changes", "groups", "order", "words"),
    [
        ({}, IN_GROUPS, "strict", "in the two groups that transformers' Trainer makes, tells"),
        ({"architectures": ["Mine"]}, IN_GROUPS, None, "2 groups of parameters without names"),
        ({"architectures": None}, [ORDER], None, "the input does not have the order"),
        ({}, [ORDER[:9], ORDER[9:]], None, "(groups of 9 and 127, and transformers' Trainer makes "
         "46 and 90 of GPT2LMHeadModel)"),
        ({}, [DECAYED[:45] + ORDER[-1:], [n for n in ORDER[:-1] if n.endswith(UNDECAYED)]
              + DECAYED[45:]], None, "its 'exp_avg' is (4, 4)"),
    ],
    ids=["strict", "class", "none", "others", "shapes"],
)  # fmt: skip
def test_what_does_not_tell_is_refused(
    tmp_path: Path, changes: Any, groups: Any, order: str | None, words: str
) -> None:
    trained(tmp_path / "in", groups, **changes)
    state = str(tmp_path / "in" / "optimizer.pt")
    assert words in refused(tmp_path, str(tmp_path / "in"), state, order)


def test_a_stage_that_carries_is_told_of_the_state_in_the_folder(tmp_path: Path) -> None:
    trained(tmp_path / "in", [ORDER])
    place = tmp_path / "in" / "optimizer.pt"
    message = refused(tmp_path, str(tmp_path / "in"), None, None)
    assert f"there is none but {place}, which nobody asked for; --optimizer {place}" in message
