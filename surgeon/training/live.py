"""A live model seen by the manifest's names, and all in which the two can differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from surgeon.base.errors import Hints
from surgeon.base.files import reading
from surgeon.base.strict_json import MOST_BYTES
from surgeon.formats.safetensors import header_sha256
from surgeon.manifest.model import Manifest, WeightFile
from surgeon.training.errors import ManifestError
from surgeon.training.experts import put_together

# What torch's wrappers call the module inside of them.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_HOLD_A_MODULE = ("DataParallel", "DistributedDataParallel", "AveragedModel")
_TOGETHER = "; keep the two in one folder"
_APPLY = "; take the manifest that was written with it, or apply the recipe again"
_BUILD = "; bind a model that is built for the checkpoint as it is after the surgery"
_TIE = "; add a 'tie' step to the recipe, or give each a parameter of its own"
_UNTIE = "; tie them in the model before bind, or add an 'untie' step to the recipe"


@dataclass(frozen=True)
class Live:
    """What a model holds, by every one of its names; tied names lead to one Parameter."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]

    def holder(self, name: str) -> tuple[nn.Module, str]:
        """Return the module that holds a parameter, and the attribute it is held under."""
        module, _, attribute = name.rpartition(".")
        return self.modules[module], attribute


def seen(model: nn.Module, manifest: Manifest) -> Live:
    """Return a model's contents under the names they had before any wrapping.

    Segments of wrappers are left out wherever they stand in a name, and, where the manifest has no
    such names, a `module.` before all. A name that the manifest does not have is none where the
    same parameter goes by one that it has: transformers writes tied ones once. Raises ManifestError
    where two names would meet.
    """
    live = all_seen(model, manifest)
    parameters = live.parameters
    held = {id(parameters[name]) for name in manifest.tensors if name in parameters}
    kept = {n: p for n, p in parameters.items() if n in manifest.tensors or id(p) not in held}
    return replace(live, parameters=kept)


def all_seen(model: nn.Module, manifest: Manifest) -> Live:
    """Return a model's contents by all of their names; see `seen`."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = _Plain(modules)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = names(name)
        if found.setdefault(plain, parameter) is not parameter:
            raise ManifestError(f"'{name}' and another parameter are both '{plain}' in the model")
    prefix = _prefix(found, manifest)
    return Live(
        model,
        {name.removeprefix(prefix): parameter for name, parameter in found.items()},
        {
            names(name).removeprefix(prefix): buffer
            for name, buffer in model.named_buffers(remove_duplicate=False)
        },
        {f"{names(n)}.".removeprefix(prefix).rstrip("."): m for n, m in modules.items()},
    )


def _prefix(parameters: Mapping[str, nn.Parameter], manifest: Manifest) -> str:
    """Return the `module.` that is before all names of the model, and of none in the manifest."""
    prefix = ""
    while (
        parameters
        and all(name.startswith(f"{prefix}module.") for name in parameters)
        and not any(name.startswith(f"{prefix}module.") for name in manifest.tensors)
    ):
        prefix += "module."
    return prefix


class _Plain:
    """Names without the segments that wrappers put into them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._inside = {
            f"{name}.module".lstrip(".")
            for name, module in modules.items()
            if type(module).__name__ in _HOLD_A_MODULE
        }

    def __call__(self, name: str) -> str:
        kept: list[str] = []
        path = ""
        for part in name.split("."):
            path = f"{path}.{part}".lstrip(".")
            if part not in _WRAPPERS and path not in self._inside:
                kept.append(part)
        return ".".join(kept)


def checkpoint_problems(manifest: Manifest) -> Iterator[str]:
    """Say what differs between the manifest and the checkpoint beside it; reads headers only."""
    folder = manifest.path.parent
    checkpoint = manifest.checkpoint
    named = {part.file for part in checkpoint.parts}
    if checkpoint.file not in named and not (folder / checkpoint.file).is_file():
        yield f"{folder / checkpoint.file}: the checkpoint is not beside its manifest{_TOGETHER}"
    for part in checkpoint.parts:
        yield from _file_problems(folder / part.file, part)


def _file_problems(path: Path, stated: WeightFile) -> Iterator[str]:
    try:
        with reading(path) as file:
            size_bytes = path.stat().st_size
            header = file.read(8)
            length = int.from_bytes(header, "little")
            # Any other length is no header's; the hash of what was read so far then differs.
            header += file.read(length) if length <= min(size_bytes, MOST_BYTES) else b""
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            yield f"{path}: the checkpoint is not beside its manifest{_TOGETHER}"
        else:
            yield f"{path}: cannot be read: {(error.strerror or str(error)).lower()}"
        return
    except ValueError as error:
        yield f"{path}: {error}"
        return
    if size_bytes != stated.size_bytes:
        yield f"{path}: has {size_bytes} bytes, and the manifest says {stated.size_bytes}{_APPLY}"
    if header_sha256(header) != stated.header_sha256:
        yield f"{path}: its header is not the one that the manifest was written for{_APPLY}"


