"""Binding a manifest to a live model: everything that can differ, all of it named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import HEAD, NAMES, checkpoint_entry, group, loaded, network, saved, stage
from torch import nn

import surgeon
from surgeon.training import Manifest, ManifestError

WARM_UP = stage("warm-up", group("head", HEAD))


def problems(manifest: Manifest, model: nn.Module) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as raised:
        manifest.bind(model)
    return raised.value.problems


def test_bind_changes_nothing(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, WARM_UP).bind(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [entry.name for entry in run.stages] == ["warm-up"]


BUILD = "bind a model that is built for the checkpoint as it is after the surgery"


def test_bind_lists_missing_unexpected_and_mismatched_at_once(tmp_path: Path) -> None:
    manifest = loaded(network(), tmp_path, WARM_UP)
    model = network()
    model.body, model.norm, model.head = nn.Linear(5, 6), nn.BatchNorm1d(7), model.fc
    del model.fc
    assert set(problems(manifest, model)) == {
        "out.manifest.json: 'fc.bias' is in the manifest, not in the model; did you mean "
        "'head.bias'?",
        "out.manifest.json: 'fc.weight' is in the manifest, not in the model; did you mean "
        "'head.weight'?",
        "out.manifest.json: 'head.bias' is in the model, not in the manifest; did you mean "
        "'fc.bias'?",
        "out.manifest.json: 'head.weight' is in the model, not in the manifest; did you mean "
        "'fc.weight'?",
        "out.manifest.json: 'body.weight' is (6, 5) in the model and (6, 4) in the manifest; "
        f"{BUILD}",
        *(
            f"out.manifest.json: 'norm.{name}' is (7,) in the model and (6,) in the manifest; "
            f"{BUILD}"
            for name in ("weight", "bias", "running_mean", "running_var")
        ),
    }


def test_bind_refuses_another_checkpoint(tmp_path: Path) -> None:
    manifest = loaded(network(), tmp_path, WARM_UP)
    checkpoint = tmp_path / "out.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes().replace(b'"fc.bias"', b'"fc.bios"'))
    assert problems(manifest, network()) == (
        f"{checkpoint}: its header is not the one that the manifest was written for; take the "
        "manifest that was written with it, or apply the recipe again",
    )


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 16])
def test_bind_refuses_a_broken_checkpoint(tmp_path: Path, content: bytes) -> None:
    manifest = loaded(network(), tmp_path, WARM_UP)
    (tmp_path / "out.safetensors").write_bytes(content)
    assert len(problems(manifest, network())) == 2


def test_bind_refuses_without_the_checkpoint(tmp_path: Path) -> None:
    manifest = loaded(network(), tmp_path, WARM_UP)
    (tmp_path / "out.safetensors").unlink()
    found = problems(manifest, network())
    assert found == (
        f"{tmp_path}/out.safetensors: the checkpoint is not beside its manifest; keep the two in "
        "one folder",
    )


def test_bind_checks_every_shard(tmp_path: Path) -> None:
    path = saved(network(), tmp_path, WARM_UP)
    shard = tmp_path / "out.safetensors"
    index = {"file": "model.safetensors.index.json", "bytes": 0, "header_sha256": ""}
    text = json.loads(path.read_text())
    text["checkpoint"] = {**index, "files": [checkpoint_entry(shard)]}
    path.write_text(json.dumps(text))
    (tmp_path / index["file"]).write_text("{}")
    Manifest.load(path).bind(network())
    shard.write_bytes(shard.read_bytes().replace(b'"fc.bias"', b'"fc.bios"'))
    assert "its header is not the one" in problems(Manifest.load(path), network())[0]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, importing it
@pytest.mark.parametrize(
    "wrapped",
    [
        nn.DataParallel,
        pytest.param(torch.compile, marks=pytest.mark.slow),
        pytest.param(lambda model: torch.compile(nn.DataParallel(model)), marks=pytest.mark.slow),
    ],
)
def test_bind_sees_through_wrappers(tmp_path: Path, wrapped) -> None:  # type: ignore[no-untyped-def]
    manifest = loaded(network(), tmp_path, WARM_UP)
    model = network()
    manifest.bind(wrapped(model)).start("warm-up")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_bind_keeps_a_module_that_is_called_module(tmp_path: Path) -> None:
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    names = ["module.weight", "module.bias"]
    run = loaded(model, tmp_path, stage("all", group("all", names), frozen=[])).bind(model)
    optimizer, _ = run.start("all")
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_bind_lets_buffers_be_named(tmp_path: Path) -> None:
    model = network()
    model.register_buffer("frequencies", torch.ones(3))
    wanted = stage("warm-up", group("head", [*HEAD, "frequencies"]))
    optimizer, _ = loaded(model, tmp_path, wanted).bind(model).start("warm-up")
    assert len(optimizer.param_groups[0]["params"]) == 2


class Tied(nn.Module):
    """An embedding that is also the output layer."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5, bias=False)
        if tied:
            self.output.weight = self.embedding.weight


