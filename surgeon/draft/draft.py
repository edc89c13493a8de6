"""The state while the steps run: names bound to tensors that are not computed yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from surgeon.base import patterns
from surgeon.base.errors import PlanError, did_you_mean
from surgeon.base.lists import as_list
from surgeon.base.regions import whole
from surgeon.draft.fused import FusedHeads
from surgeon.lazy import LazyTensor, Scratch, Stream, TensorSpec
from surgeon.tokens.tokenizer import Tokenizer

Tensors = dict[str, LazyTensor]
MODEL_WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class ModuleTensor(NamedTuple):
    """A parameter or persistent buffer of a torch module; tied names have one `owner`."""

    shape: tuple[int, ...]
    owner: str


# Looks at tensor data before anything is written: raises, or returns a line to report.
Check = Callable[[Scratch], str | None]


def _no_tokenizer(name: str | None) -> Tokenizer:
    raise PlanError("there is no tokenizer: tokens are those of a model folder")


class Outside(NamedTuple):
    """What steps may read besides the state: other checkpoints' headers, JSON files, tokenizers."""

    open_model: Callable[[str], Tensors]
    read_json: Callable[[str], Any]
    build_module: Callable[[str, Mapping[str, Any]], Mapping[str, ModuleTensor]]
    # The config.json of the input's folder (None) or of a model's; {} where there is none.
    read_config: Callable[[str | None], Mapping[str, Any]] = lambda name: {}
    # Where a model is, as it was given: what PEFT's configurations call a base.
    location: Callable[[str], str] = lambda name: ""
    # {name that the config of the input (None) or of a model ties: what is stored in its place}
    tied_names: Callable[[str | None], Mapping[str, str]] = lambda name: {}
    text_of: Callable[[str], str] = str
    # The tokenizer beside the input (None) or a model, and one at a place; the same each time.
    read_tokenizer: Callable[[str | None], Tokenizer] = _no_tokenizer
    open_tokenizer: Callable[[str], Tokenizer] = _no_tokenizer
    # {number in the config: tensors with an entry for each token, and their dimension of tokens},
    # by the config of the input or of a model.
    vocabularies: Callable[[str | None, Tensors], Mapping[str, Sequence[tuple[str, int]]]] = (
        lambda name, tensors: {}
    )
    # The numbers of tokens that the configs of the input's folder name.
    named_ids: Callable[[], Collection[int]] = frozenset
    # How heads lie in a tensor of the input that holds queries, keys and values.
    fused_heads: Callable[[str], FusedHeads | None] = lambda name: None


