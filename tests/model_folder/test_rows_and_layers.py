"""Ids go with the rows of the vocabulary; layers that lack something are refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgeon import surgery
from surgeon.base.errors import PlanError, SurgeonError
from tests.model_folder.test_follow import EMBED, LLAMA, Json, llama, take, widen
from tests.network import Bench, write, write_tokenizer
from tests.tokens.made import transformers

VOCABULARY = [EMBED, "lm_head"]
PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "vocab_size": 10,
        "hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 6, "num_key_value_heads": 2,
        "tie_word_embeddings": False}  # fmt: skip


def phi3() -> dict[str, torch.Tensor]:
    inside = "model.layers.0"
    shapes = {EMBED: (10, 24), "lm_head": (10, 24), "model.norm": (24,),
              f"{inside}.self_attn.qkv_proj": (40, 24), f"{inside}.self_attn.o_proj": (24, 24),
              f"{inside}.mlp.gate_up_proj": (16, 24), f"{inside}.mlp.down_proj": (24, 8),
              f"{inside}.input_layernorm": (24,),
              f"{inside}.post_attention_layernorm": (24,)}  # fmt: skip
    return {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}


def notes_of(bench: Bench, *steps: Json, **output: Any) -> list[str]:
    recipe = bench.recipe(*steps, **({"output": output} if output else {}))
    with surgery.opened(recipe, str(bench.input), {}) as opened:
        return list(surgery.output_plan(opened, bench.folder / "planned").notes)


def drop_rows(*rows: Any) -> Json:
    return {"op": "narrow", "target": VOCABULARY, "drop": list(rows)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "SmolLM3", "Nemotron"])
def test_biases_that_a_setting_brings_have_names(bench: Bench, name: str) -> None:
    """Question answering's class, which was looked at, calls the model otherwise."""
    sizes = {"vocab_size": 10, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}  # fmt: skip
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, **ids, attention_bias=True)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.save_pretrained(bench.folder / "input")
    assert any(name.endswith("q_proj.bias") for name in model.state_dict())
    recipe = bench.recipe(take("0:1"))
    with surgery.opened(recipe, str(bench.folder / "input"), {}) as opened:
        notes = surgery.output_plan(opened, bench.folder / "planned").notes
    assert not [note for note in notes if "no class of" in note]


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


def test_pairs_are_told_from_the_tokens_in_them(folder: Any, bench: Bench) -> None:
    """Where a token is forced, and how much one is favoured, are no tokens."""
    (bench.folder / "input").mkdir()
    path = bench.folder / "input" / "generation_config.json"
    path.write_text(json.dumps({
        "forced_decoder_ids": [[1, 5], [4, None]], "sequence_bias": [[[5, 6], 7], [[0], -4]],
        "bad_words_ids": [[5, 0]]}))  # fmt: skip
    folder(LLAMA, drop_rows("1:4"))
    assert json.loads((bench.folder / "out" / "generation_config.json").read_text()) == {
        "forced_decoder_ids": [[1, 2], [4, None]], "sequence_bias": [[[2, 3], 7], [[0], -4]],
        "bad_words_ids": [[2, 0]]}  # fmt: skip


def test_tokens_that_a_config_names_stay_in_a_second_step_too(folder: Any, bench: Bench) -> None:
    """Token 5 is 3 after the first step, and 1 after the second."""
    (bench.folder / "input").mkdir()
    write_tokenizer(bench.folder / "input", *"?abcdefghi")
    keep = [{"op": "keep_tokens", "tokens": list(some)} for some in ("bdefg", "f")]
    found = folder(LLAMA | {"image_token_index": 5}, *keep)
    assert found["vocab_size"] == 3
    assert found["image_token_index"] == 1


