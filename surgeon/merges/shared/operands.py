"""The tensors of one name that a merge combines: which there are, integers, guards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from surgeon.base import patterns
from surgeon.base.errors import PlanError, listed
from surgeon.draft import Draft, vectors
from surgeon.lazy import (
    Blocks,
    Blockwise,
    CompiledForm,
    Kernel,
    LazyTensor,
    Operands,
    Scratch,
    TensorSpec,
    WholeTensor,
)
from surgeon.lazy.values import beyond, is_finite, require_finite, same_values
from surgeon.numeric.dtypes import DTYPES, Array

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

Missing = Annotated[
    Literal["error", "keep"], "keep: what a model lacks stays as it is in the base model"
]
Integers = Annotated[
    Literal["first", "max", "error"],
    "what to do where integers or booleans differ; first keeps the base model's",
]
NonFinite = Annotated[Literal["error", "allow"], "what to do with NaN and Inf in an operand"]
_KEPT = "the base model keeps its own"


# Not frozen, since there is one for each tensor.
@dataclass(eq=False)
class Arithmetic:
    """How the blocks of one tensor are combined, and what has to be known of it before.

    `run` is how many elements belong together, such as a row's: kernels and statistics get whole
    runs. `held_bytes` is the most that they take besides a few arrays of a block.
    `hides_operands` is for what may have a finite result although an operand is not finite: the
    operands themselves are looked at then. `compiled` is the same arithmetic in a compiled loop,
    which looks at them by itself.
    """

    combine: Kernel
    statistics: Callable[[Operands], Any] | None = None
    # Of operands of the result's dtype, that is. Otherwise float64: one rounding of an inexact
    # float32 decides about one bf16 in 30 000.
    exact_in_float32: bool = False
    run: int = 1
    held_bytes: int = 0
    hides_operands: bool = False
    compiled: CompiledForm | None = None


@dataclass(frozen=True)
class WholeArithmetic:
    """Arithmetic on entire tensors, upcast to float64: operands in, values of their shape out.

    `spare_bytes` is what it takes besides operands and result.
    """

    combine: Callable[[Sequence[Array]], Array]
    spare_bytes: int = 0


# Of models that share fewer than one in so many names, names are of another architecture.
_MOST_OTHERS = 10


def common_names(
    draft: Draft, others: list[str], target: str | list[str], missing: Missing
) -> list[str]:
    """Return the names to merge; raises PlanError with a line for each difference."""
    names = draft.select(target)
    wrong: list[str] = []
    lacking: list[tuple[str, str]] = []
    extra: list[str] = []
    for other in others:
        tensors = draft.model(other)
        shared = sum(name in tensors for name in names)
        if missing == "error" and len(names) > 1 and _MOST_OTHERS * shared < len(names):
            ours, others_own = ([n for n in some if n not in there] for some, there in (
                (names, tensors), (tensors, draft.tensors)))  # fmt: skip
            wrong.append(
                f"model '{other}' has {shared or 'none'} of these {len(names)} tensors, but "
                f"{listed(others_own, 2)} for {listed(ours, 2)}; rename those of one side, or take "
                "models of one architecture"
            )
            continue
        for name in names:
            theirs = tensors.get(name)
            if theirs is None:
                lacking.append((name, f"'{name}' is not in model '{other}'"))
                continue
            here, there = draft.tensors[name].spec, theirs.spec
            if here is not there and not _alike(here, there):
                wrong.append(f"'{name}' is {here} here but {there} in model '{other}'")
        special = {"@vectors": vectors(tensors), "@new": ()}
        found = patterns.select(target, tensors, special=special, optional=True)
        extra += [f"'{n}' is in model '{other}' only" for n in found if n not in draft.tensors]
    if missing == "error":
        wrong += [*(line for _, line in lacking), *extra]
    if wrong:
        raise PlanError(*wrong)
    kept = {name for name, _ in lacking}
    common = [name for name in names if name not in kept]
    merged = {id(draft[name]) for name in common}
    draft.notes += [
        f"{line}; {'it stays tied' if id(draft[name]) in merged else _KEPT}"
        for name, line in lacking
    ]
    draft.notes += [f"{line}; left out" for line in extra]
    return common


def _alike(here: Any, there: Any) -> bool:
    kinds = DTYPES[here.dtype].kind, DTYPES[there.dtype].kind
    floats = kinds == ("float", "float")
    return bool(here.shape == there.shape and (floats or here.dtype == there.dtype))


@dataclass(eq=False)
class Merged:
    """The operands of one name, their models (None: the state), what to do about oddities."""

    name: str
    tensors: tuple[LazyTensor, ...]
    auxiliary: tuple[LazyTensor, ...]
    models: Sequence[str | None]
    integers: Integers
    nonfinite: NonFinite
    about: Mapping[str, Any]

    def tensor(self, draft: Draft, make: Callable[[], Arithmetic | WholeArithmetic]) -> LazyTensor:
        """Return the merged tensor; `make` is asked only where there are numbers to merge."""
        spec = self.tensors[0].spec
        kind = DTYPES[spec.dtype].kind
        if kind == "float":
            return self._floats(spec, make())
        if kind in ("int", "bool") and self.integers == "max":
            return Blockwise(spec, _largest, self.tensors)
        # Complex values and formats that are only copied have no policy: they must agree.
        policy = self.integers if kind in ("int", "bool") else "error"
        others = [model for model in self.models[1 : len(self.tensors)] if model]
        draft.check(partial(_agreement, self.name, self.tensors, others, policy))
        return self.tensors[0]

    def _floats(self, spec: TensorSpec, found: Arithmetic | WholeArithmetic) -> LazyTensor:
        operands = (*self.tensors, *self.auxiliary)
        explain = self._explain if self.nonfinite == "error" else None
        if isinstance(found, WholeArithmetic):
            combine = self._looked_at(found.combine) if explain else found.combine
            combine = partial(_whole_with_signs_of_base, combine)
            return WholeTensor(
                spec, combine, operands, found.spare_bytes, explain=explain, about=self.about
            )
        # Of values with more digits than the result's, float32 may end halfway between two results.
        is_narrow = found.exact_in_float32 and spec.dtype != "F64"
        alike = is_narrow and all(tensor.spec.dtype == spec.dtype for tensor in operands)
        working = _FLOAT32 if alike else _FLOAT64
        kernel, compiled = found.combine, found.compiled
        # Halves of equal zeros have their sign by themselves.
        if not found.exact_in_float32:
            kernel = _with_signs_of_base(kernel)
        if explain and found.hides_operands:
            look, unguarded = self._looked_at, kernel

            def kernel(blocks: Blocks, statistics: Any, out: Array) -> Array:
                return look(lambda seen: unguarded(blocks, statistics, out))(blocks)

        return Blockwise(
            spec, kernel, operands, found.statistics, working, explain, found.run,
            found.held_bytes, self.about, compiled=compiled,
        )  # fmt: skip

    def _looked_at(self, combine: Callable[[Any], Array]) -> Callable[[Any], Array]:
        """Return a kernel that looks at its operands before."""

        def look_and_combine(blocks: Sequence[Array]) -> Array:
            if not all(map(is_finite, blocks)):
                self._explain(blocks)
            return combine(blocks)

        return look_and_combine

    def _explain(self, blocks: Sequence[Array]) -> None:
        """Raise PlanError with the operand that holds NaN or Inf, or the result's overflow."""
        for block, model in zip(blocks, self.models, strict=True):
            require_finite(block, f"'{self.name}'" + (f" in model '{model}'" if model else ""))
        raise beyond(self.name, self.tensors[0].spec.dtype)


