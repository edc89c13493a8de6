"""The parameter that an optimizer holds for a block of one of the model's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from surgeon.training.errors import ManifestError

_COPIED = (
    "this is a copy of an optimizer that holds row blocks, and its blocks are none of the copied "
    "model's; start the stage for the copy, or go on from run.state_dict()"
)
# What torch itself keeps.
_GRAD: Any = nn.Parameter.grad
# Optimizers take their faster loops for parameters of these very classes alone (torch 2.13); where
# torch no longer has the list, it no longer asks.
_FAST: Any = getattr(import_module("torch.optim.optimizer"), "_foreach_supported_types", [])


class BlockParameter(nn.Parameter):
    """A view of some of a parameter's elements, whose gradient is that block of the whole's.

    Looked up whenever someone asks for it, since gradients are replaced by many: DDP puts views of
    its buckets there. A copy has no whole any more, and raises instead.
    """

    follow: Callable[[], None] | None
    is_copied: bool

    @property
    def grad(self) -> Tensor | None:
        if self.__dict__.get("is_copied"):
            raise ManifestError(_COPIED)
        if follow := self.__dict__.get("follow"):
            follow()
        return _GRAD.__get__(self)  # type: ignore[no-any-return]

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        _GRAD.__set__(self, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockParameter:
        return memo.setdefault(id(self), _copy(self.detach().clone()))  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _copy, (self.detach().clone(),)


def _copy(values: Tensor) -> BlockParameter:
    copied = BlockParameter(values)
    copied.is_copied = True
    return copied


if BlockParameter not in _FAST:
    _FAST.append(BlockParameter)