def refuse_adapters(model: nn.Module) -> None:
    """Raise ManifestError for a model with layers of PEFT."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft."):
            what = f"'{name}' is a layer" if name else "the model is one"
            raise ManifestError(
                f"{what} of PEFT, and the manifest is for the model without adapters; "
                "bind and start the model first, then add adapters, or merge them into it "
                "(merge_and_unload)"
            )


def name_problems(manifest: Manifest, live: Live) -> Iterator[str]:
    """Say which parameters and buffers are missing, unexpected or of another shape."""
    tensors = manifest.tensors
    here = {**live.buffers, **live.parameters}
    unknown = [name for name in tensors if name not in here]
    unlisted = [name for name in live.parameters if name not in tensors]
    if prefix := _lies_in(unknown, unlisted):
        yield (
            f"all of the model's names begin with '{prefix}', and the manifest's do not; bind the "
            f"module itself: bind(model.{prefix.rstrip('.')})"
        )
        return
    parametrized: dict[str, str] = {}
    fused: set[str] = set()
    for name in unlisted:
        module, segment, rest = name.partition(".parametrizations.")
        if segment:
            parametrized[f"{module}.{rest.partition('.')[0]}"] = name
    for name in sorted(parametrized):
        yield (
            f"'{name}' is parametrized in the model; bind and start first and register the "
            "parametrization then, or remove it (torch.nn.utils.parametrize)"
        )
    unknown = [name for name in unknown if name not in parametrized]
    unlisted = [name for name in unlisted if ".parametrizations." not in name]
    for name in unlisted[:]:
        module = name.rpartition(".")[0]
        apart = [n for n in unknown if n.startswith(f"{module}.") and _is_numbered(n, module)]
        if apart and live.parameters[name].ndim >= 3:
            unlisted.remove(name)
            stated = {other: tensors[other].shape for other in apart}
            steps = put_together(name, tuple(live.parameters[name].shape), stated)
            yield (
                f"'{name}' holds all experts in one, and the manifest has them apart, such as "
                f"'{apart[0]}'; add to the recipe: {steps}"
            )
            fused.add(module)
    unknown = [name for name in unknown if not any(_is_numbered(name, module) for module in fused)]
    hint = Hints(unlisted)
    for name in unknown:
        yield f"'{name}' is in the manifest, not in the model{hint(name) or _BUILD}"
    hint = Hints(unknown)
    for name in unlisted:
        yield f"'{name}' is in the model, not in the manifest{hint(name) or _BUILD}"
    for name, tensor in here.items():
        if is_lazy(tensor):
            yield f"'{name}' has no shape yet; run a forward pass before bind"
        elif name in tensors and tuple(tensor.shape) != tensors[name].shape:
            yield (
                f"'{name}' is {tuple(tensor.shape)} in the model and {tensors[name].shape} in the "
                f"manifest{_BUILD}"
            )


def _lies_in(unknown: Sequence[str], unlisted: Sequence[str]) -> str:
    """Return what is before all names of a model, where most of the manifest's follow it."""
    for name in unknown[:1]:
        for other in unlisted:
            prefix = other.removesuffix(name)
            if other.endswith(f".{name}") and all(one.startswith(prefix) for one in unlisted):
                there = {one.removeprefix(prefix) for one in unlisted}
                return prefix if 2 * len(there.intersection(unknown)) > len(unknown) else ""
    return ""


def _is_numbered(name: str, module: str) -> bool:
    """Say whether a name is of one of a module's numbered ones, such as `experts.3.w1.weight`."""
    rest = name.removeprefix(f"{module}.")
    return rest != name and rest.partition(".")[0].isdecimal()


def tie_problems(manifest: Manifest, live: Live) -> Iterator[str]:
    """Say which parameters are tied on one side only; which name is the owner does not matter."""
    owner_here: dict[int, str] = {}
    for name, parameter in live.parameters.items():
        if name not in manifest.tensors:
            continue
        first = owner_here.setdefault(id(parameter), name)
        if owner(manifest, first) != owner(manifest, name):
            names = f"'{name}' and '{first}'"
            yield f"{names} are one parameter in the model, not in the manifest{_TIE}"
    for alias, name in manifest.ties.items():
        pair = live.parameters.get(alias), live.parameters.get(name)
        if pair[0] is not pair[1] and None not in pair:
            names = f"'{alias}' and '{name}'"
            yield f"{names} are tied in the manifest, two parameters in the model{_UNTIE}"


def module_problems(names: Iterable[str], live: Live) -> Iterator[str]:
    """Say which modules of a stage are not in the model."""
    hint = Hints(live.modules)
    for name in names:
        if name not in live.modules:
            yield f"eval_modules: there is no module '{name}'{hint(name)}"


def owner(manifest: Manifest, name: str) -> str:
    """Return the one name of a tensor that the manifest's own lists use."""
    return manifest.ties.get(name, name)
