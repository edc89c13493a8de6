"""Configurations with all that people write are imported, planned, and give mergekit's models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import save_file

from surgeon import recipe, surgery
from surgeon.mergekit import imported
from surgeon.recipe.locations import bind_models
from tests.conformance import models, sides
from tests.conformance.environment import installed
from tests.mergekit.forty import FORTY

_TEMPLATE = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
# An adapter is folded in by PEFT, in float32.
_BOUND, _ADAPTED = 1e-9, 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of tiny models with tokenizers, and of what each configuration says."""
    folder = tmp_path_factory.mktemp("forty")
    made = {name: runnable(tensors) for name, tensors in models.ordinary().items()}
    made["old"] = made["first"] | {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(1)
        for layer in range(models.LAYERS)
    }
    models.write(folder, made)
    vocabulary = {f"t{number}": number for number in range(101)}
    for name in made:
        write_tokenizer(folder / name, vocabulary)
    write_adapter(folder / "lora")
    for number, config in enumerate(FORTY.values()):
        documents = config if isinstance(config, list) else [config]
        texts = [json.dumps(one).replace("$", f"{folder}/") for one in documents]
        (folder / f"{number}.yml").write_text("\n---\n".join(texts))
    return folder


def runnable(tensors: models.Tensors) -> models.Tensors:
    """Return a model with attention of its config's one head of size 2: PEFT builds it."""
    return {
        name: tensor[:2]
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        else tensor[:, :2]
        if name.endswith("o_proj.weight")
        else tensor
        for name, tensor in tensors.items()
    }


def write_tokenizer(folder: Path, vocabulary: dict[str, int]) -> None:
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    text = json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    (folder / "tokenizer.json").write_text(text)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_adapter(folder: Path) -> None:
    folder.mkdir()
    place = "base_model.model.model.layers.1.self_attn.q_proj"
    generator = torch.Generator().manual_seed(1)
    save_file(
        {f"{place}.lora_A.weight": torch.randn(2, 29, generator=generator),
         f"{place}.lora_B.weight": torch.randn(2, 2, generator=generator)},
        folder / "adapter_model.safetensors",
    )  # fmt: skip
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2,
              "target_modules": ["q_proj"], "layers_to_transform": [1],
              "layers_pattern": "layers"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def opened(path: Path, work: Path) -> Any:
    found = imported(path)
    text = work / f"{path.stem}.json"
    text.write_text(json.dumps(found.recipe))
    loaded = recipe.load(str(text), {})
    return surgery.opened(loaded, found.input, bind_models(loaded, [], {}))


@pytest.mark.parametrize("number", range(len(FORTY)), ids=list(FORTY))
def test_each_is_imported_and_planned(folder: Path, tmp_path: Path, number: int) -> None:
    with opened(folder / f"{number}.yml", tmp_path) as found:
        assert found.plan.tensors
        found.folder_files.check()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """Return what mergekit refused of each, by its output."""
    return sides.merged_whole(installed(), folder, len(FORTY))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FORTY)), ids=list(FORTY))
def test_each_gives_the_tensors_and_the_template_of_mergekit(
    folder: Path, theirs: dict[str, str | None], number: int
) -> None:
    output = folder / f"{number}.theirs"
    assert theirs[str(output)] is None
    found = imported(folder / f"{number}.yml")
    ours = sides.apply_recipe(found.recipe, found.input, folder / f"{number}.ours")
    expected = sides.read(output)
    assert ours.keys() == expected.keys()
    bound = _ADAPTED if "adapter" in json.dumps(found.recipe) else _BOUND
    assert max(sides.difference(ours[name], expected[name]) for name in ours) <= bound
    assert greeting_of(folder / f"{number}.ours") == greeting_of(output)


def greeting_of(folder: Path) -> str:
    """Return what a folder's template makes of a conversation, as transformers renders it."""
    file = folder / "chat_template.jinja"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    text = file.read_text() if file.is_file() else config["chat_template"]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    return str(template.render(messages=said, add_generation_prompt=True))
