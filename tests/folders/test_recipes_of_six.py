"""Ready-made recipes on six architectures: transformers computes what it is expected to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from surgeon.cli.commands import commands
from tests.late import Late

transformers: Any = Late("transformers", is_optional=True)

pytestmark = pytest.mark.slow
TOKENS = torch.arange(1, 25).reshape(2, 12)
_COMMON = {"vocab_size": 37, "max_position_embeddings": 32, "hidden_size": 32,
           "num_hidden_layers": 4, "num_attention_heads": 4}  # fmt: skip
_LLAMA = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
# Where the layers are, what ends a residual branch, the embedding and the head.
KINDS: dict[str, tuple[str, dict[str, Any], str, list[str], str, str]] = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 37, "n_positions": 32, "n_embd": 32, "n_layer": 4,
                                 "n_head": 4}, "transformer.h", ["attn.c_proj", "mlp.c_proj"],
             "transformer.wte.weight", "lm_head.weight"),
    "llama": ("LlamaForCausalLM", {**_LLAMA, "tie_word_embeddings": True}, "model.layers",
              ["o_proj", "down_proj"], "model.embed_tokens.weight", "lm_head.weight"),
    "bert": ("BertForMaskedLM", {**_COMMON, "intermediate_size": 48}, "bert.encoder.layer",
             ["attention.output.dense", "output.dense"], "bert.embeddings.word_embeddings.weight",
             "cls.predictions.decoder.weight"),
    "opt": ("OPTForCausalLM", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32},
            "model.decoder.layers", ["out_proj", "fc2"], "model.decoder.embed_tokens.weight",
            "lm_head.weight"),
    "qwen2": ("Qwen2ForCausalLM", {**_LLAMA, "tie_word_embeddings": False}, "model.layers",
              ["o_proj", "down_proj"], "model.embed_tokens.weight", "lm_head.weight"),
    "mistral": ("MistralForCausalLM", {**_LLAMA, "tie_word_embeddings": False}, "model.layers",
                ["o_proj", "down_proj"], "model.embed_tokens.weight", "lm_head.weight"),
}  # fmt: skip


def made(kind: str, folder: Path, seed: int = 0) -> Any:
    """Write a random model, every parameter of it other than its start; return it."""
    torch.manual_seed(seed)
    name, settings, *_ = KINDS[kind]
    kinds = getattr(transformers, name)
    model = kinds(kinds.config_class(**settings, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.eval().save_pretrained(folder)
    return model


def applied(recipe: str, folder: Path, *models: Path, **variables: Any) -> str:
    given = [f"--set={key}={json.dumps(value)}" for key, value in variables.items()]
    paths = map(str, (folder / "in", *models))
    result = CliRunner().invoke(commands, ["apply", recipe, *paths, "-o", f"{folder}/out", *given])
    assert result.exit_code == 0, result.output
    return result.output


def applied_to_file(recipe: str, source: Path, **variables: Any) -> Path:
    """Apply a recipe to weights alone, whose names or sizes no class of transformers may have."""
    given = [f"--set={key}={json.dumps(value)}" for key, value in variables.items()]
    output = source.with_name(f"{recipe}.safetensors")
    result = CliRunner().invoke(commands, ["apply", recipe, str(source), str(output), *given])
    assert result.exit_code == 0, result.output
    return output


def loaded(kind: str, folder: Path) -> Any:
    model, found = getattr(transformers, KINDS[kind][0]).from_pretrained(
        folder, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(TOKENS).logits
    return found


def layers_of(kind: str, model: Any) -> torch.nn.ModuleList:
    found = model.get_submodule(KINDS[kind][2])
    assert isinstance(found, torch.nn.ModuleList)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_layers_are_those_that_transformers_leaves_out(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path / "in")
    applied("drop-layers", tmp_path, container=KINDS[kind][2], keep=["0:2", 3])
    del layers_of(kind, model)[2]
    torch.testing.assert_close(logits(loaded(kind, tmp_path / "out")), logits(model))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bert"])
def test_inserted_blocks_leave_the_logits_alone(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path / "in")
    _, _, container, zero, *_ = KINDS[kind]
    applied("llama-pro-blocks", tmp_path, container=container, zero=zero, every=2)
    found = loaded(kind, tmp_path / "out")
    assert len(layers_of(kind, found)) == 6
    torch.testing.assert_close(logits(found), logits(model))


def test_inserted_blocks_of_a_post_norm_model_end_in_zeros(tmp_path: Path) -> None:
    made("bert", tmp_path / "in")
    _, _, container, zero, *_ = KINDS["bert"]
    applied("llama-pro-blocks", tmp_path, container=container, zero=zero, every=2)
    blocks = layers_of("bert", loaded("bert", tmp_path / "out"))
    assert [not block.output.dense.weight.any() for block in blocks] == [
        False, False, True, False, False, True
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("recipe", "words", "shares"),
    [("average-checkpoints", {}, (1 / 3, 1 / 3, 1 / 3)),
     ("average-checkpoints", {"weights": [1, 2, 5]}, (1 / 8, 2 / 8, 5 / 8)),
     ("average-series", {"decay": 0.75}, (0.5625, 0.1875, 0.25))],
)  # fmt: skip
def test_averages_are_those_of_a_float64_loop(
    kind: str, recipe: str, words: dict[str, Any], shares: tuple[float, ...], tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("in", "b", "c")]
    states = [made(kind, folder, seed).state_dict() for seed, folder in enumerate(folders)]
    applied(recipe, tmp_path, *folders[1:], **words)
    for name, tensor in loaded(kind, tmp_path / "out").state_dict().items():
        wanted = sum(s * state[name].double() for s, state in zip(shares, states, strict=True))
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, wanted.float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_tied_embeddings_load_tied(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path / "in")
    is_tied = KINDS[kind][5] not in load_file(tmp_path / "in" / "model.safetensors")
    *_, embedding, head = KINDS[kind]
    said = applied("tie-embeddings", tmp_path, embedding=embedding, head=head, when="always")
    found = loaded(kind, tmp_path / "out")
    assert ("nothing is tied" in said) == is_tied
    assert (f"is stored as '{embedding}'" in said) == (not is_tied)
    assert len({embedding, head} & load_file(tmp_path / "out" / "model.safetensors").keys()) == 1
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    torch.testing.assert_close(logits(found), logits(model))


# Of one layer's attention: what projects, and what reads the heads; then words of the recipes.
ATTENTION: dict[str, tuple[str, list[str], str]] = {
    "gpt2": ("attn", ["c_attn"], "c_proj"),
    "bert": ("attention", ["self.query", "self.key", "self.value"], "output.dense"),
    "opt": ("self_attn", ["q_proj", "k_proj", "v_proj"], "out_proj"),
    **dict.fromkeys(
        ("llama", "qwen2", "mistral"), ("self_attn", ["q_proj", "k_proj", "v_proj"], "o_proj")
    ),
}
SHARED = ("llama", "qwen2", "mistral")


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_heads_are_those_that_nobody_reads(kind: str, tmp_path: Path) -> None:
    old = made(kind, tmp_path / "in").state_dict()
    module, parts, reader = ATTENTION[kind]
    place = f"{KINDS[kind][2]}.*.{module}"
    words: dict[str, Any] = {"qkv": [f"{place}.{part}" for part in parts], "heads": "0:2"}
    if kind == "gpt2":
        words |= {"parts": 3, "qkv_dim": 1, "out_dim": 0}
    if kind in SHARED:
        words |= {"qkv": f"{place}.q_proj", "kv": f"{place}.(k|v)_proj", "per_kv": 2}
    source = tmp_path / "in" / "model.safetensors"
    words |= {"out": f"{place}.{reader}", "head_size": 8}
    new = load_file(applied_to_file("prune-heads", source, **words))
    own = place.replace("*", "3")
    for part in [*parts, reader]:
        wanted = kept_heads(kind, part, old[f"{own}.{part}.weight"], is_reader=part == reader)
        torch.testing.assert_close(new[f"{own}.{part}.weight"], wanted, rtol=0, atol=0)


def kept_heads(kind: str, part: str, weight: torch.Tensor, *, is_reader: bool) -> torch.Tensor:
    """Return what is left of a projection of four heads (or two that are shared) without half."""
    if kind == "gpt2":
        return weight[16:] if is_reader else weight.view(32, 3, 4, 8)[:, :, 2:].reshape(32, 48)
    if is_reader:
        return weight[:, 16:]
    return weight[8:] if kind in SHARED and part != "q_proj" else weight[16:]


# Those whose config.json has a size of heads that does not follow from their number.
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_model_without_heads_computes_what_it_did_without_their_outputs(
    kind: str, tmp_path: Path
) -> None:
    model = made(kind, tmp_path / "in")
    place = f"{KINDS[kind][2]}.*.self_attn"
    applied("prune-heads", tmp_path, out=f"{place}.o_proj", qkv=f"{place}.q_proj", head_size=8,
            heads="0:2", kv=f"{place}.(k|v)_proj", per_kv=2)  # fmt: skip
    with torch.no_grad():
        for layer in layers_of(kind, model):
            layer.self_attn.o_proj.weight[:, :16] = 0
    torch.testing.assert_close(logits(loaded(kind, tmp_path / "out")), logits(model))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])
def test_fused_and_split_projections_are_there_and_back(kind: str, tmp_path: Path) -> None:
    made(kind, tmp_path / "in")
    source = tmp_path / "in" / "model.safetensors"
    module, (query, key, value), _ = ATTENTION[kind]
    names = {"attention": f"{KINDS[kind][2]}.{{i}}.{module}", "query": query, "key": key,
             "value": value}  # fmt: skip
    fused = applied_to_file("fuse-qkv", source, **names)
    old, own = load_file(source), f"{KINDS[kind][2]}.1.{module}"
    wanted = torch.cat([old[f"{own}.{part}.weight"] for part in (query, key, value)])
    torch.testing.assert_close(load_file(fused)[f"{own}.qkv_proj.weight"], wanted, rtol=0, atol=0)
    sizes = [32, 16, 16] if kind in SHARED else [32, 32, 32]
    again = load_file(applied_to_file("split-qkv", fused, sizes=sizes, **names))
    torch.testing.assert_close(again, old, rtol=0, atol=0)


def test_a_conv1d_is_split_along_its_last_dimension(tmp_path: Path) -> None:
    old = made("gpt2", tmp_path / "in").state_dict()
    source = tmp_path / "in" / "model.safetensors"
    words = {"attention": "transformer.h.{i}.attn", "fused": "c_attn", "dim": -1}
    new = load_file(applied_to_file("split-qkv", source, sizes=[32, 32, 32], **words))
    for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
        for name in ("weight", "bias"):
            wanted = old[f"transformer.h.2.attn.c_attn.{name}"].split(32, dim=-1)[number]
            found = new[f"transformer.h.2.attn.{part}.{name}"]
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