def test_the_id_of_a_role_that_a_step_gives_is_written(folder: Any, bench: Bench) -> None:
    inside = bench.folder / "input"
    inside.mkdir()
    write_tokenizer(inside, *"?abcdefghi")
    (inside / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a"}))
    (inside / "special_tokens_map.json").write_text("{}")
    (inside / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    roles = {"eos_token": "<e>", "pad_token": "<p>"}
    tokens = [{"token": token, "role": role} for role, token in roles.items()]
    found = folder(LLAMA | {"eos_token_id": 1}, {"op": "add_tokens", "tokens": tokens})
    assert (found["eos_token_id"], found["pad_token_id"], found["vocab_size"]) == (10, 11, 12)
    read = {path.name: json.loads(path.read_text()) for path in (bench.folder / "out").glob("*")
            if path.suffix == ".json"}  # fmt: skip
    assert read["generation_config.json"] == {"eos_token_id": [10, 4], "pad_token_id": 11}
    assert read["tokenizer_config.json"] == read["special_tokens_map.json"] == roles


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


@pytest.mark.parametrize(
    ("embedding", "head", "row"),
    [({"drop": [5]}, {"drop": [7]}, "5 of 'lm_head.weight' was row 5, and row 5 of .* was row 6"),
     ({"keep": [1, 0, "2:10"]}, {"keep": ["0:10"]}, "0 of 'lm_head.weight' was row 0, and .*1")],
)  # fmt: skip
def test_parts_of_a_vocabulary_that_lose_other_rows_are_refused(
    folder: Any, embedding: Json, head: Json, row: str
) -> None:
    steps = [{"op": "narrow", "target": name, **how}
             for name, how in ((EMBED, embedding), ("lm_head", head))]  # fmt: skip
    with pytest.raises(PlanError, match=f"vocab_size: row {row}, of "):
        folder(LLAMA, *steps)


def test_ids_go_with_rows_behind_new_ones(folder: Any) -> None:
    steps = [widen(name, rows=2, at=0) for name in VOCABULARY]
    assert folder(LLAMA | {"eos_token_id": 3}, *steps)["eos_token_id"] == 5


def test_ids_go_with_the_rows_of_merged_models(folder: Any, bench: Bench) -> None:
    """What is averaged stands where the input's rows stood, before and after some go."""
    write(bench.folder / "b.safetensors", llama())
    bench.models["b"] = str(bench.folder / "b.safetensors")
    average = {"op": "average", "models": ["b"], "weights": [0.5, 0.5]}
    config = LLAMA | {"bos_token_id": 1, "eos_token_id": 5}
    found = folder(config, average, drop_rows(2, 3))
    assert (found["bos_token_id"], found["eos_token_id"]) == (1, 3)
    with pytest.raises(PlanError, match="bos_token_id is 1, but row 1 of the vocabulary is gone"):
        folder(config, average, drop_rows(1))


# --- Heads that share keys, in one projection with them -------------------------------------------


@pytest.mark.parametrize(("groups", "is_refused"), [(1, True), (2, False)])
def test_heads_that_each_have_all_parts_are_not_split_as_one(
    bench: Bench, groups: int, is_refused: bool
) -> None:
    """GPT-NeoX views its rows as (heads, 3 * size): queries, keys and values of each head."""
    (bench.folder / "in").mkdir()
    fused = "gpt_neox.layers.0.attention.query_key_value"
    weight = torch.arange(12.0)[:, None].repeat(1, 4)
    write(bench.folder / "in" / "model.safetensors", {f"{fused}.weight": weight})
    config = {"model_type": "gpt_neox", "hidden_size": 4, "num_attention_heads": 2}
    (bench.folder / "in" / "config.json").write_text(json.dumps(config))
    bench.input = bench.folder / "in"
    step = {"op": "split", "target": fused, "dim": 0, "parts": 3, "into": ["q", "k", "v"],
            "groups": groups}  # fmt: skip
    with pytest.raises(PlanError, match='"groups": 2') if is_refused else nullcontext():
        found = bench.operate(step).tensors
        assert found["k.weight"][:, 0].tolist() == [2, 3, 8, 9]


@pytest.mark.parametrize(
    ("rows", "columns", "is_refused"),
    [(["0:24", "24:28", "32:36"], ["0:24"], True),
     (["0:24", "28:32", "24:28", "32:40"], ["0:24"], True),
     (["12:24", "0:12", "28:32", "24:28", "36:40", "32:36"], ["12:24", "0:12"], False)],
)  # fmt: skip
def test_fused_heads_go_on_reading_their_own_keys(
    bench: Bench, rows: list[str], columns: list[str], is_refused: bool
) -> None:
    """Phi-3 has rows of queries (6 heads of 4), of keys (2) and of values (2) in one tensor."""
    (bench.folder / "in").mkdir()
    write(bench.folder / "in" / "model.safetensors", phi3())
    (bench.folder / "in" / "config.json").write_text(json.dumps(PHI3))
    bench.input = bench.folder / "in"
    steps = [{"op": "narrow", "target": "**.qkv_proj", "keep": rows},
             {"op": "narrow", "target": "**.o_proj", "dim": 1, "keep": columns}]  # fmt: skip
    with pytest.raises(PlanError, match="read as other heads") if is_refused else nullcontext():
        bench.operate(*steps, to=bench.folder / "out")


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


BIASES = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("take", "problem"),
    [(["1"], "'encoder.block.0.layer.0.*bias.weight' is missing, which a class has in layers of"),
     (["0", "1", "0"], "'encoder.block.2.layer.0.*bias.weight' is in a layer that has none by")],
)  # fmt: skip
def test_what_one_layer_alone_has_by_its_number_is_held_there(
    bench: Bench, take: list[str], problem: str
) -> None:
    bench.input = bench.folder / "in"
    bench.input.mkdir()
    norms = {f"encoder.block.{n}.layer.1.layer_norm.weight": torch.ones(8) for n in range(2)}
    write(bench.input / "model.safetensors", norms | {BIASES.format(0): torch.ones(32, 2)})
    config = {"model_type": "t5", "num_layers": 2, "num_heads": 2, "d_model": 8}
    (bench.input / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match=problem):
        bench.operate({"op": "layers", "container": "encoder.block", "take": take},
                      to=bench.folder / "out")  # fmt: skip


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


def test_placeholders_of_zero_3_are_named(folder: Any, bench: Bench) -> None:
    folder(LLAMA)
    name = "model.layers.0.mlp.up_proj.weight"
    write(bench.folder / "input" / "model.safetensors", llama() | {name: torch.zeros(0)})
    (note,) = [note for note in notes_of(bench) if "(0,)" in note]
    assert f"'{name}' is of shape (0,)" in note
    assert "zero_to_fp32.py" in note


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


# --- Heads that share keys ------------------------------------------------------------------------

QUERIES, KEYS = "model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.(k|v)_proj"


def prune(*drop: int, shared: bool = False) -> Json:
    """Drop query heads of LLAMA: 4 of size 2, over 2."""
    along = {"shared": {"target": KEYS, "by": 2}} if shared else {}
    return {"op": "narrow", "target": QUERIES, "drop": list(drop), "block": 2,
            "consumers": "model.layers.*.self_attn.o_proj", **along}  # fmt: skip


@pytest.mark.parametrize(("step", "heads"), [
    (prune(0, 3), (2, 2)),
    (prune(0, 3, shared=True), (2, 2)),
    (prune(0, 1, shared=True), (2, 1)),
])  # fmt: skip
def test_heads_go_on_reading_their_keys(folder: Any, step: Json, heads: tuple[int, int]) -> None:
    found = folder(LLAMA | {"head_dim": 2}, step)
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == heads


@pytest.mark.parametrize(("step", "problem"), [
    (prune(2, 3), r"head 1 of '.*q_proj.weight' reads keys 0, and would read those of 1"),
    (prune(2, shared=True), "would be shared by others: 2 of group 0, 1 of group 1 are kept"),
])  # fmt: skip
def test_heads_that_would_read_others_keys_are_refused(
    folder: Any, step: Json, problem: str
) -> None:
    with pytest.raises(PlanError, match=problem):
        folder(LLAMA | {"head_dim": 2}, step)


# --- Embeddings that the config ties --------------------------------------------------------------

OWN = {"architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def tied(folder: Any, bench: Bench) -> Any:
    """Operate on a folder that stores the pair once; return the operated folder's tensors."""

    def operate(*steps: Json) -> Json:
        config = LLAMA | OWN | {"tie_word_embeddings": True}
        folder(config | {"tie_word_embeddings": False})
        (bench.folder / "input" / "config.json").write_text(json.dumps(config))
        stored = {name: tensor for name, tensor in llama().items() if "lm_head" not in name}
        write(bench.folder / "input" / "model.safetensors", stored)
        bench.operate(*steps, to=bench.folder / "out")
        return load_file(bench.folder / "out" / "model.safetensors")

    return operate


def test_two_tensors_are_not_tied(folder: Any, bench: Bench) -> None:
    config = LLAMA | OWN | {"tie_word_embeddings": True}
    assert folder(config)["tie_word_embeddings"] is False
    assert any("becomes false: input and output embedding are two" in n for n in notes_of(bench))


def test_head_of_a_pair_that_is_stored_once_is_the_pair(tied: Any, bench: Bench) -> None:
    made = tied({"op": "scale", "target": "lm_head", "by": 3.0})
    assert torch.equal(made["model.embed_tokens.weight"], torch.full((10, 8), 3.0))
    assert "lm_head.weight" not in made
    recipe = bench.recipe({"op": "scale", "target": "lm_head.weight", "by": 3.0})
    with surgery.opened(recipe, str(bench.input), {}) as opened:
        assert any("'lm_head.weight' is tied to 'model.embed" in note for note in opened.notes)


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens.weight"])
def test_untied_head_is_stored_and_changes_alone(tied: Any, bench: Bench, name: str) -> None:
    made = tied({"op": "untie", "target": name}, {"op": "scale", "target": name, "by": 3.0})
    other = {"lm_head": "model.embed_tokens.weight"}.get(name, "lm_head.weight")
    assert torch.equal(made[other], torch.ones(10, 8))
    assert sum(float(made[n][0, 0]) for n in ("lm_head.weight", f"{EMBED}.weight")) == 4.0
    assert (
        json.loads((bench.folder / "out" / "config.json").read_text())["tie_word_embeddings"]
        is False
    )


def test_module_of_a_pair_that_is_stored_once_is_the_pairs(tied: Any) -> None:
    made = tied(widen("lm_head", rows=2, init="zeros"))
    assert made[f"{EMBED}.weight"].sum(1).tolist() == [8.0] * 10 + [0.0] * 2


@pytest.mark.parametrize(("step", "problem"), [
    ({"op": "delete", "target": "lm_head"},
     "no tensor matches 'lm_head': the config ties 'lm_head.weight' to 'model.embed_tokens.weig"),
    ({"op": "rename", "from": "lm_head", "to": "head"}, "untie gives it a tensor of its own"),
    ({"op": "replace", "target": EMBED, "rows": 4},
     "'model.embed_tokens.weight' is tied to 'lm_head.weight'; untie it first"),
    ({"op": "expect", "target": f"{EMBED}.weight", "tied": False}, "not to be tied"),
])  # fmt: skip
def test_what_would_take_only_one_of_a_pair_is_refused(tied: Any, step: Json, problem: str) -> None:
    with pytest.raises(SurgeonError, match=problem):
        tied(step)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "head"), [("bert", "cls.predictions.decoder"),
                                            ("bart", "lm_head"), ("t5", "lm_head")])  # fmt: skip
