"""What an optimizer holds for a stage: whole parameters, or row blocks of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surgeon.regions import Region, intersection, whole, without
from surgeon.training.cover import Block
from surgeon.training.errors import ManifestError

State = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Held:
    """One parameter of an optimizer: the model's own, or one that stands for a block of it."""

    name: str
    region: Region
    parameter: nn.Parameter
    state: State = field(default_factory=dict)


def slices(region: Region) -> tuple[slice, ...]:
    """Return a region as an index."""
    return tuple(slice(start, stop) for start, stop in region)


def hold(block: Block, parameter: nn.Parameter, state: State) -> Held:
    """Return what the optimizer is to hold for a block; a part of a parameter is a leaf of its own.

    A contiguous block is a view of the model's parameter. Any other has a contiguous copy, which
    `RowBlocks` writes back: a fused kernel given a strided view writes into its neighbours.
    """
    if block.region == whole(parameter.shape):
        return Held(block.name, block.region, parameter, state)
    view = parameter.detach()[slices(block.region)]
    if not view.is_contiguous():
        view = view.clone(memory_format=torch.contiguous_format)
    return Held(block.name, block.region, nn.Parameter(view), state)


def carried(block: Block, earlier: Sequence[tuple[Held, State]]) -> Iterator[tuple[Block, State]]:
    """Split a block by what the optimizer of the stage before held, each with its own state.

    Elements trained before keep their state, step count included; all others start clean. Those
    cannot share one optimizer parameter: zero moments under an old step count make Adam's first
    updates up to 6.6 times too long.
    """
    rest = [block.region]
    for held, state in earlier:
        shared = intersection(block.region, held.region) if state else None
        if shared is not None:
            yield Block(block.name, shared), _state_of(shared, held, state)
            rest = [piece for region in rest for piece in without(region, shared)]
    for region in rest:
        yield Block(block.name, region), {}


def _state_of(region: Region, held: Held, state: Mapping[str, Any]) -> State:
    """Return the state of some of the elements that an optimizer's parameter stands for.

    Tensors of the parameter's shape, and factored ones with dimensions of size 1, are cut to the
    region; scalars are copied. Raises ManifestError for state of any other shape.
    """
    shape = [stop - start for start, stop in held.region]
    index = [
        slice(start - origin, stop - origin)
        for (start, stop), (origin, _) in zip(region, held.region, strict=True)
    ]
    part: State = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            if isinstance(value, (list, tuple, dict)):
                raise _cannot_carry(held, key, type(value).__name__)
            part[key] = value
        elif value.numel() == 1 and value.ndim != len(shape):
            part[key] = value.clone()
        elif value.ndim == len(shape) and all(
            size in (1, expected) for size, expected in zip(value.shape, shape, strict=True)
        ):
            cut = tuple(
                slice(None) if size == 1 else part_of
                for size, part_of in zip(value.shape, index, strict=True)
            )
            part[key] = value[cut].clone(memory_format=torch.contiguous_format)
        else:
            raise _cannot_carry(held, key, f"{tuple(value.shape)}")
    return part


def _cannot_carry(held: Held, key: str, what: str) -> ManifestError:
    return ManifestError(
        f"optimizer_state: 'carry' cannot carry '{key}' ({what}) of '{held.name}', which is not "
        "kept per element; reset it"
    )