def _with_signs_of_base(combine: Kernel) -> Kernel:
    """Return a kernel that keeps the base model's bits where its result is equal to it.

    Only zeros are equal and have other bits: a change of nothing may turn the base's -0 into 0.
    """

    def kernel(blocks: Blocks, statistics: Any, out: Array) -> Array:
        return _keep_signs(combine(blocks, statistics, out), blocks[0])

    return kernel


def _whole_with_signs_of_base(
    combine: Callable[[Sequence[Array]], Array], values: Sequence[Array]
) -> Array:
    return _keep_signs(combine(values), values[0])


def _keep_signs(result: Array, base: Array) -> Array:
    zeros = result == 0
    if zeros.any():
        np.logical_and(zeros, base == 0, out=zeros)
        np.copyto(result, base, where=zeros)
    return result


def _largest(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.copyto(out, blocks[0])
    for block in blocks[1:]:
        np.maximum(out, block, out=out)
    return out


def _agreement(
    name: str,
    tensors: tuple[LazyTensor, ...],
    others: list[str],
    policy: Integers,
    scratch: Scratch,
) -> str | None:
    differing = [
        other
        for other, tensor in zip(others, tensors[1:], strict=True)
        if not same_values(tensors[0], tensor, scratch)
    ]
    if not differing:
        return None
    listed = ", ".join(f"'{other}'" for other in differing)
    what = f"'{name}' ({tensors[0].spec.dtype}) differs in model {listed}"
    if policy == "first":
        return f"{what}; the base model's is kept"
    if DTYPES[tensors[0].spec.dtype].kind in ("int", "bool"):
        raise PlanError(f'{what}; "integers": "first" keeps the base model\'s')
    raise PlanError(f"{what} and cannot be merged; leave it out of the target")


def total_weight(weights: Iterable[float]) -> float:
    """Return the sum of weights, to divide by; raises PlanError where it is zero."""
    values = list(weights)
    total = float(sum(values))
    if abs(total) <= 1e-12 * sum(abs(value) for value in values):
        raise PlanError(f"weights {values} add up to zero")
    return total


def within(blocks: Sequence[Array], out: Array) -> Array:
    """Keep a convex combination between its operands, so that rounding leaves equal ones alone."""
    least, most = blocks[0].copy(), blocks[0].copy()
    for block in blocks[1:]:
        np.minimum(least, block, out=least)
        np.maximum(most, block, out=most)
    np.clip(out, least, most, out=out)
    return np.add(out, 0.0, out=out)  # which zero a minimum is depends on the processor
