"""Naive merges in plain Python floats, element by element, and what their tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tests.network import correctly_rounded

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
NAMES = list("acdefghi")

Numbers = list[float]


def fine_tuned(count, dtype, shape=(40, 25), change=0.1, seed=0):
    """A base and models near it, each changed on its own."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    changes = [change * torch.randn(shape, generator=generator) for _ in range(count)]
    return [tensor.to(dtype) for tensor in (base, *(base + change for change in changes))]


def given(bench, tensors):
    """Write tensors as `w` of the state and the models; returns the models' names."""
    models = {name: {"w": tensor} for name, tensor in zip(NAMES, tensors[1:], strict=False)}
    assert len(models) == len(tensors) - 1
    bench.given({"w": tensors[0]}, **models)
    return list(models)


def merged(bench, tensors, op, **parameters):
    """What a merge makes of `w`."""
    models = given(bench, tensors)
    return bench.operate({"op": op, "models": models, **parameters})["w"]


def of_dtypes(count, dtypes, *arguments, make=fine_tuned):
    """A base and models of each dtype, {name: tensors}: what is merged at once."""
    return {str(dtype): make(count, dtype, *arguments) for dtype in dtypes}


def merged_all(bench, families, op, **parameters):
    """What a merge makes of tensors of several names, given as {name: a base and models}."""
    base, *models = (
        dict(zip(families, row, strict=True)) for row in zip(*families.values(), strict=True)
    )
    names = NAMES[: len(models)]
    bench.given(base, **dict(zip(names, models, strict=True)))
    return bench.operate({"op": op, "models": names, **parameters}).tensors


def assert_all_rounded(made, families, reference):
    """What was made of each name's tensors is their reference."""
    for name, tensors in families.items():
        assert_rounded(made[name], reference(tensors))


def numbers(tensor: torch.Tensor) -> Numbers:
    return tensor.double().flatten().tolist()


def task_vectors(tensors: Sequence[torch.Tensor]) -> list[Numbers]:
    base = numbers(tensors[0])
    return [[x - b for x, b in zip(numbers(t), base, strict=True)] for t in tensors[1:]]


def descending(values: Numbers) -> list[int]:
    """Positions by magnitude, the first of equal ones first."""
    return sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))


def only(values: Numbers, positions: Sequence[int]) -> Numbers:
    kept = set(positions)
    return [value if i in kept else 0.0 for i, value in enumerate(values)]


def largest(values: Numbers, density: float) -> Numbers:
    return only(values, descending(values)[: max(1, int(density * len(values)))])


def middle(values: Numbers, density: float, gamma: float) -> Numbers:
    """Ascending ranks n - top - keep up to n - top."""
    n = len(values)
    keep, top = int(density * n), int(gamma * n)
    ascending = descending(values)[::-1]
    return only(values, ascending[max(0, n - top - keep) : n - top])


def add_up(changes: Sequence[Numbers], weights: Numbers, normalize: bool) -> Numbers:
    total = sum(weights) if normalize else 1.0
    return [
        sum(w * d for w, d in zip(weights, row, strict=True)) / total
        for row in zip(*changes, strict=True)
    ]


def agree(changes: Sequence[Numbers], weights: Numbers, normalize: bool) -> Numbers:
    """Elect a sign per element, and add up what has it."""
    made = []
    for row in zip(*changes, strict=True):
        terms = [w * d for w, d in zip(weights, row, strict=True)]
        sign = 1.0 if sum(terms) >= 0 else -1.0
        chosen = [i for i, term in enumerate(terms) if term * sign > 0]
        total = sum(terms[i] for i in chosen)
        made.append(total / sum(weights[i] for i in chosen) if normalize and chosen else total)
    return made


Combine = Callable[[Sequence[Numbers], Numbers, bool], Numbers]


def added(tensors, changes: Sequence[Numbers], combine: Combine, weights=None, scale=1.0,
          normalize=False):  # fmt: skip
    """The base plus `scale` times what is combined of pruned task vectors, in float64."""
    mixed = combine(changes, weights or [1.0] * len(changes), normalize)
    made = [b + scale * m for b, m in zip(numbers(tensors[0]), mixed, strict=True)]
    return torch.tensor(made, dtype=torch.float64).view(tensors[0].shape)


def assert_rounded(found, reference):
    """Every result is the nearest value to the reference; float64 to the last few bits."""
    if found.dtype == torch.float64:
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-13)
    else:
        expected = correctly_rounded(reference, found.dtype)
        wrong = int((found.double() != expected.double()).sum())
        assert wrong == 0, f"{wrong} of {found.numel()} differ"


def kept(bench, shape, op, **parameters):
    """Which elements a random merge keeps of each model, found by merging ones into zeros.

    Only where that does not depend on the values, but on seed, step, tensor and model.
    """
    masks = []
    for model in range(2):
        tensors = [torch.zeros(shape) for _ in range(3)]
        tensors[model + 1] += 1
        made = merged(bench, tensors, op, rescale="none", **parameters)
        masks.append([bool(value) for value in numbers(made)])
    return masks


def masked(changes: Sequence[Numbers], masks) -> list[Numbers]:
    return [
        [d if keep else 0.0 for d, keep in zip(change, mask, strict=True)]
        for change, mask in zip(changes, masks, strict=True)
    ]


def rescaled(changes: Sequence[Numbers], pruned: Sequence[Numbers], densities, rescale):
    """Pruned task vectors, made up for what was dropped."""
    if rescale == "none":
        return list(pruned)
    if rescale == "paper":
        return [[d / p for d in s] for s, p in zip(pruned, densities, strict=True)]
    sums = [(sum(map(abs, d)), sum(map(abs, s))) for d, s in zip(changes, pruned, strict=True)]
    return [[d * (a / b) for d in s] for s, (a, b) in zip(pruned, sums, strict=True)]
