"""match with transformers: the result loads into the class that its config names."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import surgery
from surgeon.base.errors import CheckFailedError, PlanError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MATCH = {"op": "match", "transformers": True}
SMALL = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
QUERIES = "model.layers.0.self_attn.q_proj"
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 4}


@pytest.fixture
def planned(bench):
    """Save a tiny model as transformers does; plan steps and the match on its folder."""
    transformers = pytest.importorskip("transformers")

    def plan(model_type, *steps, tensors=None, config=None, output=None, allow_code=False, **more):
        made = transformers.CONFIG_MAPPING[model_type](**SMALL, **more)
        auto = "AutoModelForMaskedLM" if model_type == "bert" else "AutoModelForCausalLM"
        folder = bench.folder / model_type
        getattr(transformers, auto).from_config(made).save_pretrained(folder)
        if tensors:
            path = folder / "model.safetensors"
            save_file(tensors(load_file(path)), path, {"format": "pt"})
        if config:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        bench.input = folder
        recipe = bench.recipe(*steps, MATCH, **({"output": output} if output else {}))
        with surgery.opened(recipe, str(folder), {}, allow_code=allow_code) as opened:
            return surgery.output_plan(opened, bench.folder / "out").notes

    return plan


@pytest.mark.parametrize(
    ("model_type", "more"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("qwen3_moe", EXPERTS), ("bert", {})],
)
def test_what_transformers_saved_matches(planned, model_type, more):
    drop = {"op": "layers", "container": "**.(layers|layer)", "take": ["1"]}
    assert "with nothing missing and nothing left" in planned(model_type, **more)[-1]
    assert (
        "with nothing missing" in planned(model_type, *[drop][: model_type == "llama"], **more)[-1]
    )


def test_it_is_the_result_that_is_compared(planned):
    """An expert goes in a step after the match, and the config with it."""
    gone = {"op": "delete", "target": "**.experts.3"}
    router = {"op": "narrow", "target": "**.mlp.gate", "drop": [3]}
    assert planned("qwen3_moe", gone, router, **EXPERTS)


def differences(error):
    return [problem.partition("transformers ")[2].partition(": ")[2]
            for problem in error.value.problems]  # fmt: skip


def test_every_difference_has_a_line(planned):
    def changed(tensors):
        del tensors["model.layers.0.input_layernorm.weight"]
        return tensors | {"model.norm.weight": torch.ones(9), "model.odd.weight": torch.ones(2)}

    with pytest.raises(CheckFailedError, match=r"steps\[0\] \(match\): LlamaForCausalLM") as caught:
        planned("llama", tensors=changed)
    assert differences(caught) == [
        "'model.layers.0.input_layernorm.weight' is missing",
        "expected 'model.norm.weight' to have shape (8,), found (9,)",
        "'model.odd.weight' is not expected",
    ]


def test_names_that_the_class_ties_are_one_tensor(planned):
    def untied(tensors):
        return tensors | {"cls.predictions.decoder.bias": torch.ones(12)}

    with pytest.raises(CheckFailedError, match="are one tensor in the class; tie them"):
        planned("bert", tensors=untied)


@pytest.mark.parametrize(
    ("config", "kind", "problem"),
    [
        ({"architectures": ["OddModel"]}, PlanError, "has no class 'OddModel'; state architec"),
        ({"model_type": "odd"}, PlanError, "has no model_type 'odd'; state model_type in output"),
        ({"model_type": "odd", "auto_map": {"AutoConfig": "a.B"}}, UsageError, "--allow-code"),
        ({"hidden_act": "odd"}, PlanError, "transformers raised "),
    ],
)
def test_class_that_is_not_there_says_so(planned, config, kind, problem):
    with pytest.raises(kind, match=problem):
        planned("llama", config=config)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
from torch import nn

class OddConfig(LlamaConfig):
    model_type = "odd"

class OddModel(LlamaForCausalLM):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.extra = nn.Linear(3, 2)
        self.post_init()
"""


def test_code_of_the_folder_is_run_where_that_is_allowed(planned, bench, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(bench.folder))
    (bench.folder / "llama").mkdir()
    (bench.folder / "llama" / "odd.py").write_text(CODE)
    own = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}
    config = {"model_type": "odd", "auto_map": own, "architectures": ["OddModel"]}
    with pytest.raises(UsageError, match="code of the folder's own, which would be run"):
        planned("llama", config=config)
    with pytest.raises(CheckFailedError, match=r"'extra.bias' is missing"):
        planned("llama", config=config, allow_code=True)


def test_missing_library_says_how_to_install_it(planned, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        UsageError, match=r'install it: pip install "surgeon-checkpoints\[transformers\]"'
    ):
        planned("llama")


def test_one_file_has_no_class(bench):
    with pytest.raises(
        UsageError, match=r"'transformers' is for model folders, and .* is one file"
    ):
        bench.given({"a": torch.ones(1)}).operate(MATCH)


@pytest.mark.parametrize("rows", [8, 16])
def test_codes_that_transformers_does_not_load_are_compared_as_numbers(planned, rows):
    """GPTQ takes a library of its own to load; packed along inputs, 8 codes to a word."""

    def packed(stored):
        stored.pop(f"{QUERIES}.weight")
        parts = {"qweight": torch.zeros(1, rows, dtype=torch.int32), "scales": torch.ones(1, rows),
                 "qzeros": torch.zeros(1, rows // 8, dtype=torch.int32),
                 "g_idx": torch.zeros(8, dtype=torch.int32)}  # fmt: skip
        return stored | {f"{QUERIES}.{leaf}": tensor for leaf, tensor in parts.items()}

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False, "sym": True}
    given = {"tensors": packed, "config": {"quantization_config": settings}}
    if rows == 8:
        *_, first, last = planned("llama", **given)
        assert first.startswith("quantised weights are compared as numbers, since transformers")
        assert "with nothing missing" in last
    else:
        with pytest.raises(CheckFailedError, match=r"expected '.*q_proj.weight' to have shape"):
            planned("llama", **given)
