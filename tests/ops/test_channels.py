"""channels against a loop over channels, and against the response that it keeps."""

import pytest
import torch
from torch import nn

from surgeon.base.errors import SurgeonError
from tests.manifest.test_optimizer_state import operate
from tests.network import assert_identical, correctly_rounded


def step(to, target="conv"):
    return {"op": "channels", "target": target, "to": to}


def naive(weight, to):
    """The sum, or channels again and again times C / n; in float64."""
    weight, count = weight.double(), weight.shape[1]
    if to == 1:
        return sum(weight[:, c : c + 1] for c in range(count))
    return torch.stack([weight[:, c % count] * count / to for c in range(to)], 1)


def problem(bench, *steps):
    with pytest.raises(SurgeonError) as caught:
        bench.operate(*steps)
    return str(caught.value).replace("recipe.json: steps[0] (channels): ", "")


@pytest.mark.parametrize(("now", "to"), [(3, 1), (3, 4), (1, 3), (3, 2), (3, 6), (4, 3), (3, 12)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_channels_are_those_of_the_loop(bench, now, to, dtype):
    torch.manual_seed(0)
    old = nn.Conv2d(now, 5, 3).to(dtype).state_dict()
    old = {f"conv.{name}": tensor for name, tensor in old.items()}
    made = bench.given(old).operate(step(to)).tensors
    expected = correctly_rounded(naive(old["conv.weight"], to), dtype)
    assert_identical(made, {**old, "conv.weight": expected})


@pytest.mark.parametrize(("now", "to"), [(3, 1), (1, 3), (3, 6), (1, 7)])
def test_grey_images_get_the_response_that_they_got(bench, now, to):
    torch.manual_seed(0)
    old, new = nn.Conv2d(now, 5, 3).double(), nn.Conv2d(to, 5, 3).double()
    bench.given({f"conv.{name}": t for name, t in old.state_dict().items()})
    made = bench.operate(step(to)).tensors
    new.load_state_dict({name: made[f"conv.{name}"] for name in ("weight", "bias")})
    image = torch.randn(2, 1, 8, 8).double()
    found, expected = new(image.expand(-1, to, -1, -1)), old(image.expand(-1, now, -1, -1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 2, 2, 2)])
def test_convolutions_of_any_rank(bench, shape):
    old = {"conv.weight": torch.randn(shape).double()}
    made = bench.given(old).operate(step(5))["conv.weight"]
    torch.testing.assert_close(made, naive(old["conv.weight"], 5), rtol=0, atol=0)


def test_nothing_is_new_and_repeated_channels_keep_their_optimizer_state(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    optimizer = torch.optim.Adam(model.named_parameters())
    model(torch.randn(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    made = operate(tmp_path, saved, step(4, target="0"))
    assert "new" not in made.manifest["tensors"]["0.weight"]["lineage"][0]
    moments = optimizer.state[model[0].weight]["exp_avg"]
    assert torch.equal(made.tensors["0.weight/exp_avg"], moments[:, [0, 1, 2, 0]])


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (step(3), "'conv.weight' is F32 (2, 3, 3, 3): it has 3 input channels already"),
        (step(4, "fc"), "'fc.weight' is F32 (2, 3), which is no convolution's weight"),
        (step(4, "codes"), "'codes.weight' is I8 (2, 3, 1), which has no channels to compute with"),
        (step(0), "recipe.json: steps[0].to: 0 is less than the minimum of 1"),
        (step(1, "large"), "'large.weight' cannot have other channels: its dtype cannot hold"),
        (step(4, "nan"), "'nan.weight' holds NaN or Inf, from which no channels can be made"),
    ],
)
def test_impossible_channels_say_why(bench, parameters, line):
    bench.given({
        "conv.weight": torch.ones(2, 3, 3, 3), "fc.weight": torch.ones(2, 3),
        "codes.weight": torch.ones(2, 3, 1, dtype=torch.int8),
        "large.weight": torch.full((1, 3, 1), 6e4).half(),
        "nan.weight": torch.full((1, 3, 1), torch.nan),
    })  # fmt: skip
    assert problem(bench, parameters).startswith(line)
