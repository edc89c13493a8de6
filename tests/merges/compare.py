"""What tests of merges share: relatives of one network, rounding, and naive vector arithmetic."""

from __future__ import annotations

import math

import torch

from tests.network import correctly_rounded

FLOATS = [torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32, torch.float64]


def relatives(count, dtype, *, size=200, apart=0.3, seed=0):
    """Tensors of one origin; the first is that origin."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.randn(size, generator=generator, dtype=torch.float64)
    common = torch.randn(size, generator=generator, dtype=torch.float64)
    others = [
        origin + apart * (common + torch.randn(size, generator=generator, dtype=torch.float64))
        for _ in range(count - 1)
    ]
    return [tensor.to(dtype) for tensor in (origin, *others)]


def families(count, **options):
    """Relatives of every dtype, all of one checkpoint, by name."""
    return {str(dtype): relatives(count, dtype, **options) for dtype in FLOATS}


def given(bench, tensors):
    """Write the first as the state, the others as models b, c, ...; return their names.

    Instead of tensors, families of them.
    """
    named = tensors if isinstance(tensors, dict) else {"w": tensors}
    state, *others = (
        dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)
    )
    names = [chr(ord("b") + i) for i in range(len(others))]
    bench.given(state, **dict(zip(names, others, strict=True)))
    return names


def assert_all_rounded(made, reference, families):
    """What was made of each family is its reference."""
    for name, tensors in families.items():
        assert_rounded(made[name], reference(tensors))


def assert_rounded(found, reference):
    """The values of a reference in float64, each rounded once; float64 to its last few bits."""
    assert found.shape == reference.shape
    if found.dtype == torch.float64:
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-13)
        return
    expected = correctly_rounded(reference, found.dtype)
    wrong = (found.double() != expected.double()).sum()
    assert wrong == 0, f"{wrong} of {found.numel()} differ"


# Vectors as lists of Python floats, sums exact.


def numbers(tensor):
    return tensor.double().flatten().tolist()


def dot(a, b):
    return math.fsum(p * q for p, q in zip(a, b, strict=True))


def norm(a):
    return math.sqrt(dot(a, a))


def combined(factors, vectors):
    return [
        math.fsum(f * x for f, x in zip(factors, row, strict=True))
        for row in zip(*vectors, strict=True)
    ]


def minus(a, b):
    return combined([1.0, -1.0], [a, b])


def plus(a, b):
    return combined([1.0, 1.0], [a, b])


def arc(t, a, b):
    """Shoemake's formula, with a straight line where vectors are parallel."""
    norms = norm(a) * norm(b)
    cosine = max(-1.0, min(1.0, dot(a, b) / norms)) if norms else 1.0
    if abs(cosine) > 0.9995:
        return combined([1 - t, t], [a, b])
    angle = math.acos(cosine)
    return combined([math.sin((1 - t) * angle) / math.sin(angle),
                     math.sin(t * angle) / math.sin(angle)], [a, b])  # fmt: skip


def polar(matrix):
    """The nearest matrix of orthonormal columns (rows, where it is wide), by Newton's iteration."""
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    left, square = torch.linalg.qr(matrix)
    for _ in range(60):
        square = (square + torch.linalg.inv(square).T) / 2
    return left @ square


def shaped(tensors, *shape):
    """Families of tensors, each viewed in a shape."""
    return {n: [t.view(shape) for t in family] for n, family in tensors.items()}


def tensor_of(values, like):
    return torch.tensor(values, dtype=torch.float64).reshape(like.shape)