@pytest.mark.parametrize("name", ["embedding.weight", "output.weight"])
def test_bind_takes_a_tied_parameter_by_either_name(tmp_path: Path, name: str) -> None:
    model = Tied(tied=True)
    run = loaded(model, tmp_path, stage("all", group("all", [name]), frozen=[])).bind(model)
    optimizer, _ = run.start("all")
    assert optimizer.param_groups[0]["params"] == [model.embedding.weight]


def test_bind_requires_the_manifests_ties(tmp_path: Path) -> None:
    wanted = stage("all", group("all", ["embedding.weight"]), frozen=[])
    manifest = loaded(Tied(tied=True), tmp_path, wanted)
    assert problems(manifest, Tied(tied=False)) == (
        "out.manifest.json: 'output.weight' and 'embedding.weight' are tied in the manifest, two "
        "parameters in the model; tie them in the model before bind, or add an 'untie' step to the "
        "recipe",
    )


def test_bind_requires_ties_to_be_in_the_manifest(tmp_path: Path) -> None:
    names = ["embedding.weight", "output.weight"]
    manifest = loaded(Tied(tied=False), tmp_path, stage("all", group("all", names), frozen=[]))
    assert problems(manifest, Tied(tied=True)) == (
        "out.manifest.json: 'output.weight' and 'embedding.weight' are one parameter in the "
        "model, not in the manifest; add a 'tie' step to the recipe, or give each a parameter of "
        "its own",
    )


def test_bind_refuses_a_tied_tensor_named_twice(tmp_path: Path) -> None:
    groups = group("a", ["embedding.weight"]), group("b", ["output.weight"])
    manifest = loaded(Tied(tied=True), tmp_path, stage("all", *groups, frozen=[]))
    assert problems(manifest, Tied(tied=True)) == (
        "out.manifest.json: stage 'all': 'embedding.weight' (tied to 'output.weight') is in group "
        "'a' and again in group 'b'; leave it in one",
    )


REST = [name for name in NAMES if name != "fc.weight"]


@pytest.mark.parametrize(
    ("trained", "frozen", "problem"),
    [
        (
            ["fc.weight[7:8]"],
            REST,
            "'fc.weight[0:7]' is in no group and not frozen; name it in one",
        ),
        (["fc.weight"], REST[1:], "'body.bias' is in no group and not frozen"),
        (
            ["fc.weight"],
            [*REST, "fc.weight[:7]"],
            "'fc.weight[0:7]' is in group 'head' and again in frozen",
        ),
        (
            ["fc.weight", "fc.weight[2:3]"],
            REST,
            "'fc.weight[2:3]' is in group 'head' and again in group 'head'",
        ),
        (
            ["fc.wieght"],
            REST,
            "group 'head': there is no parameter 'fc.wieght'; did you mean 'fc.weight'",
        ),
        (
            ["fc.weight[7:9]"],
            REST,
            "group 'head': 'fc.weight[7:9]': [7:9] is empty or outside of dimension 0, which has "
            "8 entries",
        ),
    ],
)
def test_bind_requires_every_element_exactly_once(
    tmp_path: Path, trained: list[str], frozen: list[str], problem: str
) -> None:
    wanted = stage("warm-up", group("head", trained), frozen=frozen)
    found = problems(loaded(network(), tmp_path, wanted), network())
    assert found[0].startswith(f"out.manifest.json: stage 'warm-up': {problem}")


def test_bind_names_an_unknown_evaluation_module(tmp_path: Path) -> None:
    wanted = stage("warm-up", group("head", HEAD), eval_modules=["nrom"])
    assert problems(loaded(network(), tmp_path, wanted), network()) == (
        "out.manifest.json: stage 'warm-up': eval_modules: there is no module 'nrom'; did you "
        "mean 'norm'?",
    )


def test_bind_takes_a_tied_parameter_that_was_written_once(tmp_path: Path) -> None:
    path = saved(
        Tied(tied=True), tmp_path, stage("all", group("all", ["embedding.weight"]), frozen=[])
    )
    text = json.loads(path.read_text())
    del text["tensors"]["output.weight"]
    path.write_text(json.dumps({**text, "ties": {}}))
    optimizer, _ = Manifest.load(path).bind(Tied(tied=True)).start("all")
    assert len(optimizer.param_groups[0]["params"]) == 1
    assert "'output.weight' is in the model, not in the manifest" in " ".join(
        problems(Manifest.load(path), Tied(tied=False))
    )


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_bind_sees_through_a_wrapper_inside(tmp_path: Path) -> None:
    manifest = loaded(network(), tmp_path, WARM_UP)
    model = network()
    inner, model.fc = model.fc, nn.DataParallel(model.fc)  # type: ignore[assignment]
    manifest.bind(model).start("warm-up")
    assert inner.weight.requires_grad
    assert not model.body.weight.requires_grad


