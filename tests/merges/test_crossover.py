"""crossover: against a complex transform by torch and a filter made frequency by frequency."""

import itertools

import pytest
import torch

from tests.merges.compare import FLOATS, assert_rounded, given
from tests.network import assert_identical


def step(**parameters):
    return {"op": "crossover", "models": ["b"], **parameters}


def pair(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator).to(dtype) for _ in "ab"]


def reference(ours, theirs, t, width=0.0):
    shape = ours.shape
    places = list(itertools.product(*map(range, shape)))
    radii = [
        sum((2 * min(k, n - k) / n) ** 2 for k, n in zip(p, shape, strict=True)) for p in places
    ]
    shares = []
    for radius in radii:
        larger = sum(1 for r in radii if r > radius + 1e-10)
        same = sum(1 for r in radii if abs(r - radius) <= 1e-10)
        u = (larger + same / 2) / len(radii)
        shares.append(min(max((t * (1 + width) - u) / width, 0), 1) if width else float(u < t))
    mask = torch.tensor(shares, dtype=torch.float64).reshape(shape)
    first, second = (torch.fft.fftn(tensor.double()) for tensor in (ours, theirs))
    mixed = torch.fft.ifftn((1 - mask) * first + mask * second)
    assert mixed.imag.abs().max() < 1e-12
    return mixed.real


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(30,), (31,), (6, 9), (9, 1), (4, 3, 3, 2)])
@pytest.mark.parametrize(("t", "width"), [(0.5, 0.0), (0.2, 0.3), (0.7, 5.0)])
def test_frequencies_are_those_of_torch(bench, dtype, shape, t, width):
    tensors = pair(*shape, dtype=dtype)
    given(bench, tensors)
    assert_rounded(bench.operate(step(t=t, width=width))["w"], reference(*tensors, t, width))


@pytest.mark.parametrize("width", [0, 0.4])
def test_shares_of_nothing_and_of_everything_are_the_models(bench, width):
    ours, theirs = pair(5, 7, dtype=torch.float32)
    given(bench, [ours, theirs])
    assert_identical(bench.operate(step(t=0, width=width)).tensors, {"w": ours})
    torch.testing.assert_close(bench.operate(step(t=1, width=width))["w"], theirs)


def test_low_frequencies_are_the_base_models(bench):
    ours, theirs = pair(64)
    given(bench, [ours, theirs])
    made = bench.operate(step(t=0.5))["w"]
    spectra = [torch.fft.rfft(tensor) for tensor in (ours, theirs, made)]
    torch.testing.assert_close(spectra[2][:16], spectra[0][:16])
    torch.testing.assert_close(spectra[2][18:], spectra[1][18:])


def test_a_wide_change_is_an_interpolation_and_so_are_numbers(bench):
    first, second = (
        {"w": pair(8, 8)[0], "n": torch.tensor(1.0)},
        {"w": pair(8, 8)[1], "n": torch.tensor(3.0)},
    )
    bench.given(first, b=second)
    made = bench.operate(step(t=0.25, width=1e9))
    torch.testing.assert_close(made["w"], torch.lerp(first["w"], second["w"], 0.25))
    assert made["n"] == 1.5
