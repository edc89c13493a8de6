"""A model folder's config follows what the steps did, and contradictions are said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgeon import surgery
from surgeon.base.errors import PlanError, UsageError
from surgeon.base.tables import json_text
from surgeon.formats import open_checkpoint
from surgeon.formats.files import InMemory
from surgeon.lazy import Selected, Stored, Strided, TensorSpec, detached
from surgeon.model_folder.follow import follow
from surgeon.output import report
from surgeon.output.execute import Options
from tests.network import Bench, write

Json = dict[str, Any]

LLAMA = {"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": None, "tie_word_embeddings": False, "dtype": "float32"}  # fmt: skip
BERT = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
        "id2label": {"0": "cat", "1": "dog", "2": "emu"},
        "label2id": {"cat": 0, "dog": 1, "emu": 2}}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 4, "image_size": 4, "patch_size": 2}
Q, K = "model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.(k|v)_proj"
OUT, EMBED = "model.layers.*.self_attn.o_proj", "model.embed_tokens"


def llama() -> dict[str, torch.Tensor]:
    shapes = {"model.embed_tokens": (10, 8), "lm_head": (10, 8), "model.norm": (8,)}
    for layer in range(2):
        inside = f"model.layers.{layer}"
        shapes |= {f"{inside}.self_attn.{name}_proj": (size, 8) for name, size in
                   (("q", 8), ("k", 4), ("v", 4), ("o", 8))}  # fmt: skip
        shapes |= {f"{inside}.mlp.{name}_proj": (12, 8) for name in ("gate", "up")}
        shapes |= {f"{inside}.mlp.down_proj": (8, 12), f"{inside}.input_layernorm": (8,)}
    return {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}


def bert() -> dict[str, torch.Tensor]:
    inside = "bert.encoder.layer.0"
    tensors = {f"{inside}.attention.self.{name}.weight": torch.ones(8, 8)
               for name in ("query", "key", "value")}  # fmt: skip
    tensors[f"{inside}.attention.output.dense.weight"] = torch.ones(8, 8)
    return tensors | {"classifier.weight": torch.ones(3, 8), "classifier.bias": torch.ones(3)}


def vit() -> dict[str, torch.Tensor]:
    return {"vit.embeddings.position_embeddings": torch.ones(1, 5, 4)}


def mixtral() -> dict[str, torch.Tensor]:
    inside = "model.layers.0.block_sparse_moe"
    experts = {f"{inside}.experts.{n}.w{w}.weight": torch.ones(8, 8)
               for n in range(3) for w in (1, 2, 3)}  # fmt: skip
    return experts | {f"{inside}.gate.weight": torch.ones(3, 8)}


LAYERED = ("gemma2", "gemma3_text", "deepseek_v3", "qwen3_moe", "marian", "bart")
TENSORS = {"llama": llama, "bert": bert, "vit": vit, "mixtral": mixtral}


@pytest.fixture
def folder(bench: Bench) -> Any:
    """Make the input a model folder with a config; operate on it and return the new config."""

    def operate(config: Json, *steps: Json, stated: Json | None = None) -> Json:
        source = bench.folder / "input"
        source.mkdir(exist_ok=True)
        kind = str(config.get("model_type"))
        tensors = layered(config) if kind in LAYERED else TENSORS.get(kind, llama)()
        write(source / "model.safetensors", tensors)
        (source / "config.json").write_text(json.dumps(config))
        bench.input = source
        output = {"config": stated} if stated else {}
        bench.operate(*steps, to=bench.folder / "out", output=output)
        return json.loads((bench.folder / "out" / "config.json").read_text())

    return operate


def widen(target: str, **size: Any) -> Json:
    return {"op": "widen", "target": target, **size}


def replace(target: str, *size: int) -> Json:
    sizes = {"rows": size[0]} | ({"columns": size[1]} if len(size) > 1 else {})
    return {"op": "replace", "target": target, **sizes}


# --- Sizes and counts -----------------------------------------------------------------------------


def test_config_that_nothing_changes_keeps_its_bytes(folder: Any, bench: Bench) -> None:
    folder(LLAMA, {"op": "reinit", "target": EMBED, "init": "zeros"})
    assert (bench.folder / "out" / "config.json").read_text() == json.dumps(LLAMA)


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        ([widen(EMBED, rows=2), widen("lm_head", rows=2)], {"vocab_size": 12}),
        ([replace("**.(gate|up)_proj", 5), replace("**.down_proj", 8, 5)],
         {"intermediate_size": 5}),
        ([{"op": "delete", "target": "model.layers.1"}], {"num_hidden_layers": 1}),
        ([{"op": "copy", "from": "model.layers.1", "to": "model.layers.2"}],
         {"num_hidden_layers": 3}),
        # Heads of the old size, where rows come in whole ones.
        ([widen(Q, rows=8), widen(OUT, columns=8), widen(K, rows=4)],
         {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 2}),
        ([widen(Q, rows=4), widen(OUT, columns=4), widen(K, rows=2)],
         {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 2}),
    ],
)  # fmt: skip
def test_numbers_follow_the_tensors(folder: Any, steps: list[Json], changes: Json) -> None:
    assert folder(LLAMA, *steps) == LLAMA | changes


def test_heads_are_as_many_where_they_cannot_be_as_large(folder: Any) -> None:
    config = LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 1}
    steps = [widen(Q, rows=2), widen(OUT, columns=2), widen(K, rows=1)]
    assert folder(config, *steps) == config | {"head_dim": 5}


def test_size_of_heads_is_written_where_it_no_longer_goes_without_saying(folder: Any) -> None:
    inner = [widen(f"**.{name}", columns=4) for name in ("(q|k|v)_proj", "(gate|up)_proj")]
    outer = [widen(f"**.{name}", rows=4) for name in ("(o|down)_proj", "(norm|input_layernorm)")]
    ends = [widen(name, columns=4) for name in (EMBED, "lm_head")]
    assert folder(LLAMA, *inner, *outer, *ends) == LLAMA | {"hidden_size": 12, "head_dim": 2}


@pytest.mark.parametrize(
    ("config", "steps", "output", "problem"),
    [
        (LLAMA, [widen(EMBED, rows=2)], {},
         "vocab_size is 10 by 'lm_head.weight' and 12 by 'model.embed_tokens.weight'; change"),
        (LLAMA, [{"op": "delete", "target": "model.layers.0"}], {},
         "num_hidden_layers: 'model.layers' is not numbered from 0 without gaps; renumber it"),
        (LLAMA, [], {"vocab_size": 11},
         "output.config.vocab_size is 11, but vocab_size is 10 by 'lm_head.weight', "),
        (LLAMA, [], {"num_attention_heads": 3},
         "output.config.num_attention_heads is 3, but num_attention_heads*head_dim is 8 by"),
        (LLAMA, [], {"tie_word_embeddings": True},
         "output.config.tie_word_embeddings is true, but input and output embedding are two"),
        (LLAMA, [], {"dtype": "bfloat16"},
         'output.config.dtype is "bfloat16", but the tensors are float32'),
        (LLAMA, [widen(Q, rows=2), widen(OUT, columns=2)], {},
         "num_attention_heads 5 is not a multiple of num_key_value_heads 2; change both alike"),
        (LLAMA | {"pad_token_id": 9}, [replace(EMBED, 9), replace("lm_head", 9)], {},
         "pad_token_id is 9, but row 9 of the vocabulary is gone; state it in output.config"),
        (BERT, [], {"num_attention_heads": 3},
         "output.config.num_attention_heads is 3, which does not divide 8"),
        (BERT, [widen("classifier.weight", rows=1)], {},
         "num_labels is 3 by 'classifier.bias' and 4 by 'classifier.weight'; change them alike"),
        (BERT, [], {"id2label": {"3": "fox"}},
         "id2label has 4 labels, but 'classifier.bias' has 3 rows; state it"),
        (BERT, [], {"id2label": {"2": "dog"}}, "id2label and label2id do not name the same rows"),
        (BERT, [], {"num_labels": 5}, "num_labels has 5 labels, but 'classifier"),
        (VIT, [{"op": "replace", "target": "**.position_embeddings", "rows": 1, "columns": 8}], {},
         "image_size 4 is 4 patches, but 'vit.embeddings.position_embeddings' has 7; state"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(
    folder: Any, bench: Bench, config: Json, steps: list[Json], output: Json, problem: str
) -> None:
    with pytest.raises(PlanError, match=re.escape(f"recipe.json: config.json: {problem}")):
        folder(config, *steps, stated=output)
    assert not (bench.folder / "out").exists()


def test_all_contradictions_come_at_once(folder: Any) -> None:
    with pytest.raises(PlanError) as caught:
        folder(LLAMA, widen(EMBED, rows=2), stated={"num_hidden_layers": 3, "dtype": "float16"})
    assert len(caught.value.problems) == 3


def test_what_is_stated_must_agree_with_every_tensor(folder: Any) -> None:
    with pytest.raises(PlanError, match=r"vocab_size is 10 by 'lm_head.weight' and 12 by"):
        folder(LLAMA, widen(EMBED, rows=2), stated={"vocab_size": 12})


@pytest.mark.parametrize("vocabulary", [11, "10", None])
def test_number_that_the_input_contradicts_has_to_be_stated(folder: Any, vocabulary: Any) -> None:
    config = LLAMA | {"vocab_size": vocabulary}
    with pytest.raises(PlanError, match=r"new shape of 'model.embed_tokens.weight' means; state"):
        folder(config, widen(EMBED, rows=2))


def test_shapes_that_no_rule_of_a_known_class_explains_are_refused(bench: Bench) -> None:
    config = {"model_type": "falcon", "new_decoder_architecture": True, "hidden_size": 8,
              "num_attention_heads": 4, "num_kv_heads": 2, "num_hidden_layers": 1}  # fmt: skip
    name = "transformer.h.0.self_attention.query_key_value"
    bench.given({f"{name}.weight": torch.ones(16, 8)})
    opened = open_checkpoint(str(bench.input))
    old = opened.tensors[f"{name}.weight"]
    fewer = {f"{name}.weight": Selected(old, 0, ((0, 12),))}
    problems = follow(config, {}, opened.tensors, fewer).problems
    opened.close()
    assert any("query_key_value.weight' means" in problem for problem in problems), problems


@pytest.mark.parametrize("config", [{"model_type": "unheard_of"}, {}])
def test_unknown_architecture_gets_a_note(folder: Any, bench: Bench, config: Json) -> None:
    config = config | {"hidden_size": 8}
    assert folder(config, widen(EMBED, rows=2)) == config
    notes = bench.operate(widen(EMBED, rows=2), to=bench.folder / "out").notes
    assert any("no rule says what the new shape of 'model.embed_tokens" in note for note in notes)


def test_common_names_are_followed_in_unknown_architectures(folder: Any) -> None:
    config = {"model_type": "unheard_of", "vocab_size": 10}
    steps = [widen(EMBED, rows=2), widen("lm_head", rows=2)]
    assert folder(config, *steps) == config | {"vocab_size": 12}


@pytest.mark.parametrize(
    ("config", "step", "problem"),
    [
        ({"vocab_size": 10}, widen(EMBED, rows=2), "vocab_size is 12 by|vocab_size is 10 by"),
        ({"text_config": {"vocab_size": 10}}, widen(EMBED, rows=2), "state text_config.vocab_size"),
        ({"depth": 2}, {"op": "delete", "target": "model.layers.1"},
         "'model.layers' had 2 modules, as depth says, and has 1 now; state depth in output"),
    ],
)  # fmt: skip
def test_unknown_architecture_is_held_to_its_counts_and_vocabulary(
    folder: Any, config: Json, step: Json, problem: str
) -> None:
    with pytest.raises(PlanError, match=problem):
        folder({"model_type": "unheard_of", **config}, step)


def test_layer_types_go_with_their_layers(folder: Any) -> None:
    config = LLAMA | {"layer_types": ["sliding", "full"]}
    swap = [{"op": "rename", "from": ["model.layers.0", "model.layers.1"],
             "to": ["model.layers.1", "model.layers.0"]}]  # fmt: skip
    more = [{"op": "copy", "from": "model.layers.1", "to": "model.layers.2"}]
    assert folder(config, *swap)["layer_types"] == ["full", "sliding"]
    assert folder(config, *more)["layer_types"] == ["sliding", "full", "full"]
    assert folder(config, *more, *more_of(2, 3))["layer_types"] == ["sliding", *["full"] * 3]


def more_of(layer: int, to: int) -> list[Json]:
    return [{"op": "copy", "from": f"model.layers.{layer}", "to": f"model.layers.{to}"}]


def test_image_size_follows_the_position_embeddings(folder: Any) -> None:
    step = {"op": "replace", "target": "**.position_embeddings", "rows": 1, "columns": 10}
    assert folder(VIT, step) == VIT | {"image_size": 6}
    stated = {"image_size": [2, 14]}
    wide = {**step, "columns": 8}
    assert folder(VIT, wide, stated=stated) == VIT | stated


# --- Tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "begin", "end"),
    [
        (widen(EMBED, rows=1, at=5), 1, [8, 9]),
        ({"op": "narrow", "target": EMBED, "drop": 0}, 0, [6, 7]),
    ],
)
def test_ids_of_tokens_whose_rows_moved_go_along(
    folder: Any, step: Json, begin: int, end: list[int]
) -> None:
    head = {**step, "target": "lm_head"}
    config = LLAMA | {"bos_token_id": 1, "eos_token_id": [7, 8], "pad_token_id": None}
    made = folder(config, step, head)
    assert (made["bos_token_id"], made["eos_token_id"]) == (begin, end)


def test_rows_of_tokens_that_moved_are_noted(folder: Any, bench: Bench) -> None:
    steps = [widen(name, rows=1, at=5) for name in (EMBED, "lm_head")]
    assert folder(LLAMA | {"bos_token_id": 1}, *steps)["bos_token_id"] == 1
    opened = open_checkpoint(str(bench.input))
    moved = {f"{EMBED}.weight": Selected(opened.tensors[f"{EMBED}.weight"], 0, ((1, 10), (0, 1)))}
    notes = follow(LLAMA, {}, opened.tensors, opened.tensors | moved).notes
    opened.close()
    assert "config.json: rows of vocab_size have moved" in notes[0]


# --- Labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "stated", "labels"),
    [
        (widen("classifier", rows=1), {}, ["cat", "dog", "emu", "LABEL_3"]),
        (widen("classifier", rows=1), {"3": "fox"}, ["cat", "dog", "emu", "fox"]),
        (widen("classifier", rows=1, at=1), {}, ["cat", "LABEL_1", "dog", "emu"]),
        (
            widen("classifier", rows=1, at=-1, init={"name": "copy", "rows": 0}),
            {"2": "fox"},
            ["cat", "dog", "fox", "emu"],
        ),
        (replace("classifier", 2), {}, ["LABEL_0", "LABEL_1"]),
        (replace("classifier", 3), {}, ["cat", "dog", "emu"]),
        (replace("classifier", 2), {"0": "yes", "1": "no"}, ["yes", "no"]),
        ({"op": "cast", "target": "classifier", "dtype": "F64"}, {}, ["cat", "dog", "emu"]),
    ],
)
def test_labels_follow_the_rows(folder: Any, step: Json, stated: Json, labels: list[str]) -> None:
    config = folder(BERT, step, stated={"id2label": stated} if stated else None)
    assert config["id2label"] == {str(index): label for index, label in enumerate(labels)}
    assert config["label2id"] == {label: index for index, label in enumerate(labels)}


def test_labels_of_rows_that_moved_move_along(folder: Any, bench: Bench) -> None:
    folder(BERT)
    opened = open_checkpoint(str(bench.input))
    rows = {name: Selected(opened.tensors[name], 0, ((2, 3), (0, 1)))
            for name in ("classifier.weight", "classifier.bias")}  # fmt: skip
    followed = follow(BERT, {}, opened.tensors, opened.tensors | rows)
    opened.close()
    assert followed.config["id2label"] == {"0": "emu", "1": "cat"}
    assert followed.config["label2id"] == {"emu": 0, "cat": 1}


def test_labels_of_a_strided_classifier_are_known_after_untie() -> None:
    flat = Stored(InMemory(Path("x"), np.zeros(96, np.uint8)), 0, TensorSpec("F32", (24,)))
    before: Any = {"classifier.weight": Strided(flat, (1, 3), (3, 8))}
    rows = Selected(detached(before["classifier.weight"]), 0, ((2, 3), (0, 1)))
    followed = follow(BERT, {}, before, {"classifier.weight": rows})
    assert followed.config["id2label"] == {"0": "emu", "1": "cat"}


def test_labels_are_written_in_the_order_of_their_numbers(folder: Any, bench: Bench) -> None:
    folder(BERT, widen("classifier", to=12))
    text = (bench.folder / "out" / "config.json").read_text()
    assert text.index('"2": "emu"') < text.index('"10": "LABEL_10"') < text.index('"11"')


def test_labels_that_go_without_saying_are_two(folder: Any) -> None:
    config = {key: value for key, value in BERT.items() if "label" not in key}
    with pytest.raises(PlanError, match=r"new shape of 'classifier.bias', 'classifier.weight'"):
        folder(config, widen("classifier", rows=1))
    stated = {"id2label": {str(index): f"L{index}" for index in range(4)}}
    assert folder(config, widen("classifier", rows=1), stated=stated)["id2label"]["3"] == "L3"


# --- Dtypes and ties ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "dtype", "expected"),
    [
        ("**", "BF16", "bfloat16"),
        ("model.layers", "BF16", "float32"),
        (["**", "!lm_head"], "F64", "float64"),
        ("**", "F8_E4M3", "float32"),
    ],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_is_one_in_which_nothing_is_lost(
    folder: Any, key: str, target: Any, dtype: str, expected: str
) -> None:
    config = {key: "float32", **{name: LLAMA[name] for name in LLAMA if name != "dtype"}}
    step = {"op": "cast", "target": target, "dtype": dtype}
    assert folder(config, step) == config | {key: expected}


def test_dtype_of_a_mixed_model_can_be_stated(folder: Any) -> None:
    step = {"op": "cast", "target": "model.layers", "dtype": "BF16"}
    assert folder(LLAMA, step, stated={"dtype": "bfloat16"})["dtype"] == "bfloat16"


def test_ties_are_followed_both_ways(folder: Any) -> None:
    tie = {"op": "tie", "target": "lm_head.weight", "to": f"{EMBED}.weight"}
    untie = {"op": "untie", "target": "lm_head.weight"}
    assert folder(LLAMA, tie) == LLAMA | {"tie_word_embeddings": True}
    assert folder(LLAMA, tie, untie) == LLAMA
    config = LLAMA | {"tie_word_embeddings": True}
    assert folder(config, tie) == config


# --- The file -------------------------------------------------------------------------------------


def test_config_is_written_sorted_and_indented(folder: Any, bench: Bench) -> None:
    config = folder(LLAMA | {"task": "ü", "limit": float("inf")}, stated={"vocab_size": 10, "a": 1})
    text = (bench.folder / "out" / "config.json").read_text()
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert text.startswith('{\n  "a": 1,')


def test_stated_objects_are_merged(folder: Any) -> None:
    config = LLAMA | {"rope": {"theta": 1.0, "kind": "default"}}
    found = folder(config, stated={"rope": {"theta": 2.0}, "pad_token_id": None})
    assert found == config | {"rope": {"theta": 2.0, "kind": "default"}, "pad_token_id": None}


def test_config_of_an_input_without_one_is_what_is_stated(bench: Bench) -> None:
    bench.given({"x": torch.ones(2)})
    bench.operate(to=bench.folder / "out", output={"config": {"model_type": "mine"}})
    text = (bench.folder / "out" / "config.json").read_text()
    assert text == '{\n  "model_type": "mine"\n}\n'


def test_one_file_has_no_config(bench: Bench) -> None:
    bench.given({"x": torch.ones(2)})
    with pytest.raises(UsageError, match=r"output.config is for model folders, and .* is one file"):
        bench.operate(output={"config": {}})


def test_one_file_of_a_folder_is_not_held_to_its_config(folder: Any, bench: Bench) -> None:
    folder(LLAMA)
    bench.operate(widen(EMBED, rows=2))
    assert bench.output.exists()


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", "\ufeff{}", '{"a": 1, "a": 2}'])
def test_what_is_no_json_object_is_refused_where_steps_would_change_it(
    folder: Any, bench: Bench, text: str
) -> None:
    folder(LLAMA)
    path = bench.input / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PlanError, match=r"config\.json: .*; what the steps did cannot be followed"):
        bench.operate(widen(EMBED, rows=2), to=bench.folder / "out")
    with pytest.raises(PlanError, match=r"output\.config: .*config\.json: "):
        bench.operate(to=bench.folder / "out", output={"config": {"a": 1}})
    bench.operate({"op": "scale", "target": EMBED, "by": 2}, to=bench.folder / "out")
    assert (bench.folder / "out" / "config.json").read_bytes() == path.read_bytes()


STALE = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "tf_model.h5"]


def test_state_of_the_run_that_made_them_stays_with_unchanged_tensors(
    folder: Any, bench: Bench
) -> None:
    folder(LLAMA)
    for name in [*STALE, "trainer_state.json", "added_tokens.json"]:
        (bench.input / name).write_text("old")
    out = bench.folder / "out"
    bench.operate(to=out)
    # Weights in other formats are left behind whatever becomes of those that are read.
    expected = {*STALE, "trainer_state.json"} - {"tf_model.h5"}
    assert expected <= {path.name for path in out.iterdir()}
    notes = bench.operate({"op": "reinit", "target": EMBED}, to=bench.folder / "new").notes
    left = {path.name for path in (bench.folder / "new").iterdir()}
    assert not left & {*STALE}
    assert left >= {"trainer_state.json", "added_tokens.json"}
    assert any(note.endswith(f"as they were: {', '.join(sorted(STALE))}") for note in notes)


def test_infinities_of_a_config_are_shown_by_name(folder: Any, bench: Bench) -> None:
    """transformers writes them; JSON has none. NaN is not equal to itself, but no change."""
    folder(LLAMA | {"limit": [0.0, float("inf")], "rate": float("nan")})
    recipe = bench.recipe(output={"config": {"limit": [0.0, 5.0]}})
    with surgery.opened(recipe, str(bench.input), {}) as opened:
        (change,) = json.loads(
            json_text(report.planned_as_json(surgery.output_plan(opened, None)))
        )["config"]
        assert change == {"key": "limit", "before": [0.0, "Infinity"], "after": [0.0, 5.0]}
        assert '[0.0, "Infinity"]  [0.0, 5.0]' in report.planned(surgery.output_plan(opened, None))


def test_json_lists_what_changes(folder: Any, bench: Bench) -> None:
    folder(LLAMA)
    steps = [widen(EMBED, rows=2), widen("lm_head", rows=2)]
    changes = [{"key": "vocab_size", "before": 10, "after": 12}]
    with surgery.opened(bench.recipe(*steps), str(bench.input), {}) as opened:
        assert report.planned_as_json(surgery.output_plan(opened, None))["config"] == changes
        assert "vocab_size   10      12" in report.planned(surgery.output_plan(opened, None))
        result = surgery.write(opened, bench.folder / "out", Options(), force=True)
        assert report.applied_as_json(result)["config"] == changes
        assert "config.json: vocab_size 10 -> 12" in report.applied(result, 1.0)


# --- What the data of architectures says ----------------------------------------------------------


def layered(config: Json) -> dict[str, torch.Tensor]:
    tensors = {f"model.layers.{n}.input_layernorm.weight": torch.full((8,), float(n))
               for n in range(config.get("num_hidden_layers", 0))}  # fmt: skip
    if config["model_type"] == "marian":
        tensors = {f"model.{side}.embed_tokens.weight": torch.ones(10, 8)
                   for side in ("encoder", "decoder")}  # fmt: skip
    if config["model_type"] == "bart":
        tensors = {"model.shared.weight": torch.ones(10, 8),
                   "final_logits_bias": torch.zeros(1, 10)}  # fmt: skip
    return tensors


def take(*layers: str) -> Json:
    return {"op": "layers", "container": "model.layers", "take": list(layers)}


def config_of(model_type: str, layers: int = 0, **more: Any) -> Json:
    return {"model_type": model_type, "num_hidden_layers": layers, "hidden_size": 8, **more}


SLIDING, FULL = "sliding_attention", "full_attention"


def test_gemma_3_keeps_the_kinds_of_the_layers_that_stay(folder: Any) -> None:
    types = [FULL if n % 6 == 5 else SLIDING for n in range(18)]
    config = config_of("gemma3_text", 18, layer_types=types)
    found = folder(config, take("0:8", "10:14", "15", "17"))
    kept = [n for n in range(18) if n not in (8, 9, 14, 16)]
    changes = {"num_hidden_layers": 14, "layer_types": [types[n] for n in kept]}
    assert found == config | changes


@pytest.mark.parametrize(
    ("config", "taken", "changes"),
    [
        # What layers are by default goes by their numbers: the list is written.
        (config_of("gemma2", 4), ["0", "2:4"], {"layer_types": [SLIDING, SLIDING, FULL]}),
        (config_of("gemma2", 4), ["0:2"], {}),
        (config_of("deepseek_v3", 4, first_k_dense_replace=1), ["0", "2:4"], {}),
        (config_of("qwen3_moe", 3, mlp_only_layers=[2]), ["0", "2"], {"mlp_only_layers": [1]}),
    ],
)
def test_what_layers_are_by_their_number_stays(
    folder: Any, config: Json, taken: list[str], changes: Json
) -> None:
    layers = {"num_hidden_layers": 2 + (len(changes.get("layer_types", "12")) > 2)}
    if config["model_type"] == "deepseek_v3":
        layers = {"num_hidden_layers": 3}
    assert folder(config, take(*taken)) == config | layers | changes


def test_layer_that_would_be_of_another_kind_is_refused(folder: Any) -> None:
    config = config_of("deepseek_v3", 3, first_k_dense_replace=1)
    with pytest.raises(PlanError, match="first_k_dense_replace: layer 0 was layer 1 of the input"):
        folder(config, take("1:3"))


def test_both_vocabularies_of_a_translation_model_are_followed(folder: Any) -> None:
    config = {"model_type": "marian", "d_model": 8, "vocab_size": 10, "decoder_vocab_size": 10,
              "share_encoder_decoder_embeddings": False}  # fmt: skip
    found = folder(config, widen("model.decoder.embed_tokens", rows=3))
    assert found == config | {"decoder_vocab_size": 13}


def test_bias_of_the_logits_must_grow_along(folder: Any) -> None:
    config = {"model_type": "bart", "d_model": 8, "vocab_size": 10}
    grown = widen("model.shared", rows=2)
    with pytest.raises(PlanError, match=r"vocab_size is 10 by 'final_logits_bias' and 12 by"):
        folder(config, grown)
    assert folder(config, grown, widen("final_logits_bias", columns=2))["vocab_size"] == 12


def test_fused_projections_of_a_llama_are_refused(folder: Any) -> None:
    inside = "model.layers.{i}.self_attn"
    step = {"op": "concat", "from": [f"{inside}.{name}_proj" for name in "qkv"], "dim": 0,
            "into": f"{inside}.qkv_proj"}  # fmt: skip
    with pytest.raises(PlanError, match="no class of model_type 'llama' has tensors named"):
        folder(LLAMA, step)


def test_experts_made_of_a_llama_are_mixtral(folder: Any) -> None:
    recipe = json.loads(Path("recipes/upcycle-to-experts.json").read_text())["steps"]
    text = json.dumps(recipe).replace('"${experts}"', "4").replace('"${hidden_size}"', "8")
    config = LLAMA | {"architectures": ["LlamaForCausalLM"]}
    found = folder(config, *json.loads(text.replace('"${router_std}"', "0.02")))
    expected = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
                "num_local_experts": 4, "num_experts_per_tok": 2}  # fmt: skip
    assert found == config | expected
