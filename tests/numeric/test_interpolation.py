"""Interpolation against torch.nn.functional.interpolate, for every pair of sizes up to 20."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from surgeon.numeric.interpolation import resampled, taps

SIZES = list(itertools.product(range(1, 21), repeat=2))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_smooth_modes_are_torchs_to_rounding(mode, align_corners, antialias):
    words = {"align_corners": align_corners, "antialias": antialias}
    generator = torch.Generator().manual_seed(0)
    for source, target in SIZES:
        # Of images one pixel wide, torch 2.13 with antialias repeats the first value.
        image = torch.randn(2, 3, source, 2, dtype=torch.float64, generator=generator)
        expected = interpolate(image, size=(target, 2), mode=mode, **words)
        found = resampled(image.numpy(), 2, taps(mode, source, target, **words))
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-14)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_modes_are_torchs(mode):
    for source, target in [*SIZES, (90, 129), (45, 128), (197, 50)]:
        image = torch.arange(source, dtype=torch.float32)[None, None, :, None]
        expected = interpolate(image, size=(target, 1), mode=mode)
        found = resampled(image.double().numpy(), 2, taps(mode, source, target))
        np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("align_corners", [False, True])
def test_linear_is_torchs(align_corners):
    for source, target in SIZES:
        line = torch.randn(2, 3, source, dtype=torch.float64)
        expected = interpolate(line, size=target, mode="linear", align_corners=align_corners)
        found = resampled(
            line.numpy(), 2, taps("linear", source, target, align_corners=align_corners)
        )
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-14)


@pytest.mark.parametrize("mode", ["linear", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_weights_sum_to_one(mode, antialias):
    for source, target in SIZES:
        weight = taps(mode, source, target, antialias=antialias).weight
        np.testing.assert_allclose(weight.sum(1), 1, rtol=0, atol=1e-14)