@dataclass
class Draft:
    """Names bound to LazyTensors; names that share one object are tied."""

    tensors: Tensors
    models: dict[str, Tensors]
    outside: Outside
    seed: int = 0
    step: str = ""
    optional: bool = False
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # What a folder as output has beside the weights: JSON files by name; and how these are called.
    sidecars: dict[str, Any] = field(default_factory=dict)
    weights_file: str = MODEL_WEIGHTS
    # Whether the result is to be held to the class of transformers that its config names.
    class_asked: bool = False
    # What a step says of the input's config.json that no tensor says; output.config says it last.
    config: dict[str, Any] = field(default_factory=dict)
    # The tokenizers of the state (None) and of models, as far as steps have asked for them.
    tokenizers: dict[str | None, Tokenizer] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def spec(self, name: str) -> TensorSpec:
        return self.tensors[name].spec

    def select(self, target: str | Sequence[str], *, itself: bool = False) -> list[str]:
        """Return the names that a target selects; raises PlanError where that is nothing.

        A name that the config ties to one that is stored selects that, unless it has to be there
        itself.
        """
        chosen = as_list(target) if itself else self.as_stored(target)
        special = _Special(self.tensors)
        try:
            return patterns.select(chosen, self.tensors, special=special, optional=self.optional)
        except PlanError as error:
            if itself and (stored := self._stored_hint(chosen)):
                raise PlanError(stored) from error
            raise

    def as_stored(self, target: str | Sequence[str]) -> list[str]:
        """Return patterns with what is stored in the place of what the config ties to it."""
        chosen = as_list(target)
        for place, pattern in enumerate(chosen):
            if (found := self._tied_to_stored(pattern)) is not None:
                name, owner = found
                rest = (patterns.match(pattern, name) or {}).get(patterns.UNDER)
                # A module stands for a module: what acts on layers changes a layer as a whole.
                is_module = rest is not None and owner.endswith(f".{rest}")
                chosen[place] = owner.removesuffix(f".{rest}") if is_module else owner
                self.notes.append(f"'{name}' is tied to '{owner}': both are this one tensor")
        return chosen

    def tied_by_config(self) -> dict[str, str]:
        """Return {name that is not stored: the stored tensor that the config ties it to}."""
        tied = self.outside.tied_names(None)
        return {
            name: owner
            for name, owner in tied.items()
            if owner in self.tensors and name not in self.tensors
        }

    def _tied_to_stored(self, pattern: str) -> tuple[str, str] | None:
        """Return what a pattern matches that the config ties, and to what, where nothing else."""
        if pattern[:1] in ("!", "@"):
            return None
        if any(map(matches := patterns.compiled(pattern), self.tensors)):
            return None
        return next((pair for pair in self.tied_by_config().items() if matches(pair[0])), None)

    def _stored_hint(self, chosen: Sequence[str]) -> str:
        """Return why patterns match nothing, where it is that the config ties what they name."""
        for pattern in chosen:
            if (found := self._tied_to_stored(pattern)) is not None:
                name, owner = found
                return (
                    f"no tensor matches '{pattern}': the config ties '{name}' to '{owner}', which "
                    "is stored; untie gives it a tensor of its own"
                )
        return ""

    def modules(self, target: str | Sequence[str]) -> dict[str, list[str]]:
        """Return what a target selects as {module: the selected tensors directly in it}."""
        found: dict[str, list[str]] = {}
        for name in self.select(target):
            found.setdefault(name.rpartition(".")[0], []).append(name)
        return found

    def captured(
        self, pattern: str, among: Tensors | None = None
    ) -> list[tuple[str, patterns.Captures]]:
        """Return the names that one pattern matches, each with what it captures."""
        names = self.tensors if among is None else among
        found = patterns.captured(pattern, names)
        if not found and not self.optional:
            if names is self.tensors and (stored := self._stored_hint([pattern])):
                raise PlanError(stored)
            raise PlanError(*patterns.nothing_matches([pattern], names))
        return found

    def model(self, name: str) -> Tensors:
        """Return the tensors of another model; raises PlanError for a name that is not one."""
        if name not in self.models:
            listed = ", ".join(f"'{model}'" for model in self.models) or "none"
            hint = did_you_mean(name, self.models)
            hint = hint or f"; the models are: {listed}; --model {name}=PATH gives one"
            raise PlanError(f"there is no model '{name}'{hint}")
        return self.models[name]

    def tokenizer(self, model: str | None = None) -> Tokenizer:
        """Return the tokenizer of the state or of a model; raises PlanError where there is none."""
        if model is not None:
            self.model(model)
        if model not in self.tokenizers:
            self.tokenizers[model] = self.outside.read_tokenizer(model)
        return self.tokenizers[model]

    def tied(self, name: str) -> list[str]:
        """Return all names that are bound to the same tensor, the name itself included."""
        tensor = self.tensors[name]
        return [other for other, bound in self.tensors.items() if bound is tensor]

    def shared(self) -> set[str]:
        """Return all names that are tied to another."""
        uses = Counter(map(id, self.tensors.values()))
        return {name for name, tensor in self.tensors.items() if uses[id(tensor)] > 1}

    def replace(self, changes: Mapping[str, LazyTensor]) -> None:
        """Bind names, and every name tied to one of them, to other tensors."""
        by_identity = {id(self.tensors[name]): tensor for name, tensor in changes.items()}
        self.tensors = {
            name: by_identity.get(id(tensor), tensor) for name, tensor in self.tensors.items()
        }

    def stream(self, name: str) -> Stream:
        """Return the random stream of a tensor in this step."""
        return Stream(self.seed, self.step, name)

    def check(self, check: Check) -> None:
        """Have tensor data looked at before the first byte is written."""
        self.checks.append(check)


def ties(tensors: Tensors) -> dict[str, str]:
    """Return {alias: owner} of tied names; the owner, which is stored, comes first among them.

    A file's own names come before those that its metadata ties to them, and so does the name that
    `tie` was told to tie to.
    """
    if len(set(map(id, tensors.values()))) == len(tensors):
        return {}
    owners: dict[int, str] = {}
    for name, tensor in tensors.items():
        owners.setdefault(id(tensor), name)
    return {name: owner for name in sorted(tensors) if (owner := owners[id(tensors[name])]) != name}


def vectors(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Return the names of all tensors of rank 1 and below: what `@vectors` is."""
    return [name for name, tensor in tensors.items() if len(tensor.spec.shape) <= 1]


def is_wholly_new(tensor: LazyTensor) -> bool:
    """Say whether all of a tensor was created by the recipe."""
    return tensor.new_regions() == (whole(tensor.spec.shape),)


class _Special(Mapping[str, Collection[str]]):
    """What `@new` and `@vectors` are for a step: whole tensors only, found when asked for."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __getitem__(self, word: str) -> Collection[str]:
        if word == "@vectors":
            return vectors(self._tensors)
        if word != "@new":
            raise KeyError(word)
        partly = [
            name
            for name, tensor in self._tensors.items()
            if tensor.new_regions() and not is_wholly_new(tensor)
        ]
        if partly:
            listed = ", ".join(f"'{name}'" for name in partly)
            raise PlanError(f"'@new' holds parts of {listed}, but a step acts on whole tensors")
        return [name for name, tensor in self._tensors.items() if tensor.new_regions()]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(patterns.SPECIAL)

    def __len__(self) -> int:
        return len(patterns.SPECIAL)
