"""Model folders against transformers itself: what loads, with what missing, and what it computes.

A row of OPERATIONS is a model, steps, what the config then says, and whether the model computes the
same as before. A new op that changes shapes adds its rows there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon import recipe, surgery
from surgeon.formats import open_checkpoint
from surgeon.model_folder.follow import follow
from surgeon.output.execute import Options

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Json = dict[str, Any]

BERT = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 12}  # fmt: skip
GPT2 = {"vocab_size": 31, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12,
        "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
LLAMA = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 32}  # fmt: skip
VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
       "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip

# name: (class of the model, class of its config, the config)
MODELS: dict[str, tuple[str, str, Json]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 3}),
    "bert_two": ("BertForSequenceClassification", "BertConfig", BERT),
    "bert_masked": ("BertForMaskedLM", "BertConfig", BERT),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**BERT, "num_labels": 3}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**LLAMA, "head_dim": 8}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**LLAMA, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**LLAMA, "head_dim": 8}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**LLAMA, "num_local_experts": 4}),
    "vit": ("ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 3}),
    "vit_body": ("ViTModel", "ViTConfig", {**VIT, "pooler_output_size": 10}),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {**VIT, "num_labels": 3}),
}
LABELS = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Operation:
    """Steps on a model's folder, and what must be so afterwards.

    `config` are the keys of config.json that change. `same` says of which outputs the values must
    be as before: all of them, the first so many (of old classes or tokens), or None.
    """

    model: str
    steps: list[Json]
    config: Json = field(default_factory=dict)
    same: slice | None = None
    output: Json = field(default_factory=dict)
    tolerance: float = 0.0


EVERYTHING = slice(None)
OPERATIONS = {
    "nothing": Operation("bert", [], {}, EVERYTHING),
    "widened classifier": Operation(
        "bert",
        [{"op": "widen", "target": "classifier", "rows": 2}],
        {
            "id2label": {**LABELS, "3": "LABEL_3", "4": "LABEL_4"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "LABEL_3": 3, "LABEL_4": 4},
        },
        slice(3),
        tolerance=1e-6,
    ),
    "new class with a name": Operation(
        "bert",
        [{"op": "widen", "target": "classifier", "rows": 1}],
        {
            "id2label": {**LABELS, "3": "newt"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "newt": 3},
        },
        slice(3),
        {"config": {"id2label": {"3": "newt"}}},
        tolerance=1e-6,
    ),
    "classifier of the labels that go without saying": Operation(
        "bert_two",
        [{"op": "widen", "target": "classifier", "rows": 1}],
        {"id2label": LABELS, "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}},
        slice(2),
        tolerance=1e-6,
    ),
    "replaced head": Operation(
        "vit",
        [{"op": "replace", "target": "classifier", "rows": 4}],
        {
            "id2label": {**LABELS, "3": "LABEL_3"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "LABEL_3": 3},
        },
    ),
    "widened out_proj": Operation(
        "roberta",
        [{"op": "widen", "target": "classifier.out_proj", "rows": 1}],
        {
            "id2label": {**LABELS, "3": "LABEL_3"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "LABEL_3": 3},
        },
        slice(3),
        tolerance=1e-6,
    ),
    "both heads of DeiT": Operation(
        "deit",
        [{"op": "widen", "target": ["cls_classifier", "distillation_classifier"], "rows": 1}],
        {
            "id2label": {**LABELS, "3": "LABEL_3"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "LABEL_3": 3},
        },
        slice(3),
        tolerance=1e-6,
    ),
    "larger vocabulary, tied on disk": Operation(
        "llama_tied",
        [{"op": "widen", "target": "model.embed_tokens", "rows": 2, "init": "mean"}],
        {"vocab_size": 33},
        slice(31),
        tolerance=1e-6,
    ),
    "larger vocabulary of GPT-2": Operation(
        "gpt2",
        [{"op": "widen", "target": "transformer.wte", "to": 40, "init": "mean"}],
        {"vocab_size": 40},
        slice(31),
        tolerance=1e-6,
    ),
    "larger vocabulary, not tied": Operation(
        "mixtral",
        [{"op": "widen", "target": [EMBEDDING[:-7], HEAD[:-7]], "rows": 2, "init": "mean"}],
        {"vocab_size": 33},
        slice(31),
        tolerance=1e-6,
    ),
    "larger vocabulary of a masked language model": Operation(
        "bert_masked",
        [
            {"op": "widen", "target": "bert.embeddings.word_embeddings", "rows": 1},
            {"op": "widen", "target": "cls.predictions.bias", "rows": 1},
        ],
        {"vocab_size": 32},
        slice(31),
        tolerance=1e-6,
    ),
    "more positions": Operation(
        "gpt2",
        [{"op": "widen", "target": "transformer.wpe", "rows": 4, "init": "mean"}],
        {"n_positions": 16},
        EVERYTHING,
    ),
    "tied": Operation(
        "llama",
        [{"op": "tie", "target": HEAD, "to": EMBEDDING, "when": "always"}],
        {"tie_word_embeddings": True},
    ),
    "a head of its own": Operation(
        "llama_tied",
        [{"op": "copy", "from": EMBEDDING, "to": HEAD}],
        {"tie_word_embeddings": False},
        EVERYTHING,
    ),
    "tied and untied": Operation(
        "llama",
        [
            {"op": "tie", "target": HEAD, "to": EMBEDDING, "when": "always"},
            {"op": "untie", "target": HEAD},
        ],
        {},
    ),
    "cast": Operation(
        "llama",
        [{"op": "cast", "target": "**", "dtype": "bfloat16"}],
        {"dtype": "bfloat16"},
        EVERYTHING,
        tolerance=2e-2,
    ),
    "cast by the output": Operation(
        "gpt2", [], {"dtype": "float16"}, EVERYTHING, {"dtype": "float16"}, tolerance=1e-2
    ),
    "projections cast alone": Operation(
        "vit",
        [{"op": "cast", "target": "**.(query|key|value).weight", "dtype": "bfloat16"}],
        {},
        EVERYTHING,
        tolerance=1e-2,
    ),
    "a layer more, which does nothing": Operation(
        "llama",
        [
            {"op": "copy", "from": "model.layers.1", "to": "model.layers.2"},
            {"op": "reinit", "target": "model.layers.2.**.(o|down)_proj", "init": "zeros"},
        ],
        {"num_hidden_layers": 3},
        EVERYTHING,
        tolerance=1e-6,
    ),
    "a layer fewer": Operation(
        "bert", [{"op": "delete", "target": "bert.encoder.layer.1"}], {"num_hidden_layers": 1}
    ),
    "the upper layer alone": Operation(
        "llama",
        [{"op": "layers", "container": "model.layers", "take": [1]}],
        {"num_hidden_layers": 1},
    ),
    "a block after each, which does nothing": Operation(
        "llama",
        [
            {
                "op": "layers",
                "container": "model.layers",
                "take": [{"range": ":", "every": 1, "zero": ["o_proj", "down_proj"]}],
            }
        ],
        {"num_hidden_layers": 4},
        EVERYTHING,
        tolerance=1e-6,
    ),
    "wider middle, net2wider": Operation(
        "llama",
        [
            {
                "op": "widen",
                "target": "**.mlp.(gate|up)_proj",
                "rows": 8,
                "init": "net2wider",
                "consumers": "**.mlp.down_proj",
            }
        ],
        {"intermediate_size": 32},
        EVERYTHING,
        tolerance=1e-5,
    ),
    "narrower middle": Operation(
        "llama",
        [
            {
                "op": "narrow",
                "target": "**.mlp.(gate|up)_proj",
                "drop": "-4:",
                "consumers": "**.mlp.down_proj",
            }
        ],
        {"intermediate_size": 20},
    ),
    "an expert fewer": Operation(
        "mixtral",
        [
            {"op": "delete", "target": "**.experts.3"},
            {"op": "replace", "target": "**.block_sparse_moe.gate", "rows": 3},
        ],
        {"num_local_experts": 3},
    ),
    "wider middle, zeros read it": Operation(
        "llama",
        [
            {"op": "widen", "target": "**.mlp.(gate|up)_proj", "rows": 8},
            {"op": "widen", "target": "**.mlp.down_proj", "columns": 8, "init": "zeros"},
        ],
        {"intermediate_size": 32},
        EVERYTHING,
        tolerance=1e-6,
    ),
    "middle that no longer goes without saying": Operation(
        "gpt2",
        [
            {"op": "widen", "target": "**.mlp.c_fc.weight", "columns": 6},
            {"op": "widen", "target": "**.mlp.c_fc.bias", "rows": 6},
            {"op": "widen", "target": "**.mlp.c_proj.weight", "rows": 6, "init": "zeros"},
        ],
        {"n_inner": 70},
        EVERYTHING,
        tolerance=1e-6,
    ),
    "more heads, which nothing reads": Operation(
        "llama",
        [
            {"op": "widen", "target": "**.self_attn.q_proj", "rows": 16},
            {"op": "widen", "target": "**.self_attn.(k|v)_proj", "rows": 8},
            {"op": "widen", "target": "**.self_attn.o_proj", "columns": 16, "init": "zeros"},
        ],
        {"num_attention_heads": 8, "num_key_value_heads": 4},
        EVERYTHING,
        tolerance=1e-6,
    ),
    "there and back": Operation(
        "bert",
        [
            {"op": "rename", "from": "bert", "to": "body"},
            {"op": "rename", "from": "body", "to": "bert"},
        ],
        {},
        EVERYTHING,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> Any:
    """Imported for these tests alone: it takes seconds."""
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="module")
def saved(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Say where a tiny random model of a name is saved."""
    folder = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        if not (folder / name).exists():
            model_class, config_class, settings = MODELS[name]
            config = getattr(transformers, config_class)(**settings)
            torch.manual_seed(0)
            getattr(transformers, model_class)(config).save_pretrained(folder / name)
            (folder / name / "tokenizer.json").write_text("{}")
        return folder / name

    return save