def test_all_that_one_setting_ties_is_untied_with_the_head(
    bench: Bench, kind: str, head: str
) -> None:
    """A class would fill what is missing with random values: biases, and other embeddings."""
    from tests.folders.models import loaded, logits, saved, tiny

    # T5's gated layers are known by the names of a class that calls the base otherwise.
    model = tiny(kind, 0, {"feed_forward_proj": "gated-gelu"} if kind == "t5" else None)
    bench.input = saved(model, bench.folder / "in")
    bench.operate({"op": "untie", "target": head}, to=bench.folder / "out")
    assert torch.equal(logits(loaded(bench.folder / "out", model)), logits(model))
    source = {"bert": "bert.embeddings.word_embeddings.weight", "bart": "model.shared.weight"}
    if kind in source:
        copied = {"op": "copy", "from": source[kind], "to": f"{head}.weight"}
        with pytest.raises(PlanError, match="is not stored, and tie_word_embeddings"):
            bench.operate(copied, to=bench.folder / "out")


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ({}, "'lm_head.weight' is gone, which the class has for itself; state tie_word_embedd"),
        ({"tie_word_embeddings": True}, ""),
        ({"architectures": ["LlamaModel"]}, ""),
    ],
)
def test_untied_model_needs_its_head(folder: Any, bench: Bench, stated: Json, problem: str) -> None:
    step = {"op": "delete", "target": "lm_head"}
    if problem:
        with pytest.raises(PlanError, match=problem):
            folder(LLAMA | OWN, step, stated=stated)
    else:
        assert folder(LLAMA | OWN, step, stated=stated) == LLAMA | OWN | stated
        assert not [n for n in notes_of(bench, step, config=stated) if "is gone" in n]


