"""Training parts of a parameter exactly: the other elements stay bit-identical, step by step.

Masking gradients is not enough, since weight decay and momentum move masked rows, and restoring
rows after each step is not either, since the clip norm and other rows' moments change. So the
optimizer holds a parameter per block, and what is here keeps those and the model's own in step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surgeon.base.regions import Region
from surgeon.training.blocks import BlockParameter
from surgeon.training.errors import ManifestError
from surgeon.training.held import Held
from surgeon.training.replaced import is_replaced
from surgeon.training.sharded import alike, index, local, owned, swap_storage


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
        self._name = blocks[0].name
        self._module, self._attribute = holder
        here = owned(self._name, parameter)
        self._frozen = [index(region, here) for region in frozen]
        self._parts = [(held, index(held.region, here)) for held in blocks]
        self._copies = [(held, part) for held, part in self._parts if held.is_copy]
        self._taken: Tensor | None = None
        self._released = False
        for held in blocks:
            if isinstance(held.parameter, BlockParameter):  # FSDP2's are of a class of their own
                held.parameter.follow = self.follow
        # A tensor's register_hook would never be called for FSDP2's parameters.
        self._handle = parameter.register_post_accumulate_grad_hook(self)  # type: ignore[no-untyped-call]

    def __call__(self, parameter: Tensor) -> None:
        """Take the gradients after a backward pass; torch calls this."""
        cleared = any(held.parameter.grad is None for held in self.blocks)
        if cleared and self._taken is not None and parameter.grad is self._taken:
            raise ManifestError(
                f"the gradient of a part of '{self._name}' was cleared, and that of the whole was "
                "not; clear gradients with zero_grad() of the optimizer or the model"
            )
        self.rebind()
        self._take_gradients()

    def require_parameter(self) -> None:
        """Raise ManifestError where the model no longer holds what this stage trains."""
        if self._released:
            raise ManifestError(
                f"this optimizer trained a part of '{self._name}' in a stage that has ended; step "
                "the one of the last start"
            )
        if self._module._parameters.get(self._attribute) is not self.parameter:
            raise ManifestError(is_replaced(self._name))

    def follow(self) -> None:
        """Have the blocks' gradients be those of a gradient that was put there since."""
        if not self._released and self.parameter.grad is not self._taken:
            self._take_gradients()

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Give every block its part of the parameter's gradient, and no gradient to the rest."""
        self._taken = self.parameter.grad
        if self._taken is None:
            for held in self.blocks:
                held.parameter.grad = None
            return
        if self._taken.layout != torch.strided:
            raise ManifestError(
                f"'{self._name}' has a sparse gradient; row blocks need a dense one"
            )
        gradient = local(self._taken)
        for part in self._frozen:
            gradient[part].zero_()
        for held, part in self._parts:
            # In the gradient's own memory: scaling one for AMP or clipping scales the other.
            held.parameter.grad = alike(gradient[part], held.region, self.parameter)

    @torch.no_grad()
    def rebind(self) -> None:
        """Follow a parameter whose storage was swapped, as `.to()` and `.cuda()` do."""
        weights = local(self.parameter)
        for held, part in self._parts:
            there, own = weights[part], local(held.parameter)
            stale = own.device != there.device or own.dtype != there.dtype
            if held.is_copy and stale:
                there = there.clone(memory_format=torch.contiguous_format)
            if stale or (not held.is_copy and own.data_ptr() != there.data_ptr()):
                swap_storage(held.parameter, there)
                self._taken = None

    @torch.no_grad()
    def before_step(self) -> None:
        """Have the gradients, contiguous as fused kernels need them; the last before a step."""
        # Others since, as where DDP puts views of its buckets; else they may have been worked on.
        if self._taken is None or self.parameter.grad is not self._taken:
            self._take_gradients()
        for held, _ in self._copies:
            if held.parameter.grad is not None:
                # Of the local part: a DTensor takes itself for contiguous.
                gradient = local(held.parameter.grad).contiguous()
                held.parameter.grad = alike(gradient, held.region, self.parameter)

    def clear(self, set_to_none: bool) -> None:
        """Clear the gradient of the whole parameter, after the optimizer did that of the blocks."""
        self._taken = None
        if self.parameter.grad is not None:
            if set_to_none:
                self.parameter.grad = None
            else:
                self.parameter.grad.detach().zero_()

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the blocks that are copies from the parameter."""
        self.rebind()
        for held, part in self._copies:
            local(held.parameter).copy_(local(self.parameter)[part])

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the blocks that are copies into the parameter."""
        for held, part in self._copies:
            local(self.parameter)[part].copy_(local(held.parameter))

    def release(self) -> None:
        """Let go of the parameter: its gradient is whole again, and the blocks have none."""
        self._released = True
        self._taken = None  # it is as large as the parameter
        self._handle.remove()
        for held in self.blocks:
            held.parameter.grad = None


def release_all(parameter: nn.Parameter) -> None:
    """Let go of a parameter, whichever run it was that holds blocks of it."""
    hooks: Mapping[int, object] | None = parameter._post_accumulate_grad_hooks
    for hook in list((hooks or {}).values()):
        if isinstance(hook, RowBlocks):
            hook.release()


def connect(optimizer: Optimizer, parameters: Sequence[RowBlocks]) -> None:
    """Make an optimizer's steps and `zero_grad` keep row blocks and their parameters in step."""
    if not parameters:
        return

    def before(
        _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        for blocks in parameters:
            blocks.require_parameter()
            blocks.refresh()
            _move_state(optimizer, blocks)
        # torch passes the optimizer itself as the first argument.
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
            blocks.clear(set_to_none)

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
