"""Networks from one start, merged in every way that fits: one table."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

import surgeon
from surgeon.cli.commands import commands
from surgeon.training import collect_fisher, collect_gram

HERE = Path(__file__).parent
STRENGTH = 0.3  # of the noise on the images
LAMBDAS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # chosen by the validation split,
DENSITIES = (0.2, 0.5, 0.9)  # and so are these
PRUNED = {"lambda": LAMBDAS, "density": DENSITIES}
TRIALS = 150  # of a search, whose scores are of the validation split too
MEAN = {"normalize": (True,)}  # of the changes, so that a lambda means the same for any number
LEARNING_RATES = (0.02, 0.05, 0.05, 0.1, 0.5)  # of the siblings; the last is too high
SUBJECTS = ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))  # classes of the specialists
Examples = tuple[Tensor, Tensor]
Choices = Mapping[str, Sequence[object]]


@dataclass(frozen=True)
class Splits:
    """Images (N, 64) and classes (N,): to learn from, to choose by, and to report."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Family:
    """Files of networks that started as one, and what each of them learned from."""

    start: Path
    members: tuple[Path, ...]
    seen: tuple[Examples, ...]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def splits(seed: int) -> Splits:
    """Return noisy digits, 797 to learn from, 400 to choose by, 600 to report."""
    data = load_digits()
    generator = torch.Generator().manual_seed(seed)
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    images += STRENGTH * torch.randn(images.shape, generator=generator)
    classes, order = torch.tensor(data.target), torch.randperm(len(images), generator=generator)
    return Splits(*((images[part], classes[part]) for part in order.split([797, 400, 600])))


def trained(
    start: nn.Module, examples: Examples, *, lr: float, epochs: int, seed: int
) -> nn.Module:
    """Return a trained copy; the seed decides about the order of the examples."""
    model = copy.deepcopy(start)
    images, classes = examples
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
            optimizer.step()
    return model


