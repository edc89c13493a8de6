"""Ids go with the rows of the vocabulary; layers that lack something are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from surgeon import surgery
from surgeon.base.errors import PlanError
from tests.model_folder.test_follow import EMBED, LLAMA, Json, llama, take, widen
from tests.network import Bench, write

VOCABULARY = [EMBED, "lm_head"]


def notes_of(bench: Bench, *steps: Json, **output: Any) -> list[str]:
    recipe = bench.recipe(*steps, **({"output": output} if output else {}))
    with surgery.opened(recipe, str(bench.input), {}) as opened:
        return list(surgery.output_plan(opened, bench.folder / "planned").notes)


def drop_rows(*rows: Any) -> Json:
    return {"op": "narrow", "target": VOCABULARY, "drop": list(rows)}


# --- Token ids ------------------------------------------------------------------------------------


def test_ids_go_with_the_rows_of_the_vocabulary(folder: Any, bench: Bench) -> None:
    """Rows 2 and 3 go: 1 stays, 5 is 3 now; 12 had no row before either."""
    ids = {"bos_token_id": 1, "eos_token_id": [5, 7], "pad_token_id": 12, "image_token_index": 9,
           "sub_config": {"pad_token_id": 4, "sep_token_id": None}}  # fmt: skip
    (bench.folder / "input").mkdir()
    generation = {"eos_token_id": [5], "suppress_tokens": [2, 4], "temperature": 0.5}
    (bench.folder / "input" / "generation_config.json").write_text(json.dumps(generation))
    found = folder(LLAMA | ids, drop_rows("2:4"))
    moved = {"eos_token_id": [3, 5], "image_token_index": 7, "vocab_size": 8,
             "sub_config": {"pad_token_id": 2, "sep_token_id": None}}  # fmt: skip
    assert found == LLAMA | ids | moved
    written = json.loads((bench.folder / "out" / "generation_config.json").read_text())
    assert written == {"eos_token_id": [3], "suppress_tokens": [2], "temperature": 0.5}


@pytest.mark.parametrize("steps", [[widen(EMBED, rows=2), widen("lm_head", rows=2)], []])
def test_ids_stay_where_rows_are_added_behind_them(folder: Any, steps: list[Json]) -> None:
    config = LLAMA | {"eos_token_id": 9, "pad_token_id": 11}
    assert folder(config, *steps) == config | ({"vocab_size": 12} if steps else {})


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_id_whose_row_is_gone_is_refused(folder: Any, bench: Bench, name: str) -> None:
    (bench.folder / "input").mkdir()
    own = {"sub": {"eos_token_id": 3}} if name == "config.json" else {}
    if not own:
        (bench.folder / "input" / name).write_text(json.dumps({"eos_token_id": [3]}))
    with pytest.raises(
        PlanError, match=r"eos_token_id is .*3.*, but row 3 of the vocabulary is gone"
    ):
        folder(LLAMA | own, drop_rows(3))


def test_stated_ids_must_have_rows(folder: Any) -> None:
    config = LLAMA | {"eos_token_id": 3}
    assert folder(config, drop_rows(3), stated={"eos_token_id": 8})["eos_token_id"] == 8
    with pytest.raises(
        PlanError, match=r"output\.config\.eos_token_id is 9, but the vocabulary has 9"
    ):
        folder(config, drop_rows(3), stated={"eos_token_id": 9})


# --- Layers that lack something -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([{"op": "delete", "target": "model.layers.1.mlp.up_proj"}],
         "'model.layers.1.mlp.up_proj.weight' is missing, which a class of model_type 'llama' "),
        ([{"op": "delete", "target": "**.input_layernorm"}],
         "is missing, .*; state the setting that goes without it in output.config"),
        ([{"op": "copy", "from": "model.layers.1.mlp", "to": "model.layers.2.mlp"}],
         r"'model.layers.2.input_layernorm.weight', .*v_proj.weight' is missing"),
    ],
)  # fmt: skip
def test_layers_that_lack_something_are_refused(
    folder: Any, steps: list[Json], problem: str
) -> None:
    with pytest.raises(PlanError, match=problem):
        folder(LLAMA, *steps)


def test_what_a_stated_setting_leaves_out_is_a_note(folder: Any, bench: Bench) -> None:
    folder(LLAMA)
    step = {"op": "delete", "target": "**.input_layernorm"}
    notes = notes_of(bench, step, config={"norm": False})
    assert any("gone: a class that has it" in note for note in notes)


def test_names_that_the_input_had_already_are_a_note(folder: Any, bench: Bench) -> None:
    folder(LLAMA)
    source = bench.folder / "input" / "model.safetensors"
    write(source, llama() | {"model.odd.weight": torch.ones(2)})
    notes = notes_of(bench, take("0"))
    assert any("'model.odd.weight', which the input had already" in note for note in notes)
    with pytest.raises(PlanError, match="no class of model_type 'llama' has tensors named 'new'"):
        bench.operate({"op": "copy", "from": "lm_head.weight", "to": "new"},
                      to=bench.folder / "third")  # fmt: skip


# --- Experts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "stated", "problem"), [
    (1, {}, "num_experts_per_tok is 2, but num_local_experts is 1; state it in output.config"),
    (1, {"num_experts_per_tok": 1}, ""),
    (2, {}, ""),
])  # fmt: skip
def test_router_chooses_no_more_experts_than_there_are(
    folder: Any, kept: int, stated: Json, problem: str
) -> None:
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 8,
              "num_local_experts": 3, "num_experts_per_tok": 2}  # fmt: skip
    gone = "|".join(map(str, range(kept, 3)))
    steps = [{"op": "delete", "target": f"**.experts.({gone})"},
             {"op": "narrow", "target": "**.gate", "keep": [f"0:{kept}"]}]  # fmt: skip
    if problem:
        with pytest.raises(PlanError, match=problem):
            folder(config, *steps, stated=stated)
    else:
        found = folder(config, *steps, stated=stated)
        assert found == config | {"num_local_experts": kept} | stated
