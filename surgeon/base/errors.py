"""What can go wrong, each with the exit code that the command line gives it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence


class SurgeonError(Exception):
    """A mistake that the user can read and mend; one line per problem."""

    exit_code = 4

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def at(self, place: str) -> SurgeonError:
        """Return the same error with `place: ` before each of its lines."""
        return type(self)(*(f"{place}: {problem}" for problem in self.problems))


class CheckFailedError(SurgeonError):
    """The answer is no: an `expect` or `match` does not hold, a hash differs."""

    exit_code = 1


class UsageError(SurgeonError):
    """The command line is wrong, or the recipe is not a valid recipe."""

    exit_code = 2


class MissingError(UsageError):
    """A file that the command line or the recipe names is not there."""


class CheckpointError(SurgeonError):
    """An input checkpoint is unreadable, unsafe or not what it says it is."""

    exit_code = 3


class PlanError(SurgeonError):
    """The recipe is valid but impossible for these inputs."""

    exit_code = 4


class WriteError(SurgeonError):
    """The output could not be written; what was there before is untouched."""

    exit_code = 5


# Beyond this many candidates difflib would take longer than the rest of the command.
_NEAREST_AMONG = 4000
_HINTED = 10
# Of what may be many.
_MOST_NAMED = 5
# Names of tensors are shorter; what files hold besides may be of any length.
_LONGEST_NAME = 300
_LONGEST_LIKENED = 1000


def listed(names: Sequence[str], most: int = _MOST_NAMED) -> str:
    """Return `'a', 'b' and 3 more`."""
    return several(names, most, short)


def several(
    texts: Sequence[str], most: int = _MOST_NAMED, spelling: Callable[[str], str] = str
) -> str:
    """Return `this, that and 3 more`, each in its spelling."""
    shown = ", ".join(map(spelling, texts[:most]))
    return f"{shown} and {len(texts) - most} more" if len(texts) > most else shown


def short(value: object) -> str:
    """Return how a value is shown in a message: what is long only begins and ends there."""
    if isinstance(value, str):
        if len(value) <= _LONGEST_NAME:
            return repr(value)
        half = _LONGEST_NAME // 2
        return f"{value[:half]!r}...{value[-half:]!r} ({len(value):,} characters)"
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}..."


def nearest(word: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """Return the candidates that look most like `word`, best first."""
    import difflib  # not before something is misspelt

    if len(word) > _LONGEST_LIKENED:  # it takes the square of the length
        return []
    pool = sorted({name for name in candidates if len(name) <= _LONGEST_LIKENED})
    if len(pool) > _NEAREST_AMONG:
        letters = set(word)
        pool = sorted(pool, key=lambda name: (len(letters ^ set(name)), name))[:_NEAREST_AMONG]
    found = difflib.get_close_matches(word, pool, n=most, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, name, word).ratio() for name in found]
    # What is clearly further away than the nearest is noise.
    return [name for name, ratio in zip(found, likeness, strict=True) if ratio > likeness[0] - 0.04]


class Hints:
    """`did_you_mean` for many words and the same candidates: for the first ones, then nothing.

    A forgotten prefix misspells every name of a model, and each hint takes a while.
    """

    def __init__(self, candidates: Collection[str]) -> None:
        self._candidates = candidates
        self._left = _HINTED

    def __call__(self, word: str) -> str:
        self._left -= 1
        return did_you_mean(word, self._candidates) if self._left >= 0 else ""


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or an empty string where nothing is near."""
    names = nearest(word, candidates)
    return f"; did you mean {' or '.join(repr(name) for name in names)}?" if names else ""
