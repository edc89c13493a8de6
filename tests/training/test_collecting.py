"""Fisher values, Gram matrices and batch statistics against naive loops."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from surgeon.formats import open_checkpoint
from surgeon.training import ManifestError, collect_fisher, collect_gram, update_batch_norm
from tests.network import Bench, assert_identical
from tests.training.small import batches, copied, network


def naive_fisher(model, examples):
    """Squared gradients of each example's log-likelihood, averaged."""
    model.eval()
    sums = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    for inputs, label in examples:
        model.zero_grad()
        log_likelihood = torch.log_softmax(model(inputs[None]), dim=1)[0, label]
        log_likelihood.backward()
        for name, parameter in model.named_parameters():
            sums[name] += parameter.grad.double() ** 2
    model.zero_grad()
    return {name: total / len(examples) for name, total in sums.items()}


def examples_of(data):
    return [pair for inputs, labels in data for pair in zip(inputs, labels, strict=True)]


def test_fisher_values_are_mean_squared_gradients(tmp_path):
    model, data = network(), batches(2)
    collect_fisher(model, data, tmp_path / "fisher.safetensors")
    found = load_file(tmp_path / "fisher.safetensors")
    expected = naive_fisher(model, examples_of(data))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor.float(), rtol=1e-5, atol=1e-12)


def test_size_of_batches_does_not_matter(tmp_path):
    ((inputs, labels),) = batches(1)
    parts = list(zip(inputs.split(5), labels.split(5), strict=True))
    collect_fisher(network(), [(inputs, labels)], tmp_path / "one")
    collect_fisher(network(), parts, tmp_path / "parts")
    assert_identical(load_file(tmp_path / "one"), load_file(tmp_path / "parts"))


def test_loss_may_be_any_of_a_batch(tmp_path):
    model, ((inputs, labels),) = network(), batches(1)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"][0])

    collect_fisher(model, [{"inputs": inputs, "labels": [labels]}], tmp_path / "a", loss=loss)
    collect_fisher(model, [(inputs, labels)], tmp_path / "b")
    assert_identical(load_file(tmp_path / "a"), load_file(tmp_path / "b"))


@pytest.mark.parametrize("collect", [collect_fisher, collect_gram])
def test_model_is_as_it_was_afterwards(tmp_path, collect):
    model = network().train()
    model.norm.eval()
    model.fc.weight.requires_grad_(False)
    before = copied(model)
    collect(model, batches(1), tmp_path / "out")
    assert_identical(model.state_dict(), before)
    assert (model.training, model.norm.training) == (True, False)
    assert not model.fc.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unused_parameters_do_not_matter_at_all(tmp_path):
    model = network()
    model.unused = nn.Linear(2, 2)
    collect_fisher(model, batches(1), tmp_path / "out")
    assert load_file(tmp_path / "out")["unused.weight"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([], "there are no examples"),
        ([(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long))], r"have \[2, 3\] examples"),
        ([(torch.zeros(3, 4), "labels")], "a batch holds a str"),
    ],
)
def test_batches_without_examples_are_errors(tmp_path, data, problem):
    with pytest.raises(ManifestError, match=problem):
        collect_fisher(network(), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def naive_gram(rows):
    size = rows.shape[1]
    total = torch.zeros(size, size, dtype=torch.float64)
    for row in rows.double():
        total += torch.outer(row, row)
    return total


def test_gram_matrices_are_those_of_the_inputs(tmp_path):
    model, data = network(), batches(2)
    collect_gram(model, data, tmp_path / "gram.safetensors")
    found = load_file(tmp_path / "gram.safetensors")
    inputs = torch.cat([inputs for inputs, _ in data])
    hidden = torch.relu(model.eval().norm(model.body(inputs))).detach()
    assert found.keys() == {"body.weight", "fc.weight"}
    for name, rows in (("body.weight", inputs), ("fc.weight", hidden)):
        torch.testing.assert_close(found[name], naive_gram(rows), rtol=1e-5, atol=1e-6)


def test_every_position_of_a_sequence_is_an_input(tmp_path):
    model, inputs = nn.Linear(4, 2), torch.randn(3, 5, 4)
    collect_gram(model, [inputs], tmp_path / "out")
    expected = naive_gram(inputs.view(15, 4))
    torch.testing.assert_close(load_file(tmp_path / "out")["weight"], expected)


class Named(nn.Linear):
    def forward(self, features):
        return super().forward(features)


@pytest.mark.parametrize("forward", [None, lambda model, batch: model(batch["features"])])
def test_batches_may_be_mappings(tmp_path, forward):
    inputs = torch.randn(6, 4)
    collect_gram(Named(4, 2), [{"features": inputs}], tmp_path / "out", forward=forward)
    torch.testing.assert_close(load_file(tmp_path / "out")["weight"], naive_gram(inputs))


def test_layers_that_share_a_weight_share_a_gram_matrix(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    inputs = torch.randn(6, 4)
    collect_gram(model, [inputs], tmp_path / "out.safetensors")
    found = open_checkpoint(str(tmp_path / "out.safetensors")).tensors
    assert found["0.weight"] is found["1.weight"]
    expected = naive_gram(inputs) + naive_gram(model[0](inputs).detach())
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["0.weight"], expected)


def test_layers_without_input_are_left_out(tmp_path):
    model = network()
    model.unused = nn.Linear(2, 2)
    collect_gram(model, batches(1), tmp_path / "out")
    assert "unused.weight" not in load_file(tmp_path / "out")
    with pytest.raises(ManifestError, match=r"no nn.Linear got any input"):
        collect_gram(model, [], tmp_path / "none")


@pytest.mark.parametrize("op", ["fisher", "regmean"])
def test_merges_read_what_was_collected(tmp_path, op):
    collect, word = {"fisher": (collect_fisher, "importances"), "regmean": (collect_gram, "grams")}[
        op
    ]
    bench = Bench(tmp_path)
    first, second = network(), network()
    nn.init.normal_(second.fc.weight)
    bench.given(first.state_dict(), b=second.state_dict())
    for name, model in (("sa", first), ("sb", second)):
        bench.models[name] = str(tmp_path / f"{name}.safetensors")
        collect(model, batches(2), bench.models[name])
    made = bench.operate({"op": op, "models": ["b"], word: ["sa", "sb"]})
    assert not torch.equal(made["fc.weight"], (first.fc.weight + second.fc.weight) / 2)
    torch.testing.assert_close(made["body.weight"], first.body.weight.detach())


@pytest.mark.parametrize("as_pairs", [False, True])
def test_batch_statistics_are_those_of_the_batches(as_pairs):
    model, data = network(), batches(3)
    update_batch_norm(model, data if as_pairs else [inputs for inputs, _ in data])
    outputs = [model.body(inputs).detach() for inputs, _ in data]
    mean = torch.stack([o.mean(0) for o in outputs]).mean(0)
    variance = torch.stack([o.var(0) for o in outputs]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, mean)
    torch.testing.assert_close(model.norm.running_var, variance)
