"""mergekit-moe 0.1.5 and the recipes that its configurations become make the same models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from surgeon import recipe, surgery
from surgeon.mergekit import imported
from surgeon.output.execute import Options
from surgeon.recipe.locations import bind_models
from tests.acceptance.test_experts import SIZES, tokenizer_of
from tests.conformance.environment import NotInstalledError, environment
from tests.conformance.sides import run_python

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PROMPTS = [{"positive_prompts": ["w1 w2", "w3"], "negative_prompts": ["w9"]},
           {"positive_prompts": ["w4 w5 w6", "w7 w8 w4"]}]  # fmt: skip
SHARED = {"positive_prompts": ["w10 w11"]}
# {name: (kind, gate mode, further settings, of the experts, of the shared one)}
JOBS: dict[str, Any] = {
    "mixtral of Llama": ("Llama", "cheap_embed", {}),
    "mixtral of Mistral": ("Mistral", "cheap_embed", {"experts_per_token": 1}),
    "residual scales": ("Llama", "cheap_embed", {"scale": 0.7}),
    "qwen2": ("Qwen2", "cheap_embed", {"shared": True}),
    "qwen3": ("Qwen3", "cheap_embed", {}),
    "hidden states": ("Llama", "hidden", {}),
    "hidden states of Qwen3": ("Qwen3", "hidden_last", {}),
}


def models(folder: Path) -> None:
    import transformers

    for kind in ("Llama", "Mistral", "Qwen2", "Qwen3"):
        more = {"Mistral": {"sliding_window": None}, "Qwen3": {"head_dim": 4}}
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **more.get(kind, {})})
        for seed, name in enumerate(("base", "a", "b")):
            torch.manual_seed(seed)
            model = getattr(transformers, f"{kind}ForCausalLM")(config)
            model.save_pretrained(folder / f"{kind}-{name}")
            (letters_of if kind == "Qwen2" else tokenizer_of)(folder / f"{kind}-{name}")


def letters_of(folder: Path) -> None:
    """Write a tokenizer of bytes, of the only form that transformers' class for Qwen2 reads."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    letters = {letter: number for number, letter in enumerate("w0123456789Ġ")}
    made = Tokenizer(BPE(letters, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<end>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<end>"})
    )


def configuration(folder: Path, kind: str, mode: str, more: dict[str, Any]) -> dict[str, Any]:
    experts = [{"source_model": str(folder / f"{kind}-{name}"), **prompts}
               for name, prompts in zip(("a", "b"), PROMPTS, strict=True)]  # fmt: skip
    config: dict[str, Any] = {"base_model": str(folder / f"{kind}-base"), "gate_mode": mode,
                              "dtype": "float32", "experts": experts}  # fmt: skip
    if "scale" in more:
        experts[1]["residual_scale"] = more["scale"]
    if "shared" in more:
        shared = {"source_model": str(folder / f"{kind}-a"), **SHARED, "residual_scale": 0.5}
        config["shared_experts"] = [shared]
    if "experts_per_token" in more:
        config["experts_per_token"] = more["experts_per_token"]
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `theirs/NAME` is what mergekit-moe made of `NAME.yml`."""
    try:
        place = environment()
    except NotInstalledError as why:
        pytest.skip(str(why))
    folder = tmp_path_factory.mktemp("moe")
    (folder / "ours").mkdir()
    models(folder)
    jobs = []
    for name, (kind, mode, more) in JOBS.items():
        path = folder / f"{name}.yml"
        path.write_text(yaml.safe_dump(configuration(folder, kind, mode, more)))
        jobs.append({"config": str(path), "output": str(folder / "theirs" / name)})
    run_python(place, Path(__file__).parent / "run_moe.py", told=json.dumps(jobs))
    return folder


def ours(folder: Path, name: str) -> Path:
    found = imported(folder / f"{name}.yml")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(found.recipe))
    kind, mode, _ = JOBS[name]
    if mode.startswith("hidden"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from surgeon.training import collect_router

        (note,) = [note for note in found.notes if "collect_router" in note]
        prompts = json.loads(note[note.index("{") : note.rindex("}") + 1])
        model = AutoModelForCausalLM.from_pretrained(folder / f"{kind}-base", dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(folder / f"{kind}-base")
        collect_router(model, tokenizer, prompts, folder / "router.safetensors", inputs="layer",
                       tokens="last")  # fmt: skip
    loaded = recipe.load(str(path), {})
    with surgery.opened(loaded, found.input, bind_models(loaded, [], {})) as opened:
        surgery.write(opened, folder / "ours" / name, Options(), force=True)
    return folder / "ours" / name


@pytest.mark.parametrize("name", JOBS)
def test_both_make_the_same_model(made: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    sides = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
             for place in (ours(made, name), made / "theirs" / name)]  # fmt: skip
    found, expected = (side.state_dict() for side in sides)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        # mergekit adds up embeddings in float32, and takes hidden states in bfloat16.
        near = 2e-3 if JOBS[name][1].startswith("hidden") else 1e-6
        close = near if "gate.weight" in key else 1e-7 if "down_proj" in key else 0
        torch.testing.assert_close(found[key], tensor, rtol=close, atol=close)
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        logits = [side.eval()(ids).logits for side in sides]
    assert sides[0].config.num_experts_per_tok == sides[1].config.num_experts_per_tok
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