def test_bind_refuses_names_that_would_meet(tmp_path: Path) -> None:
    model = network()
    model.fc._orig_mod = nn.Linear(6, 8)
    assert problems(loaded(network(), tmp_path, WARM_UP), model) == (
        "out.manifest.json: 'fc._orig_mod.weight' and another parameter are both 'fc.weight' in "
        "the model",
    )


def test_bind_says_which_module_is_meant(tmp_path: Path) -> None:
    outer = nn.Module()
    outer.net = network()
    assert problems(loaded(network(), tmp_path, WARM_UP), outer) == (
        "out.manifest.json: all of the model's names begin with 'net.', and the manifest's do not; "
        "bind the module itself: bind(model.net)",
    )


def test_bind_refuses_parametrizations_by_name(tmp_path: Path) -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model.fc)
    (found,) = problems(loaded(network(), tmp_path, WARM_UP), model)
    assert found.startswith("out.manifest.json: 'fc.weight' is parametrized in the model; bind")


@pytest.mark.slow
def test_bind_refuses_adapters_by_name(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    manifest = loaded(network(), tmp_path, WARM_UP)
    adapted = get_peft_model(network(), LoraConfig(target_modules=["fc"]))
    (found,) = problems(manifest, adapted)
    assert "is one of PEFT, and the manifest is for the model without adapters" in found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "BertForMaskedLM", "LlamaForCausalLM"])
def test_bind_takes_tied_transformers_models_from_their_folders(tmp_path: Path, kind: str) -> None:
    import transformers

    from surgeon import surgery
    from surgeon.output.execute import Options
    from surgeon.recipe import load

    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, kind).config_class(
        **sizes, intermediate_size=16, tie_word_embeddings=True
    )
    model = getattr(transformers, kind)(config)
    model.save_pretrained(tmp_path / "in")
    recipe = tmp_path / "r.json"
    adam = {"class": "torch.optim.AdamW", "args": {"lr": 0.1}}
    recipe.write_text(json.dumps({"surgeon": 1, "steps": [], "training": {"optimizer": adam}}))
    with surgery.opened(load(str(recipe), {}), str(tmp_path / "in"), {}) as opened:
        surgery.write(opened, tmp_path / "out", Options(workers=1), force=False)
    read = getattr(transformers, kind).from_pretrained(tmp_path / "out")
    run = Manifest.load(tmp_path / "out").bind(read)
    optimizer, _ = run.start(run.stages[0].name)
    held = {id(p) for entry in optimizer.param_groups for p in entry["params"]}
    assert held == {id(parameter) for parameter in read.parameters()}


def test_bind_says_how_fused_experts_are_put_together(tmp_path: Path) -> None:
    apart, fused = nn.Module(), nn.Module()
    apart.experts = nn.ModuleList(nn.Linear(2, 3, bias=False) for _ in range(4))
    fused.experts = nn.Module()
    fused.experts.gate_up_proj = nn.Parameter(torch.zeros(4, 3, 2))
    names = [f"experts.{number}.weight" for number in range(4)]
    manifest = loaded(apart, tmp_path, stage("all", group("all", names), frozen=[]))
    (found,) = problems(manifest, fused)
    assert "'experts.gate_up_proj' holds all experts in one, and the manifest has them" in found
    step = '{"op": "stack", "from": "experts.{e}.weight", "into": "experts.gate_up_proj"}'
    assert found.endswith(step)


def test_the_steps_that_bind_names_make_the_layouts_agree(tmp_path: Path) -> None:
    from surgeon.training.experts import put_together

    fused = torch.randn(4, 6, 2)
    apart = {f"experts.{n}.{w}.weight": part.clone() for n, expert in enumerate(fused)
             for w, part in zip(("w1", "w3"), expert.chunk(2), strict=True)}  # fmt: skip
    save_file(apart, tmp_path / "in.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in apart.items()}
    named = put_together("experts.gate_up_proj", (4, 6, 2), shapes).partition(" (in the order")[0]
    (tmp_path / "r.json").write_text(f'{{"surgeon": 1, "steps": [{named}]}}')
    surgeon.apply(*(tmp_path / file for file in ("r.json", "in.safetensors", "out.safetensors")))
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == {"experts.gate_up_proj"}
    assert torch.equal(found["experts.gate_up_proj"], fused)
