"""What merges want to know of a model's data: Fisher values, Gram matrices, batch statistics.

`fisher` reads what `collect_fisher` writes, and `regmean` what `collect_gram` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from surgeon.training.errors import ManifestError
from surgeon.training.watching import Forward, in_eval_mode, run_model

Loss = Callable[[nn.Module, Any], Tensor]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean negative log-likelihood of (inputs, labels) under the softmax of logits."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def collect_fisher(
    model: nn.Module, batches: Iterable[Any], path: str | Path, *, loss: Loss = cross_entropy
) -> None:
    """Write the diagonal of the empirical Fisher information of every parameter.

    For each parameter the mean, over all examples of all batches, of the squared gradient of the
    example's log-likelihood at its own label: examples are taken one by one, as batches of one.
    `loss(model, batch)` is the mean negative log-likelihood of a batch; batches are tensors, or
    tuples, lists and mappings of tensors, all of the same length along dimension 0. The model is
    in eval mode meanwhile; its gradients and modes are as before afterwards. Frozen parameters
    count, too. float32 under the names of the state_dict, summed in float64. Raises ManifestError
    where there is no example.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    count = 0
    with in_eval_mode(model), _requiring_gradients(parameters.values()), torch.enable_grad():
        for batch in batches:
            for example in _examples(batch):
                gradients = torch.autograd.grad(
                    loss(model, example), list(parameters.values()), allow_unused=True
                )
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient.double() ** 2
                count += 1
    if not count:
        raise ManifestError("there are no examples to collect Fisher values from")
    _save(model, {n: (total / count).float() for n, total in sums.items()}, path)


def collect_gram(
    model: nn.Module,
    batches: Iterable[Any],
    path: str | Path,
    *,
    forward: Forward | None = None,
) -> None:
    """Write the Gram matrix XᵀX of the inputs of every nn.Linear, by the name of its weight.

    The rows of X are all input vectors that the layer gets, of all batches (of all positions, where
    inputs are sequences). `forward(model, batch)` runs the model; by default model(batch) for a
    tensor, model(**batch) for a mapping, model(batch[0]) for a tuple or list. The model is in eval
    mode meanwhile. float64. Raises ManifestError where no layer gets any input.
    """
    totals: dict[int, Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> None:
        (given,) = (*inputs, *by_name.values())
        rows = given.detach().reshape(-1, given.shape[-1]).double()
        weight = id(layer.weight)
        totals[weight] = totals.get(weight, 0) + rows.T @ rows

    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    hooks = [layer.register_forward_pre_hook(add, with_kwargs=True) for layer in layers.values()]
    try:
        with in_eval_mode(model), torch.no_grad():
            for batch in batches:
                run_model(model, batch, forward)
    finally:
        for hook in hooks:
            hook.remove()
    named = {f"{name}.weight" if name else "weight": id(m.weight) for name, m in layers.items()}
    owners = {identity: name for name, identity in reversed(named.items())}
    if not totals:
        raise ManifestError("no nn.Linear got any input to collect Gram matrices from")
    _save(model, {owners[identity]: total for identity, total in totals.items()}, path)


def update_batch_norm(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of all BatchNorm layers to those of the batches.

    As after averaging: what is torch.optim.swa_utils.update_bn, on the model's own device. Batches
    are inputs, or tuples or lists that begin with them.
    """
    device = next((tensor.device for tensor in model.parameters()), None)
    update_bn(batches, model, device)


def _examples(batch: Any) -> Iterator[Any]:
    """Yield batches of one example each."""
    lengths = {len(tensor) for tensor in _tensors(batch)}
    if len(lengths) != 1:
        raise ManifestError(
            f"a batch's tensors have {sorted(lengths)} examples; they must be as many in each"
        )
    for index in range(*lengths):
        yield _sliced(batch, index)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | tuple | list):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)
    else:
        raise ManifestError(f"a batch holds a {type(batch).__name__}, not only tensors")


def _sliced(batch: Any, index: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[index : index + 1]
    if isinstance(batch, Mapping):
        return {name: _sliced(item, index) for name, item in batch.items()}
    return tuple(_sliced(item, index) for item in batch)


@contextmanager
def _requiring_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _save(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Save tensors by the names of parameters; tied names are ties, as save_model writes them."""
    owners = {id(model.get_parameter(name)): name for name in tensors}
    names = {n: id(t) for n, t in model.state_dict(keep_vars=True).items()}
    ties = {n: owners[i] for n, i in names.items() if i in owners and owners[i] != n}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"format": "pt", **ties})
