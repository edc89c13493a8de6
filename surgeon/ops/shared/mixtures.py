"""Mixtures of experts: what belongs to each expert, and what the router has of it.

Experts are numbered modules (`experts.3.w1.weight`), or entries of tensors that hold all of them
(`experts.gate_up_proj`, `input_linear.weight`). What lies beside them and has an entry for each is
the router's: rows, biases, corrections.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from surgeon.base.errors import PlanError, listed
from surgeon.draft import Draft, Tensors
from surgeon.lazy import LazyTensor, TensorSpec

EXPERTS_TARGET = "**.(experts|input_linear|output_linear)"
_NUMBERED = re.compile(r"(?P<block>.*)\.experts\.(?P<number>\d+)\.(?P<rest>.+)")
_FUSED = re.compile(r"(?P<block>.*)\.(experts\.[^.]*\D[^.]*(\..+)?|(input|output)_linear\.weight)")
# What lies beside the experts and is not the router's: experts that all tokens go through.
_ROUTER = re.compile(r"(gate|router)(\..+)?")
_SHARED = re.compile(r"(shared_expert|shared_mlp|residual_mlp|coefficient).*")


@dataclass(frozen=True)
class Mixture:
    """The experts of one layer.

    `block` is the module that holds them. `numbered` are the tensors of each expert by the rest of
    their names, `fused` those that hold all experts along dimension 0; `routing` are the router's,
    each with the dimension that counts experts.
    """

    block: str
    count: int
    numbered: Mapping[int, Mapping[str, str]]
    fused: tuple[str, ...]
    routing: Mapping[str, int]

    @property
    def layer(self) -> str:
        """The module that the block lies in, by which statistics are known."""
        return self.block.rpartition(".")[0]

    def name(self, number: int, rest: str) -> str:
        """Return a tensor's name as that of another expert."""
        return f"{self.block}.experts.{number}.{rest}"


def mixtures(draft: Draft, target: str | list[str]) -> list[Mixture]:
    """Return the mixtures that a target selects; raises PlanError for what is not understood."""
    numbered: dict[str, dict[int, dict[str, str]]] = {}
    fused: dict[str, list[str]] = {}
    for name in draft.select(target):
        if found := _NUMBERED.fullmatch(name):
            experts = numbered.setdefault(found["block"], {})
            experts.setdefault(int(found["number"]), {})[found["rest"]] = name
        elif found := _FUSED.fullmatch(name):
            fused.setdefault(found["block"], []).append(name)
    problems: list[str] = []
    made: list[Mixture] = []
    for block in dict.fromkeys((*numbered, *fused)):
        try:
            made.append(_mixture(draft, block, numbered.get(block, {}), fused.get(block, [])))
        except PlanError as error:
            problems += error.problems
    if not made and not problems and not draft.optional:
        problems.append(f"{target!r} selects no experts: modules 'experts.0', 'experts.1', ..., or "
                        "tensors 'experts.NAME' that hold all of them")  # fmt: skip
    if problems:
        raise PlanError(*problems)
    return made


def _mixture(
    draft: Draft, block: str, numbered: dict[int, dict[str, str]], fused: list[str]
) -> Mixture:
    if numbered and fused:
        raise PlanError(
            f"'{block}' has experts of their own and tensors that hold several: {listed(fused)}"
        )
    if numbered:
        count = max(numbered) + 1
        if missing := [number for number in range(count) if number not in numbered]:
            raise PlanError(f"'{block}' has no expert {missing[0]}, but an expert {count - 1}")
        kinds = [_kind(draft, numbered[number]) for number in range(count)]
        if odd := next((n for n, kind in enumerate(kinds) if kind != kinds[0]), None):
            raise PlanError(f"'{block}': expert {odd} has other tensors, dtypes or shapes than 0")
    else:
        sizes = {draft.spec(name).shape[:1] for name in fused}
        if len(sizes) != 1 or () in sizes:
            shown = ", ".join(f"'{name}' is {draft.spec(name)}" for name in fused)
            raise PlanError(f"'{block}': dimension 0 does not count experts: {shown}")
        ((count,),) = sizes
    routing = dict(_routing(draft.tensors, block, count, {*fused}))
    if not routing:
        raise PlanError(
            f"'{block}' has {count} experts and no router beside them, such as '{block}.gate'; "
            "target what holds both"
        )
    return Mixture(block, count, numbered, tuple(fused), routing)


def _kind(draft: Draft, tensors: Mapping[str, str]) -> dict[str, TensorSpec]:
    return {rest: draft.spec(name) for rest, name in tensors.items()}


def _routing(
    tensors: Tensors, block: str, count: int, fused: set[str]
) -> Iterator[tuple[str, int]]:
    """Yield the router's tensors; raises PlanError for one that counts something else."""
    prefix = f"{block}."
    for name, tensor in tensors.items():
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix) or rest.startswith("experts.") or name in fused:
            continue
        if _SHARED.fullmatch(rest):
            continue
        shape = tensor.spec.shape
        dims = [dim for dim, size in enumerate(shape) if size == count]
        if dims:
            yield name, dims[0]
        elif _ROUTER.fullmatch(rest):
            raise PlanError(
                f"'{name}' is {tensor.spec}, beside {count} experts: no dimension counts them"
            )


def rebuilt(
    tensors: Tensors, changes: Sequence[tuple[Mixture, Mapping[str, LazyTensor]]]
) -> Tensors:
    """Return tensors with each mixture's own replaced by others, where its first one was."""
    own_of: dict[str, int] = {}
    for number, (mixture, _) in enumerate(changes):
        own = [name for expert in mixture.numbered.values() for name in expert.values()]
        own_of |= dict.fromkeys([*own, *mixture.fused, *mixture.routing], number)
    result: Tensors = {}
    done: set[int] = set()
    for name, tensor in tensors.items():
        if (owner := own_of.get(name)) is None:
            result[name] = tensor
        elif owner not in done:
            done.add(owner)
            result |= changes[owner][1]
    return result