def saved(model: nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path


def accuracy(path: Path, examples: Examples) -> float:
    return share_right(load_file(path), examples)


@torch.no_grad()
def share_right(state_dict: Mapping[str, Tensor], examples: Examples) -> float:
    model = network()
    model.load_state_dict(state_dict, strict=True)
    images, classes = examples
    return (model(images).argmax(1) == classes).double().mean().item()


def siblings(data: Splits, seed: int, folder: Path) -> Family:
    """Train one network further, on the same digits at several rates and in several orders."""
    torch.manual_seed(seed)
    start = trained(network(), data.train, lr=0.02, epochs=1, seed=seed)
    files = []
    for number, rate in enumerate(LEARNING_RATES):
        model = trained(start, data.train, lr=rate, epochs=5, seed=100 * seed + number)
        files.append(saved(model, folder / f"sibling-{number}.safetensors"))
    path = saved(start, folder / "start.safetensors")
    return Family(path, tuple(files), (data.train,) * len(files))


def specialists(data: Splits, seed: int, folder: Path) -> Family:
    """Train the start of the siblings further, three times, on some of the classes alone."""
    path = folder / "start.safetensors"
    start = network()
    start.load_state_dict(load_file(path))
    files, seen = [], []
    for number, subject in enumerate(SUBJECTS):
        chosen = torch.isin(data.train[1], torch.tensor(subject))
        seen.append((data.train[0][chosen], data.train[1][chosen]))
        model = trained(start, seen[-1], lr=0.02, epochs=3, seed=100 * seed + number)
        files.append(saved(model, folder / f"specialist-{number}.safetensors"))
    return Family(path, tuple(files), tuple(seen))


def merged(
    recipe: str | Path,
    files: Sequence[Path],
    output: str,
    variables: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    """Run `surgeon apply RECIPE INPUT MODEL... OUTPUT --set ...`; return the output's path.

    In this process: each of hundreds of merges takes less time than Python does to start.
    """
    path = files[0].with_name(f"{output}.safetensors")
    settings = [f"--set={name}={json.dumps(value)}" for name, value in variables.items()]
    arguments = ["apply", str(recipe), *map(str, files), str(path), *settings, "--force", "--quiet"]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = commands(arguments, prog_name="surgeon", standalone_mode=False)
    if code:  # what is wrong is on stderr
        sys.exit(code)
    return path


def average(family: Family, validation: Examples) -> Path:
    return merged("average-checkpoints", family.members, "average")


def greedy_soup(family: Family, validation: Examples) -> Path:
    """Add members to the average, the best first, where that is no worse on the validation split.

    Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1.
    """
    score = partial(accuracy, examples=validation)
    first, *others = sorted(family.members, key=score, reverse=True)
    soup, ingredients = first, [first]
    for number, member in enumerate(others):
        tried = merged("average-checkpoints", [*ingredients, member], f"greedy-soup-{number}")
        if score(tried) >= score(soup):
            soup, ingredients = tried, [*ingredients, member]
    return soup


def slerp(family: Family, validation: Examples) -> Path:
    """Take the members in one by one; the k-th gets a share of 1/k."""
    made, *others = family.members
    for number, member in enumerate(others, start=2):
        made = merged(
            "interpolate-two-models", [made, member], f"slerp-{number}", {"t": 1 / number}
        )
    return made


def at_its_best(
    family: Family, validation: Examples, *, recipe: str | Path, choices: Choices
) -> Path:
    """Add the members' changes to their start, with the values that are best for validation."""
    made = []
    for number, values in enumerate(product(*choices.values())):
        output = f"{Path(recipe).stem}-{number}"
        variables = dict(zip(choices, values, strict=True))
        made.append(merged(recipe, (family.start, *family.members), output, variables))
    return max(made, key=partial(accuracy, examples=validation))


def searched(family: Family, validation: Examples) -> Path:
    """Find by trials how much of each member's change is best for the validation split."""
    count = len(family.members)
    found = surgeon.search(
        HERE / "shares.json", load_file(family.start), models=list(map(load_file, family.members)),
        vars={"shares": [1 / count] * count}, vary={"shares.*": (0, 1)},
        evaluate=partial(share_right, examples=validation), sampler="cmaes", trials=TRIALS,
    )  # fmt: skip
    recipe = family.start.with_name("searched.json")
    recipe.write_text(json.dumps(found.recipe))
    return merged(recipe, (family.start, *family.members), "searched")


def model_stock(family: Family, validation: Examples) -> Path:
    return merged("model-stock", (family.start, *family.members), "model-stock")


def fisher(family: Family, validation: Examples) -> Path:
    return with_statistics(family, HERE / "fisher.json", "importances", collect_fisher)


def regmean(family: Family, validation: Examples) -> Path:
    return with_statistics(family, HERE / "regmean.json", "grams", collect_gram)


def with_statistics(family: Family, recipe: Path, word: str, collect: Callable[..., None]) -> Path:
    """Merge members with what is collected of each, over the digits that it learned from."""
    collected = []
    for path, examples in zip(family.members, family.seen, strict=True):
        model = network()
        model.load_state_dict(load_file(path))
        collected.append(path.with_name(f"{path.stem}-{word}.safetensors"))
        collect(model, [examples], collected[-1])
    count = len(family.members)
    names = [str(number) for number in range(1, 2 * count)]  # of the models after the first
    variables = {"models": names[: count - 1], word: names[count - 1 :]}
    return merged(recipe, [*family.members, *collected], recipe.stem, variables)


MERGES: dict[str, Callable[[Family, Examples], Path]] = {
    "average": average,
    "greedy soup": greedy_soup,
    "slerp": slerp,
    "task_arithmetic": partial(
        at_its_best, recipe="task-arithmetic", choices={**MEAN, "lambda": LAMBDAS}
    ),
    "ties": partial(at_its_best, recipe="ties", choices=PRUNED),
    "dare": partial(at_its_best, recipe=HERE / "dare.json", choices={**MEAN, **PRUNED}),
    "dare_ties": partial(at_its_best, recipe="dare-ties", choices=PRUNED),
    "model_stock": model_stock,
    "fisher": fisher,
    "regmean": regmean,
    "searched": searched,
}


UNMERGED = ("the start", "the best on the validation split")


def accuracies(family: Family, data: Splits) -> Iterator[tuple[str, float]]:
    """Yield what each network, and each merge of them, is right about on the test split."""
    yield "the start", accuracy(family.start, data.test)
    found = {path: accuracy(path, data.test) for path in family.members}
    yield "the worst of them", min(found.values())
    yield "their mean accuracy", statistics.mean(found.values())
    best = max(family.members, key=partial(accuracy, examples=data.validation))
    yield "the best on the validation split", found[best]
    for name, merge in MERGES.items():
        yield name, accuracy(merge(family, data.validation), data.test)


def run(seed: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Return {row of the table: accuracies of siblings and of specialists} for one seed."""
    data = splits(seed)
    families = [made(data, seed, folder) for made in (siblings, specialists)]
    first, second = (dict(accuracies(family, data)) for family in families)
    return {name: (first[name], second[name]) for name in first}


def spelled(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values) * 100:.1f}"
    return f"{mean} ± {statistics.stdev(values) * 100:.1f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many runs to take the mean of")
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)  # the fastest for networks this small
    runs = [run(seed, Path()) for seed in seeds]

    rows = [
        [name, *(spelled(values) for values in zip(*(found[name] for found in runs), strict=True))]
        for name in runs[0]
    ]
    headers = ["network", f"{len(LEARNING_RATES)} siblings", f"{len(SUBJECTS)} specialists"]
    print(tabulate(rows, headers=headers, disable_numparse=True))
    for found in runs:
        if found["average"][0] < found["the worst of them"][0]:
            sys.exit("the average of siblings is worse than the worst of them")
        if found["task_arithmetic"][1] <= max(found[name][1] for name in UNMERGED):
            sys.exit("task arithmetic knows no more than the networks that it is made of")


if __name__ == "__main__":
    main()
