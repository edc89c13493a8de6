"""Learning without Forgetting: the outputs that a network had are taught to it by its old self."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from surgeon.base.errors import CheckpointError, Hints
from surgeon.base.files import sha256_of
from surgeon.formats import Checkpoint, open_checkpoint
from surgeon.lazy import LazyTensor, Scratch
from surgeon.manifest.model import Teacher
from surgeon.numeric.dtypes import DTYPES
from surgeon.training.cover import Block
from surgeon.training.errors import ManifestError
from surgeon.training.evaluation import keep_in_evaluation


class Distillation:
    """The loss that keeps a network's old outputs as a frozen teacher has them.

    `weight` · T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch, with
    the softmax over the old outputs alone. Li and Hoiem 2016, Learning without Forgetting,
    https://arxiv.org/abs/1606.09282, equation 2, and Hinton et al. 2015, Distilling the Knowledge
    in a Neural Network, https://arxiv.org/abs/1503.02531. The divergence has the gradient of their
    cross-entropy and is 0 where both agree. The factor T² is Hinton's: with it the gradient is, to
    first order, as large at every temperature; for Li and Hoiem's loss set `weight` to 1 / T².
    """

    def __init__(
        self,
        teacher: nn.Module,
        outputs: Sequence[int],
        temperature: float = 2.0,
        weight: float = 1.0,
    ) -> None:
        """Take a teacher, and which of the student's outputs it has, such as `range(7)`.

        It has those alone, in that order, or as many outputs as the student.
        The teacher is not copied: it gets no gradients any more and stays in evaluation mode, so
        that no statistics of it move. Where it is what is to be trained, hand in a deepcopy.
        """
        if not temperature > 0 or not weight > 0:
            raise ManifestError(
                f"temperature {temperature} and weight {weight}: both have to be positive"
            )
        if not outputs:
            raise ManifestError("there are no old outputs to keep")
        teacher.requires_grad_(False)
        keep_in_evaluation(teacher)
        self.teacher = teacher
        self.outputs = tuple(outputs)
        self.temperature = temperature
        self.weight = weight

    def __call__(self, logits: Tensor, *inputs: Any, **named_inputs: Any) -> Tensor:
        """Return the loss of the student's logits (batch, outputs, ...) on the same inputs.

        Classes are dimension 1, as in torch's cross_entropy. Raises ManifestError where the logits
        carry no gradient although gradients are on: the term would be cut off in silence.
        """
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise ManifestError(
                "the student's logits carry no gradient (detached, or the student is the teacher)"
            )
        with torch.no_grad():
            wanted = self.teacher(*inputs, **named_inputs)
        index = torch.tensor(self.outputs, device=logits.device)
        if wanted.shape[1] == logits.shape[1]:
            wanted = wanted.index_select(1, index)
        if wanted.shape[1] != len(self.outputs):
            raise ManifestError(
                f"the teacher has {wanted.shape[1]} outputs, and {len(self.outputs)} are to be kept"
            )
        student, teacher = (
            log_softmax(_precise(values) / self.temperature, dim=1)
            for values in (logits.index_select(1, index), wanted)
        )
        divergence = kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean()
        return divergence * (self.weight * self.temperature**2)


def _precise(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def old_outputs(blocks: Sequence[Block]) -> Sequence[int]:
    """Return the outputs that blocks such as `fc.weight[0:7]` and `fc.bias[0:7]` stand for.

    Raises ManifestError where they are of several layers: which of them are outputs is not known.
    """
    rows: dict[str, list[int]] = {}
    for block in blocks:
        rows.setdefault(block.name, []).extend(range(*block.region[0]) if block.region else [])
    layers = {name.rpartition(".")[0] for name in rows}
    outputs, *others = map(sorted, rows.values()) if rows else [[]]
    if len(layers) != 1 or not outputs or any(other != outputs for other in others):
        raise ManifestError(
            f"teacher.outputs: the blocks of {', '.join(sorted(layers))} are not the same rows of "
            "one layer; name the outputs in the recipe's training.teacher.outputs"
        )
    return outputs


def load_teacher(teacher: nn.Module, described: Teacher, location: str | Path) -> None:
    """Load a teacher's weights; raises ManifestError for another file, or another architecture."""
    try:
        checkpoint = open_checkpoint(str(location))
    except CheckpointError as error:
        raise ManifestError(
            *error.problems, "the teacher's weights are needed; say where with file=..."
        ) from None
    try:
        if sha256_of(checkpoint.weight_files) != described.sha256:
            raise ManifestError(f"{location}: is not the file that the manifest calls the teacher")
        if problems := list(_differences(teacher, checkpoint)):
            raise ManifestError(*(f"{location}: {problem}" for problem in problems))
        teacher.load_state_dict({name: _read(t) for name, t in checkpoint.tensors.items()})
    finally:
        checkpoint.close()


def _differences(teacher: nn.Module, checkpoint: Checkpoint) -> Iterator[str]:
    shapes = {name: tuple(tensor.shape) for name, tensor in teacher.state_dict().items()}
    hint = Hints(shapes)
    for name, tensor in checkpoint.tensors.items():
        if name not in shapes:
            yield f"'{name}' is not in the teacher's module{hint(name)}"
        elif shapes[name] != tensor.spec.shape:
            yield f"'{name}' is {tensor.spec.shape}, and {shapes[name]} in the teacher's module"
    for name in shapes:
        if name not in checkpoint.tensors:
            yield f"'{name}' of the teacher's module is not there"


def _read(tensor: LazyTensor) -> Tensor:
    stored = tensor.elements(0, tensor.spec.count, Scratch())
    dtype = DTYPES[tensor.spec.dtype]
    values = torch.from_numpy(np.array(stored).view(np.uint8)).view(getattr(torch, dtype.torch))
    return values.reshape(tensor.spec.shape)