class RowBlocks:
    """Keeps the blocks of one parameter and the optimizer's parameters for them in step.

    It is the parameter's gradient hook: after each backward pass every block's gradient is the
    block of the full one, and what no block trains has a gradient of zero, so that it counts in
    no clip norm. Blocks that are copies are refreshed before a step and written back after it.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        blocks: Sequence[Held],
        frozen: Sequence[Region],
        holder: tuple[nn.Module, str],
    ) -> None:
        self.parameter = parameter
        self.blocks = blocks
        self.frozen = frozen
        self._module, self._attribute = holder
        self._copies = [
            held for held in blocks if held.parameter.data_ptr() != self._there(held).data_ptr()
        ]
        self._released = False
        self._handle = parameter.register_post_accumulate_grad_hook(self)  # type: ignore[no-untyped-call]

    def _there(self, held: Held) -> Tensor:
        return self.parameter.detach()[slices(held.region)]

    def __call__(self, parameter: Tensor) -> None:
        """Take the gradients after a backward pass; torch calls this."""
        self.take_gradients()

    def require_parameter(self) -> None:
        """Raise ManifestError where the model no longer holds what this stage trains."""
        if self._released:
            raise ManifestError(
                f"this optimizer trained a part of '{self.blocks[0].name}' in a stage that has "
                "ended; step the one of the last start"
            )
        if self._module._parameters.get(self._attribute) is not self.parameter:
            raise ManifestError(
                f"'{self.blocks[0].name}' is another parameter than when the stage was started "
                "(load_state_dict with assign=True replaces parameters); load, then start"
            )

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Give every block its part of the parameter's gradient, and no gradient to the rest."""
        self.rebind()
        gradient = self.parameter.grad
        if gradient is None:
            for held in self.blocks:
                held.parameter.grad = None
            return
        if gradient.layout != torch.strided:
            raise ManifestError(
                f"'{self.blocks[0].name}' has a sparse gradient; row blocks need a dense one"
            )
        for region in self.frozen:
            gradient[slices(region)].zero_()
        for held in self.blocks:
            # In the gradient's own memory: scaling one for AMP or clipping scales the other.
            held.parameter.grad = gradient.detach()[slices(held.region)]

    @torch.no_grad()
    def rebind(self) -> None:
        """Follow a parameter whose storage was swapped, as `.to()` and `.cuda()` do."""
        for held in self.blocks:
            there = self._there(held)
            own = held.parameter
            if held in self._copies:
                if own.device != there.device or own.dtype != there.dtype:
                    own.grad = None
                    own.data = there.clone(memory_format=torch.contiguous_format)
            elif own.data_ptr() != there.data_ptr() or own.device != there.device:
                own.grad = None
                own.data = there

    @torch.no_grad()
    def before_step(self) -> None:
        """Make gradients contiguous, as fused kernels need them; the last thing before a step."""
        self.take_gradients()
        for held in self._copies:
            if held.parameter.grad is not None:
                held.parameter.grad = held.parameter.grad.contiguous()

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the blocks that are copies from the parameter."""
        self.rebind()
        for held in self._copies:
            held.parameter.copy_(self._there(held))

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the blocks that are copies into the parameter."""
        for held in self._copies:
            self._there(held).copy_(held.parameter)

    def release(self) -> None:
        """Let go of the parameter: its gradient is whole again, and the blocks have none."""
        self._released = True
        self._handle.remove()
        for held in self.blocks:
            held.parameter.grad = None


def release_all(parameter: nn.Parameter) -> None:
    """Let go of a parameter whichever run it was that holds blocks of it."""
    hooks: Mapping[int, object] | None = parameter._post_accumulate_grad_hooks
    for hook in list((hooks or {}).values()):
        if isinstance(hook, RowBlocks):
            hook.release()


def connect(optimizer: Optimizer, parameters: Sequence[RowBlocks]) -> None:
    """Make an optimizer's steps and `zero_grad` keep row blocks and their parameters equal."""
    if not parameters:
        return

    def before(
        _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        for blocks in parameters:
            blocks.require_parameter()
            _move_state(optimizer, blocks)
            blocks.refresh()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            for blocks in parameters:
                blocks.before_step()
            return None

        def evaluated() -> Any:
            for blocks in parameters:
                blocks.write_back()
            loss = closure()
            for blocks in parameters:
                blocks.before_step()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluated}
        return (args[0], evaluated, *args[2:]), kwargs

    def after(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for blocks in parameters:
            blocks.write_back()

    clear = optimizer.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        clear(set_to_none)
        for blocks in parameters:
            gradient = blocks.parameter.grad
            if gradient is not None:
                if set_to_none:
                    blocks.parameter.grad = None
                else:
                    gradient.detach().zero_()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    optimizer.zero_grad = zero_grad  # type: ignore[method-assign]


def _move_state(optimizer: Optimizer, blocks: RowBlocks) -> None:
    """Move the state of blocks along with a parameter that has moved to another device."""
    device = blocks.parameter.device
    own = {id(held.parameter) for held in blocks.blocks}
    for group in optimizer.param_groups:
        # As torch does when it loads state: other step counts stay on the CPU.
        moves_counts = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            if id(parameter) not in own:
                continue
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and (value.ndim or moves_counts):
                    state[key] = value.to(device)