# --- Tensors that the class computes in float32 ---------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "dtype", "is_told"),
    [
        ("deepseek_v3", "model.layers.0.mlp.gate.weight", "BF16", True),
        ("deepseek_v3", "model.layers.0.self_attn.o_proj.weight", "BF16", False),
        ("t5", "encoder.block.0.layer.1.DenseReluDense.wo.weight", "F16", True),
        ("t5", "encoder.block.0.layer.1.DenseReluDense.wo.weight", "BF16", False),
    ],
)
def test_tensors_that_the_class_keeps_in_float32_are_named(
    bench: Bench, kind: str, name: str, dtype: str, is_told: bool
) -> None:
    """As `_keep_in_fp32_modules_strict` and `_keep_in_fp32_modules` of the classes say."""
    bench.input = bench.folder / "in"
    bench.input.mkdir()
    write(bench.input / "model.safetensors", {name: torch.ones(4, 4)})
    (bench.input / "config.json").write_text(json.dumps({"model_type": kind, "dtype": "float32"}))
    notes = notes_of(bench, {"op": "cast", "target": "**", "dtype": dtype})
    assert any(f"'{name}' lost digits" in note for note in notes) is is_told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_tied", [True, False])
def test_order_of_a_head_that_only_the_config_ties(bench: Bench, is_tied: bool) -> None:
    """Llama's class ties nothing by default; Trainer's state goes by the model's own order."""
    from surgeon.model_folder.parameters import parameter_order
    from tests.folders.models import saved, tiny

    model = tiny("llama", 0, {"tie_word_embeddings": is_tied})
    source = saved(model, bench.folder / "in")
    stored = sorted(load_file(source / "model.safetensors"))
    order = parameter_order(json.loads((source / "config.json").read_text()), stored)
    assert order is not None
    assert list(order.names) == [name for name, _ in model.named_parameters()]