def operated(source: Path, target: Path, steps: list[Json], output: Json) -> Path:
    """Apply steps to a folder."""
    path = target.with_suffix(".json")
    path.write_text(json.dumps({"surgeon": 1, "steps": steps, "output": output}))
    with surgery.opened(recipe.load(str(path), {}), str(source), {}) as opened:
        surgery.write(opened, target, Options(), force=True)
    return target


def loaded(transformers: Any, name: str, folder: Path) -> nn.Module:
    """Load a folder as a model of this kind; everything in it is used, and nothing else needed."""
    model_class = getattr(transformers, MODELS[name][0])
    model, found = model_class.from_pretrained(folder, output_loading_info=True)
    assert {kind: list(keys) for kind, keys in found.items() if keys} == {}
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    """The outputs for fixed inputs, in float32."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if hasattr(model.config, "image_size"):
            pixels = torch.randn(2, 3, 8, 8, generator=generator).to(model.dtype)
            return model(pixel_values=pixels).logits.float()
        tokens = torch.randint(4, 31, (2, 7), generator=generator)
        return model(input_ids=tokens).logits.float()


def config_of(folder: Path) -> Json:
    config: Json = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize("name", OPERATIONS)
def test_operated_models_load_and_compute(
    name: str, transformers: Any, saved: Any, tmp_path: Path
) -> None:
    case = OPERATIONS[name]
    source = saved(case.model)
    target = operated(source, tmp_path / "out", case.steps, case.output)
    assert config_of(target) == config_of(source) | case.config
    assert (target / "tokenizer.json").exists()
    model = loaded(transformers, case.model, target)
    found = logits(model)
    if case.same is not None:
        wanted = logits(loaded(transformers, case.model, source))
        torch.testing.assert_close(found[..., case.same], wanted, rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("name", OPERATIONS)
def test_configs_are_written_as_transformers_writes_them(
    name: str, transformers: Any, saved: Any, tmp_path: Path
) -> None:
    case = OPERATIONS[name]
    target = operated(saved(case.model), tmp_path / "out", case.steps, case.output)
    config = getattr(transformers, MODELS[case.model][1]).from_pretrained(target)
    config.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (target / "config.json").read_text()


# What sizes are called by the configs of these models.
SIZES = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "n_embd", "n_layer",
         "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "num_layers", "d_ff",
         "max_position_embeddings", "type_vocab_size", "n_positions"}  # fmt: skip


def numbers(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> set[str]:
    """Return the numbers of a config that tensors of a model show."""
    has_positions = any("position" in name or "wpe" in name for name in tensors)
    words = SIZES - (set() if has_positions else {"max_position_embeddings"})
    return {word for word in words if type(config.get(word)) is int}


@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_the_rules_is_checked_against_tensors(name: str, saved: Any) -> None:
    config = config_of(saved(name))
    opened = open_checkpoint(str(saved(name)))
    opened.close()
    tensors = opened.tensors
    checked = set()
    for key in numbers(config, tensors):
        problems = follow(config, {key: config[key] + 1}, tensors, tensors).problems
        checked |= {key for problem in problems if f"output.config.{key} is" in problem}
        assert key in checked
    assert len(checked) >= 3


def test_tied_weights_of_the_output_are_tied_in_the_model(
    transformers: Any, saved: Any, tmp_path: Path
) -> None:
    steps = [{"op": "tie", "target": HEAD, "to": EMBEDDING, "when": "always"}]
    source = saved("llama")
    target = operated(source, tmp_path / "out", steps, {})
    model, before = loaded(transformers, "llama", target), loaded(transformers, "llama", source)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # type: ignore[union-attr]
    torch.testing.assert_close(
        model.lm_head.weight,
        before.model.embed_tokens.weight,
        rtol=0,
        atol=0,  # type: ignore[union-attr]
    )


def test_shards_of_a_folder_load(transformers: Any, saved: Any, tmp_path: Path) -> None:
    steps = [{"op": "widen", "target": "classifier", "rows": 1}]
    target = operated(saved("bert"), tmp_path / "out", steps, {"shard_size": "5KB"})
    assert len(list(target.glob("model-*.safetensors"))) > 2
    assert loaded(transformers, "bert", target).num_labels == 4
