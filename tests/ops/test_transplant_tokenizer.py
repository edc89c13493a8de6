"""Another model's tokenizer: shared tokens keep their rows, others are sums of shared ones."""

import numpy as np
import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import write, write_tokenizer
from tests.numeric.test_pursuit import naive

OWN, DONOR = "?abcdefg", "?gxbafey"


@pytest.fixture
def pair(bench):
    """A model of width 3 and a donor of width 5, of other rows."""
    generator = torch.Generator().manual_seed(1)
    write_tokenizer(bench.folder, *OWN)
    bench.given({"embed_tokens.weight": torch.randn(9, 3, generator=generator),
                 "final_logits_bias": torch.arange(9.0).reshape(1, 9)})  # fmt: skip
    (bench.folder / "donor").mkdir()
    write_tokenizer(bench.folder / "donor", *DONOR)
    donor = {"embed_tokens.weight": torch.randn(8, 5, generator=generator).double(),
             "final_logits_bias": torch.zeros(1, 8)}  # fmt: skip
    bench.models["donor"] = str(write(bench.folder / "donor" / "m.safetensors", donor))
    bench.donor, bench.own = donor["embed_tokens.weight"].numpy(), None
    return bench


def step(**rest):
    targets = ["embed_tokens.weight", "final_logits_bias"]
    return {"op": "transplant_tokenizer", "from": "donor", "target": targets, **rest}


def rows(pair):
    from tests.network import read

    return read(pair.input)["embed_tokens.weight"]


@pytest.mark.parametrize("k", [1, 3])
def test_rows_are_the_sums_that_match_the_donors(pair, k):
    made, own = pair.operate(step(k=k))["embed_tokens.weight"], rows(pair)
    shared = [token for token in DONOR if token in OWN]
    there = pair.donor[[DONOR.index(token) for token in shared]]
    here = own[[OWN.index(token) for token in shared]].double().numpy()
    for number, token in enumerate(DONOR):
        if token in OWN:
            assert torch.equal(made[number], own[OWN.index(token)])
        else:
            expected = naive(pair.donor[number], there, k) @ here
            np.testing.assert_allclose(made[number].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_entries_of_biases_are_means(pair):
    made = pair.operate(step(k=2))["final_logits_bias"]
    assert made.tolist() == [[0, 7, 3.5, 2, 1, 6, 5, 3.5]]


@pytest.mark.parametrize(("method", "value"), [("mean", None), ("copy_shared", 0.0)])
def test_other_methods(pair, method, value):
    made = pair.operate(step(method=method))
    mean = rows(pair)[:8].double().mean(0).float() if value is None else torch.zeros(3)
    assert torch.equal(made["embed_tokens.weight"][2], mean)
    new = made.lineage("embed_tokens.weight")[0]["new"]
    assert new == ["embed_tokens.weight[2:3]", "embed_tokens.weight[7:8]"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 7}, "the models share 6 tokens, of which a sum of 7 is wanted"),
        ({"from": "nobody"}, "there is no model 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused(pair, change, said):
    with pytest.raises(PlanError, match=said):
        pair.plan(step(k=2) | change)
