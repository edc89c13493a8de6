"""Modules that stay in evaluation mode although the loop calls `model.train()`."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from surgeon.training.errors import ManifestError


class StaysInEvaluation(nn.Module):
    """Mixed into a frozen normalisation layer's class, so that its statistics stay as they are.

    The class is swapped, not wrapped, which leaves state_dict keys, hooks and the object itself
    alone, and goes along where the module is copied, pickled or compiled.
    """

    def train(self, mode: bool = True) -> StaysInEvaluation:
        return super().train(False)

    def reset_running_stats(self) -> None:
        """Raise: torch's update_bn resets statistics that would then never be collected."""
        raise ManifestError(
            f"the running statistics of a {original_class(self).__name__} are frozen in this "
            "stage; update those of a model that no stage was started for"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made on the fly: by its name pickle would not find it again.
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        return (_made, (original_class(self),), *reduced[2:])


# mypy takes no class of modules for hashable: nn.Module annotates its __hash__ otherwise.
@cache
def _staying(original: Any) -> Any:
    return type(f"{original.__name__}InEvaluation", (StaysInEvaluation, original), {})


def _made(original: Any) -> Any:
    staying = _staying(original)
    return staying.__new__(staying)


def original_class(module: nn.Module) -> Any:
    """Return the class that a module had before `keep_in_evaluation`."""
    kind = type(module)
    return kind.__mro__[2] if issubclass(kind, StaysInEvaluation) else kind


def keep_in_evaluation(module: nn.Module) -> None:
    """Put a module into evaluation mode for good; its running statistics no longer move."""
    module.__class__ = _staying(original_class(module))
    module.train(False)


def release(module: nn.Module, training: bool) -> None:
    """Undo `keep_in_evaluation`, and put the module into the given mode; others are left alone."""
    if isinstance(module, StaysInEvaluation):
        module.__class__ = original_class(module)
        module.train(training)
