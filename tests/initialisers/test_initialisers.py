"""Initialisations against torch.nn.init, torch's layers and naive arithmetic."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from surgeon.base.errors import PlanError, UsageError
from surgeon.base.indices import Indices
from surgeon.initialisers import INITIALISERS, for_sibling, fresh, grown, init_schema, parse
from surgeon.lazy import Fresh, LazyTensor, Scratch, Stream, TensorSpec
from surgeon.numeric.dtypes import DTYPES, upcast
from surgeon.recipe.validation import problems_of
from tests.late import Late

# That of `scipy.stats` is the same and takes seconds to import.
special: Any = Late("scipy.special")

STREAM = Stream(0, "grow", "fc.weight")
SHAPES = [(48, 40), (30, 12, 5), (16, 8, 3, 3), (8, 6, 3, 3, 3)]


@dataclass(frozen=True)
class Given:
    """An initialiser that gives the values of an array."""

    array: np.ndarray
    name: str = "given"
    operands: tuple[LazyTensor, ...] = ()

    def values(self, spec: Any, start: int, stop: int, stream: Any, scratch: Any) -> np.ndarray:
        return self.array.reshape(-1)[start:stop]


def holding(array: np.ndarray, dtype: str = "F64") -> Fresh:
    return Fresh(TensorSpec(dtype, array.shape), Given(array), STREAM)


def values(tensor: LazyTensor) -> np.ndarray:
    count = tensor.spec.count
    block = tensor.elements(0, count, Scratch())
    if DTYPES[tensor.spec.dtype].kind != "float":
        return block.reshape(tensor.spec.shape).copy()
    return upcast(block, tensor.spec.dtype, np.empty(count)).reshape(tensor.spec.shape)


def made(shape: tuple[int, ...], init: Any, *, dtype: str = "F32", name: str = "weight", **rest):
    return values(fresh(TensorSpec(dtype, shape), init, STREAM, name=name, **rest))


def assert_same_distribution(found: np.ndarray, expected: torch.Tensor) -> None:
    first, second = np.sort(found, None), np.sort(expected.detach().double().numpy(), None)
    everything = np.concatenate([first, second])
    shares = [np.searchsorted(one, everything, "right") / one.size for one in (first, second)]
    assert_likely(shares[0] - shares[1], first.size * second.size / everything.size)


def assert_follows(found: np.ndarray, distribution: np.ndarray) -> None:
    """Test by Kolmogorov and Smirnov; `distribution` is that function of the sorted values."""
    shares = np.arange(found.size + 1) / found.size
    assert_likely(np.concatenate([shares[1:], shares[:-1]]) - np.tile(distribution, 2), found.size)


def assert_likely(distances: np.ndarray, size: float) -> None:
    assert special.kolmogorov(np.abs(distances).max() * math.sqrt(size)) > 1e-3


def assert_uniform(found: np.ndarray, bound: float) -> None:
    largest = np.abs(found).max()
    assert largest <= np.float32(bound)
    assert largest >= bound * (1 - 12 / found.size)  # exceeded but once in e^12
    assert abs(found.mean()) <= 5 * bound / math.sqrt(3 * found.size)


def assert_normal(found: np.ndarray, mean: float, std: float) -> None:
    assert abs(found.mean() - mean) <= 5 * std / math.sqrt(found.size)
    assert abs(found.std() - std) <= 5 * std / math.sqrt(2 * found.size)
    assert_follows(found, special.ndtr((np.sort(found, None) - mean) / std))


@pytest.fixture(autouse=True)
def _seeded_torch() -> None:
    torch.manual_seed(0)


torch.manual_seed(0)
LAYERS = [
    torch.nn.Linear(40, 48),
    torch.nn.Conv1d(12, 48, 5),
    torch.nn.Conv2d(8, 48, 3),
    torch.nn.Conv2d(8, 48, 3, groups=4),
    torch.nn.Conv3d(4, 48, 3),
    torch.nn.ConvTranspose2d(48, 12, 3),
    torch.nn.BatchNorm2d(48),
    torch.nn.LayerNorm(48),
    torch.nn.GroupNorm(4, 48),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_default_is_what_the_layer_constructor_does(layer: torch.nn.Module) -> None:
    weight = TensorSpec("F32", tuple(layer.weight.shape))
    for name, tensor in layer.state_dict().items():
        dtype = "I64" if tensor.dtype == torch.int64 else "F32"
        found = made(tuple(tensor.shape), "default", dtype=dtype, name=name, weight=weight)
        if tensor.unique().numel() == 1:
            np.testing.assert_array_equal(found, tensor.numpy())
        else:
            assert_same_distribution(found, tensor)
            assert np.abs(found).max() <= 1 / math.sqrt(math.prod(layer.weight.shape[1:]))


def test_default_bias_is_bounded_by_the_fan_of_the_weight() -> None:
    weight = TensorSpec("F32", (5000, 9))
    assert_uniform(made((5000,), "default", name="bias", weight=weight), 1 / 3)


@pytest.mark.parametrize("name", ["offset", "logit", "alpha"])
def test_default_of_an_unknown_vector_asks_for_a_name(name: str) -> None:
    with pytest.raises(PlanError, match=r"has no default; name an init"):
        made((4,), "default", name=name)


NONLINEARITIES = [
    *("linear", "conv1d", "conv2d", "conv3d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_kaiming_has_torchs_fans(shape: tuple[int, ...], mode: str) -> None:
    fan = torch.nn.init._calculate_correct_fan(torch.empty(shape), mode)
    std = math.sqrt(2 / (1 + 0.3**2)) / math.sqrt(fan)
    parameters = {"a": 0.3, "mode": mode}
    assert_uniform(made(shape, {"name": "kaiming_uniform", **parameters}), math.sqrt(3) * std)
    assert_normal(made(shape, {"name": "kaiming_normal", **parameters}), 0, std)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_kaiming_has_torchs_gains(nonlinearity: str, slope: float) -> None:
    gain = torch.nn.init.calculate_gain(nonlinearity, slope)
    init = {"name": "kaiming_uniform", "a": slope, "nonlinearity": nonlinearity}
    assert_uniform(made((64, 48), init), gain * math.sqrt(3 / 48))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["xavier_uniform", "xavier_normal"])
def test_xavier_is_distributed_as_in_torch(shape: tuple[int, ...], name: str) -> None:
    expected = getattr(torch.nn.init, f"{name}_")(torch.empty(shape), gain=1.7)
    found = made(shape, {"name": name, "gain": 1.7})
    assert_same_distribution(found, expected)
    assert abs(found.std() / expected.std() - 1) <= 5 / math.sqrt(found.size)


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_normal_has_its_mean_and_std_in_every_dtype(dtype: str) -> None:
    found = made((300, 200), {"name": "normal", "mean": 2, "std": 0.5}, dtype=dtype)
    assert abs(found.mean() - 2) <= 0.02
    assert abs(found.std() - 0.5) <= 0.02


def test_normal_and_uniform_draw_from_their_distributions() -> None:
    assert_normal(made((300, 200), {"name": "normal", "mean": -1, "std": 3}), -1, 3)
    assert_uniform(made((300, 200), {"name": "uniform", "a": 1, "b": 3}) - 2, 1)


@pytest.mark.parametrize(
    ("mean", "std", "low", "high"),
    [
        (0, 1, -2, 2),
        (0, 0.02, -2, 2),
        (1, 2, -0.5, 3),
        (0, 1, 3, 3.1),  # uniform proposals
        (0, 1, 3, 50),  # exponential proposals
        (5, 0.5, -9, 2),  # mirrored
        (0, 1, 0.6, 2.2),
        (0, 1, -0.1, 0.3),
        (0, 1, 8, 9),
    ],
)
def test_trunc_normal_has_the_density_of_a_normal(
    mean: float, std: float, low: float, high: float
) -> None:
    init = {"name": "trunc_normal", "mean": mean, "std": std, "a": low, "b": high}
    found = made((200, 200), init, dtype="F64")
    x = np.linspace(low, high, 1_000_001)
    exponents = ((x - mean) / std) ** 2 / 2
    density = np.exp(exponents.min() - exponents)
    density /= density.sum()
    expected_std = math.sqrt(density @ x**2 - (density @ x) ** 2)
    assert found.min() >= low
    assert found.max() <= high
    assert abs(found.std() / expected_std - 1) <= 0.03
    assert_follows(found, np.interp(np.sort(found, None), x, np.cumsum(density)))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_trunc_normal_keeps_its_bounds_when_rounded(dtype: str) -> None:
    found = made((300, 300), {"name": "trunc_normal", "a": -0.25, "b": 0.5}, dtype=dtype)
    assert -0.25 <= found.min() <= found.max() <= 0.5


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9), (4, 3, 5), (1, 7)], ids=str)
def test_orthogonal_rows_or_columns_are_orthonormal(shape: tuple[int, ...]) -> None:
    found = made(shape, {"name": "orthogonal", "gain": 2}, dtype="F64").reshape(shape[0], -1)
    short = found if found.shape[0] <= found.shape[1] else found.T
    np.testing.assert_allclose(short @ short.T, 4 * np.eye(len(short)), atol=1e-12)


def test_orthogonal_makes_no_matrix_that_no_memory_holds() -> None:
    with pytest.raises(PlanError, match=r"\(268435457, 1\) is more than 268,435,456 elements"):
        fresh(TensorSpec("F32", ((1 << 28) + 1, 1)), "orthogonal", Stream(0, "s", "w"), name="w")


def test_orthogonal_has_no_preferred_signs() -> None:
    specs = [Stream(seed, "s", "w") for seed in range(400)]
    corners = [values(fresh(TensorSpec("F64", (3, 3)), "orthogonal", s, name="w")) for s in specs]
    assert_same_distribution(
        np.stack(corners),
        torch.stack([torch.nn.init.orthogonal_(torch.empty(3, 3)) for _ in specs]),
    )


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3)], ids=str)
def test_eye_is_torchs(shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(made(shape, "eye"), torch.nn.init.eye_(torch.empty(shape)))


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 2, 4, 5), (12, 6, 1, 2, 3), (6, 9, 2)], ids=str)
def test_dirac_is_torchs(shape: tuple[int, ...], groups: int) -> None:
    expected = torch.nn.init.dirac_(torch.empty(shape), groups)
    np.testing.assert_array_equal(made(shape, {"name": "dirac", "groups": groups}), expected)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "I64", "U8", "BOOL"])
def test_fills_are_exact(dtype: str) -> None:
    for init, value in [("zeros", 0), ("ones", 1), ({"name": "constant", "val": 1}, 1)]:
        np.testing.assert_array_equal(made((3, 4), init, dtype=dtype), np.full((3, 4), value))


def test_constant_keeps_large_integers() -> None:
    large = 2**62 + 1
    assert made((2,), {"name": "constant", "val": large}, dtype="I64").tolist() == [large] * 2


def tall(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    mixing = np.random.default_rng(seed).normal(size=(columns, columns))
    return np.random.default_rng(seed + 1).normal(3, 1, (rows, columns)) @ mixing


GROWING = [
    ((7, 5), 0),
    ((7, 5), 1),
    ((6,), 0),
    ((4, 3, 2, 2), 0),
    ((4, 3, 2, 2), 1),
    ((3, 90000), 0),
]


@pytest.mark.parametrize(("shape", "dim"), [*GROWING, ((90000, 3), 1), ((300, 700), 1)], ids=str)
def test_mean_is_the_mean_of_the_old_rows(shape: tuple[int, ...], dim: int) -> None:
    old = np.random.default_rng(0).normal(size=shape)
    new = np.split(values(grown(holding(old), dim, 2, "mean", STREAM, name="w")), [shape[dim]], dim)
    np.testing.assert_array_equal(new[0], old)
    expected = np.repeat(old.mean(axis=dim, keepdims=True), 2, axis=dim)
    np.testing.assert_allclose(new[1], expected, rtol=1e-12, atol=1e-14)


def test_rows_normal_has_the_mean_and_covariance_of_the_old_rows() -> None:
    old = tall(8, 6)
    new = values(grown(holding(old), 0, 60000, "rows_normal", STREAM, name="w"))[8:]
    deviations = np.sqrt(np.diagonal(np.cov(old.T)))
    scale = np.outer(deviations, deviations)
    assert np.abs((np.cov(new.T) - np.cov(old.T)) / scale).max() <= 5 * math.sqrt(2 / 60000)
    assert np.abs((new.mean(0) - old.mean(0)) / deviations).max() <= 5 / math.sqrt(60000)


@pytest.mark.parametrize(("shape", "dim"), GROWING, ids=str)
def test_rows_normal_stays_in_the_span_of_the_old_rows(shape: tuple[int, ...], dim: int) -> None:
    old = np.moveaxis(np.random.default_rng(0).normal(size=shape), dim, 0).reshape(shape[dim], -1)
    laid_out = np.moveaxis(old.reshape(shape[dim], *np.delete(shape, dim)), 0, dim)
    grew = values(grown(holding(laid_out), dim, 3, "rows_normal", STREAM, name="w"))
    new = np.moveaxis(grew, dim, 0)[shape[dim] :].reshape(3, -1) - old.mean(0)
    weights, *_ = np.linalg.lstsq((old - old.mean(0)).T, new.T, rcond=None)
    np.testing.assert_allclose((old - old.mean(0)).T @ weights, new.T, atol=1e-9)
    assert np.abs(new).max() > 1e-3


def test_rows_normal_of_one_row_is_that_row() -> None:
    old = tall(1, 6)
    new = values(grown(holding(old), 0, 3, "rows_normal", STREAM, name="w"))
    np.testing.assert_array_equal(new, np.repeat(old, 4, axis=0))


@pytest.mark.parametrize("dtype", ["F32", "I64", "BOOL"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([3], [3, 3, 3]),
        ([0, 1, 3], [0, 1, 3]),
        (2, [2, 2, 2]),
        ("1:4", [1, 2, 3]),
        (["0:2", 1], [0, 1, 1]),
        (["::3", "2:3"], [0, 3, 2]),
    ],
)
@pytest.mark.parametrize("dim", [0, 1])
def test_copy_repeats_old_rows(dim: int, rows: Indices, expected: list[int], dtype: str) -> None:
    old = np.random.default_rng(0).integers(0, 2, (4, 5)).astype(DTYPES[dtype].storage)
    grew = grown(holding(old, dtype), dim, 3, {"name": "copy", "rows": rows}, STREAM, name="w")
    want = np.concatenate([old, np.take(old, expected, dim)], dim)
    np.testing.assert_array_equal(values(grew), want)
    assert (
        sum(math.prod(b - a for a, b in region) for region in grew.new_regions()[1:])
        == want.size - 20
    )


@pytest.mark.parametrize("init", ["kaiming_uniform", "xavier_normal", "default"])
def test_new_rows_take_the_fans_of_the_final_size(init: str) -> None:
    old = holding(np.zeros((500, 30)), "F32")
    whole = made((500, 60), init)
    new = values(grown(old, 1, 30, init, STREAM, name="weight"))[:, 30:]
    assert abs(new.std() / whole.std() - 1) <= 5 / math.sqrt(new.size)


@pytest.mark.parametrize("init", ["eye", "orthogonal", "dirac"])
@pytest.mark.parametrize("dim", [0, 1])
def test_new_rows_are_those_of_the_whole_final_tensor(init: str, dim: int) -> None:
    shape = (4, 4, 3) if init == "dirac" else (4, 4)
    final = tuple(size + 3 * (axis == dim) for axis, size in enumerate(shape))
    grew = values(grown(holding(np.zeros(shape), "F32"), dim, 3, init, STREAM, name="weight"))
    expected = np.take(made(final, init), [4, 5, 6], dim)
    np.testing.assert_array_equal(np.take(grew, [4, 5, 6], dim), expected)


RANDOM = ["normal", "uniform", "trunc_normal", "kaiming_uniform", "orthogonal", "rows_normal"]
OLD = holding(tall(30, 500).astype(np.float32), "BF16")
GROWN = {name: grown(OLD, 0, 300, name, STREAM, name="weight") for name in RANDOM}
EAGER = {name: GROWN[name].elements(0, 165000, Scratch()).copy() for name in RANDOM}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(RANDOM), st.integers(0, 165000), st.integers(0, 165000))
def test_values_do_not_depend_on_blocks(name: str, first: int, second: int) -> None:
    start, stop = sorted((first, second))
    found = GROWN[name].elements(start, stop, Scratch())
    np.testing.assert_array_equal(found, EAGER[name][start:stop])


@pytest.mark.parametrize("name", RANDOM)
def test_values_are_the_same_again(name: str) -> None:
    again = grown(OLD, 0, 300, name, STREAM, name="weight").elements(0, 165000, Scratch())
    np.testing.assert_array_equal(again, EAGER[name])


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(
    "stream",
    [Stream(1, "grow", "fc.weight"), Stream(0, "1", "fc.weight"), Stream(0, "grow", "fc.bias")],
    ids=str,
)
def test_values_differ_by_seed_step_and_name(name: str, stream: Stream) -> None:
    other = grown(OLD, 0, 300, name, stream, name="weight").elements(15000, 165000, Scratch())
    assert (other == EAGER[name][15000:]).mean() < 0.1


def test_chunks_of_a_stream_do_not_repeat() -> None:
    found = made((4, 65536), "normal", dtype="F64")
    assert len(np.unique(found)) == found.size


WRONG = [
    ("kaiming_unifrom", "init: 'kaiming_unifrom' is unknown; did you mean 'kaiming_uniform'"),
    ({"name": "constant"}, "init: 'val' is missing"),
    ({"std": 1}, "init: 'name' is missing"),
    ({"name": "normal", "sdt": 1}, "init: 'sdt' is unknown; did you mean 'std'"),
    ({"name": "zeros", "val": 1}, "init: 'val' is unknown; known are name"),
    ({"name": "normal", "std": -1}, "init.std: -1 is less than the minimum of 0"),
    ({"name": "normal", "std": "1"}, 'init.std: "1" is not of type number'),
    ({"name": "normal", "std": True}, "init.std: true is not of type number"),
    ({"name": "trunc_normal", "std": 0}, "init.std: 0 is less than or equal to the minimum of 0"),
    ({"name": "kaiming_normal", "mode": "fan_it"}, "init.mode: 'fan_it' is unknown; did you mean"),
    ({"name": "dirac", "groups": 0}, "init.groups: 0 is less than the minimum of 1"),
    ({"name": "copy", "rows": []}, "init.rows:"),
    ({"name": "copy", "rows": "0-5"}, r"init.rows: '0-5' is not an index like 3, or a range like"),
    ({"name": "copy", "rows": [1.5]}, r"init.rows\[0\]: 1.5 is not of type integer or string"),
]


@pytest.mark.parametrize(("init", "problem"), WRONG, ids=str)
def test_schema_rejects_mistakes_in_words(init: Any, problem: str) -> None:
    (found,) = problems_of(init, init_schema(), "init")
    assert re.match(problem, found)


@pytest.mark.parametrize(
    ("init", "problem"), [("copy", "needs 'rows'"), ("normall", "did you mean 'normal'")]
)
def test_parse_rejects_what_it_cannot_make(init: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse(init)


RIGHT = {"constant": {"val": 0.5}, "copy": {"rows": [0]}, "dirac": {"groups": 2}}


@pytest.mark.parametrize("name", INITIALISERS)
def test_parse_and_schema_accept_every_initialisation(name: str) -> None:
    init = {"name": name, **RIGHT.get(name, {})}
    Draft202012Validator(init_schema()).validate(init)
    assert parse(init).name == name
    Draft202012Validator(init_schema()).validate(name)


def test_schema_is_valid_and_takes_an_ops_own_names() -> None:
    Draft202012Validator.check_schema(init_schema())
    Draft202012Validator(init_schema("net2wider")).validate("net2wider")
    Draft202012Validator(init_schema("net2wider")).validate({"name": "net2wider"})
    assert not Draft202012Validator(init_schema()).is_valid("net2wider")


IMPOSSIBLE = [
    ("kaiming_uniform", (4,), "F32", "a fan needs at least 2 dimensions"),
    ("xavier_normal", (), "F32", "a fan needs at least 2 dimensions"),
    ("orthogonal", (4,), "F32", "needs at least 2 dimensions"),
    ("eye", (4, 4, 3), "F32", "needs 2 dimensions"),
    ("dirac", (4, 4), "F32", "needs 3 to 5 dimensions"),
    ({"name": "dirac", "groups": 3}, (4, 4, 1), "F32", "not divisible by groups 3"),
    ("normal", (4, 4), "I64", "cannot make int values"),
    ("normal", (4, 4), "BOOL", "cannot make bool values"),
    ("zeros", (4, 4), "F8_E8M0", "cannot make opaque values"),
    ("default", (4, 4), "F4", "cannot make opaque values"),
    ({"name": "constant", "val": 0.5}, (4,), "I64", "0.5 is not a value of I64"),
    ({"name": "constant", "val": 256}, (4,), "U8", "256 is not a value of U8"),
    ({"name": "constant", "val": 2}, (4,), "BOOL", "2 is not a value of BOOL"),
    ({"name": "constant", "val": 7e4}, (4,), "F16", "70000 do not fit into F16"),
    ({"name": "uniform", "b": 500}, (4,), "F8_E4M3", "500 do not fit into F8_E4M3"),
    ({"name": "normal", "std": 1e5}, (4,), "F16", "do not fit into F16"),
    ({"name": "uniform", "a": 2}, (4,), "F32", "needs a <= b"),
    ({"name": "trunc_normal", "a": 2}, (4,), "F32", "needs a < b"),
    ("mean", (4, 4), "F32", "looks at old rows"),
]


@pytest.mark.parametrize(("init", "shape", "dtype", "problem"), IMPOSSIBLE, ids=str)
def test_impossible_places_are_plan_errors(
    init: Any, shape: tuple[int, ...], dtype: str, problem: str
) -> None:
    with pytest.raises(PlanError, match=rf"^'fc.weight' is {dtype} .*{problem}"):
        fresh(TensorSpec(dtype, shape), init, STREAM, name="weight")


@pytest.mark.parametrize(
    ("init", "dtype", "problem"),
    [
        ({"name": "copy", "rows": [4]}, "F32", "row 4 cannot be copied; the old rows are 0 to 3"),
        ({"name": "copy", "rows": "2:5"}, "F32", "row 2:5 cannot be copied; the old rows are 0 to"),
        ({"name": "copy", "rows": [0, 1]}, "F32", "names 2 rows for 3 new ones"),
        ({"name": "copy", "rows": [0]}, "F4", "less than a byte"),
        ("mean", "I64", "cannot make int values"),
    ],
)
def test_impossible_growth_is_a_plan_error(init: Any, dtype: str, problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        grown(holding(np.zeros((4, 4)), dtype), 0, 3, init, STREAM, name="weight")


# By torch.nn.init: these raise for a vector, the others do not.
NEED_FANS = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "eye", "dirac")
SPEAK_FOR_VECTORS = ("default", "zeros", "ones", {"name": "constant", "val": 2}, "normal",
                     "trunc_normal", "uniform", "mean", "rows_normal")  # fmt: skip


@pytest.mark.parametrize(
    ("init", "bias_init", "name", "expected"),
    [
        ("orthogonal", None, "weight", "orthogonal"),
        ("orthogonal", None, "weight_ih_l0", "orthogonal"),
        ("orthogonal", None, "bias", "default"),
        ("orthogonal", "zeros", "bias", "zeros"),
        *((fan, None, "bias", "default") for fan in NEED_FANS),
        *((init, None, "bias_hh_l0", init) for init in SPEAK_FOR_VECTORS),
        ("zeros", "default", "bias", "default"),
        ("zeros", None, "beta", "zeros"),
        ("zeros", None, "running_var", "default"),
        ("orthogonal", "zeros", "running_var", "default"),
        ("mean", None, "bias", "mean"),
        ("mean", "zeros", "bias", "zeros"),
        ("mean", "zeros", "running_mean", "mean"),
        ({"name": "copy", "rows": [1]}, None, "bias", {"name": "copy", "rows": [1]}),
    ],
)
def test_siblings_get_their_init(init: Any, bias_init: Any, name: str, expected: Any) -> None:
    assert for_sibling(init, bias_init, name=name) == expected


@pytest.mark.parametrize("name", sorted(set(INITIALISERS) - {"copy", "mean", "rows_normal"}))
def test_empty_tensors_do_not_crash(name: str) -> None:
    init = {"name": name, **RIGHT.get(name, {})}
    for shape in [(0, 2, 3), (4, 0, 3)] if name == "dirac" else [(0, 4), (4, 0)]:
        assert made(shape, init).shape == shape
