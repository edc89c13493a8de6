"""Trials and where they are kept: Optuna, which is imported here and when it is needed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.base.errors import UsageError
from surgeon.remote.locations import bare
from surgeon.trials.varied import Choice, Range, Varied

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as OptunaTrial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SAMPLERS = ("tpe", "cmaes")
_OPENINGS, _SECONDS_BETWEEN = 8, 0.25
# Of a trial: why it gave no number. Of a study: what its trials have in common.
_MESSAGE, _SEARCH = "message", "surgeon"
_INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Trial:
    """Values that were tried, by label, and the number that they gave or why they gave none."""

    number: int
    values: Mapping[str, Any]
    value: float | None
    message: str = ""


def require(sampler: str, several: Sequence[Varied]) -> None:
    """Raise UsageError where Optuna is not installed, or the sampler is not for what is varied."""
    if sampler not in SAMPLERS:
        raise UsageError(f"sampler: '{sampler}' is none of {', '.join(SAMPLERS)}")
    try:
        for library in ("optuna", *["cmaes"] * (sampler == "cmaes")):
            import_module(library)
    except ImportError:
        raise UsageError(
            "a search needs Optuna: pip install 'surgeon-checkpoints[search]'"
        ) from None
    if sampler == "cmaes":
        if choices := [one.label for one in several if isinstance(one.among, Choice)]:
            raise UsageError(
                f"sampler cmaes: varies numbers, and '{choices[0]}' is a choice; tpe takes both"
            )
        if len(several) < 2:
            raise UsageError("sampler cmaes: varies two numbers or more; tpe varies one too")


@dataclass(frozen=True)
class Trials:
    """The trials of one search, of this run and those before, of this machine and others."""

    study: Study
    varied: Sequence[Varied]
    sampler: str
    seed: int

    def ask(self) -> tuple[OptunaTrial, dict[str, Any]]:
        """Return a new trial, and the values that it is to try."""
        # Anew for each trial, so that a search that goes on proposes what it would have proposed.
        self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask({one.label: _distribution(one.among) for one in self.varied})
        return trial, _values(trial.params, self.varied)

    def tell(self, trial: OptunaTrial, value: float) -> None:
        """Keep the number that a trial gave."""
        self.study.tell(trial, value)

    def fail(self, trial: OptunaTrial, message: str) -> None:
        """Keep why a trial gave no number."""
        from optuna.trial import TrialState

        trial.set_user_attr(_MESSAGE, message)
        self.study.tell(trial, state=TrialState.FAIL)

    def interrupt(self, trial: OptunaTrial) -> None:
        """Let go of a trial that was begun and does not count."""
        self.fail(trial, _INTERRUPTED)

    def done(self) -> list[Trial]:
        """Return every trial that is over, but for those that were interrupted."""
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            message = trial.user_attrs.get(_MESSAGE, "")
            if trial.state.is_finished() and message != _INTERRUPTED:
                values = _values(trial.params, self.varied)
                found.append(Trial(trial.number, values, _value_of(trial), message))
        return found

    def _sampler(self, count: int) -> BaseSampler:
        from optuna.samplers import CmaEsSampler, TPESampler

        seed = int(np.random.SeedSequence([self.seed, count]).generate_state(1)[0])
        if self.sampler == "tpe":
            return TPESampler(seed=seed)
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _value_of(trial: FrozenTrial) -> float | None:
    return trial.values[0] if trial.values else None


def _values(parameters: Mapping[str, Any], several: Sequence[Varied]) -> dict[str, Any]:
    return {
        one.label: json.loads(value) if isinstance(one.among, Choice) else value
        for one in several
        if (value := parameters.get(one.label)) is not None
    }


def _distribution(among: Range | Choice) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(among, Choice):
        # As JSON: Optuna keeps no lists, and takes 1 and true for one choice.
        return CategoricalDistribution([json.dumps(value) for value in among.values])
    if among.is_whole:
        step = int(among.step or 1)
        return IntDistribution(int(among.low), int(among.high), log=among.is_log, step=step)
    return FloatDistribution(among.low, among.high, log=among.is_log, step=among.step)


@contextmanager
def opened(
    name: str,
    storage: str | Path | None,
    about: Mapping[str, Any],
    several: Sequence[Varied],
    starts: Mapping[str, Any],
    *,
    sampler: str,
    seed: int,
    resume: bool,
    force: bool,
    output: Path | None = None,
) -> Iterator[Trials]:
    """Open the trials of a search, or begin them; `storage` is a URL, a file, or memory alone.

    Raises UsageError where they are none to go on with; without any, an `output` that is there is
    not of this search.

    `about` is what trials must have in common with those that they are to go on from. `starts` are
    the recipe's own values, which are the first to be tried.
    """
    import optuna
    from optuna.exceptions import DuplicatedStudyError

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kept, shown = _storage(storage), bare(str(storage))
    try:
        if force and not resume and name in optuna.get_all_study_names(kept):
            optuna.delete_study(study_name=name, storage=kept)
        try:
            study = optuna.create_study(
                storage=kept, study_name=name, direction="maximize", load_if_exists=resume
            )
        except DuplicatedStudyError:
            raise UsageError(
                f"{shown}: holds trials of '{name}' already; --resume goes on with them, "
                "--force begins anew"
            ) from None
        if (before := study.user_attrs.get(_SEARCH)) is None:
            if output and os.path.lexists(output) and not force:
                optuna.delete_study(study_name=name, storage=kept)
                raise UsageError(
                    f"{output}: exists, and {shown} has no trials of it to go on with; --force "
                    "replaces it"
                )
            study.set_user_attr(_SEARCH, dict(about))
            if starts:
                study.enqueue_trial(_parameters(starts, several))
        elif differing := [key for key, value in about.items() if before.get(key) != value]:
            raise UsageError(
                f"{shown}: its trials had another {' and '.join(differing)}, and their numbers "
                "cannot be compared; --force begins anew"
            )
        yield Trials(study, several, sampler, seed)
    finally:
        optuna.logging.set_verbosity(verbosity)
        kept.remove_session()
        if engine := getattr(getattr(kept, "_backend", kept), "engine", None):
            engine.dispose()


def _parameters(values: Mapping[str, Any], several: Sequence[Varied]) -> dict[str, Any]:
    """Return values as Optuna keeps them."""
    return {
        one.label: json.dumps(value) if isinstance(one.among, Choice) else value
        for one in several
        if (value := values.get(one.label)) is not None
    }


def _sqlite(path: Path) -> str:
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def _storage(place: str | Path | None) -> Any:
    """Return Optuna's storage; raises UsageError where it cannot be opened."""
    import optuna

    if place is None:
        return optuna.storages.InMemoryStorage()
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

    url = place if isinstance(place, str) else _sqlite(place)
    for left in reversed(range(_OPENINGS)):
        try:
            return optuna.storages.get_storage(url)
        except (ArgumentError, NoSuchModuleError, DBAPIError, ImportError, ValueError) as error:
            # Of those who begin at the same time, one makes the tables that the others trip over.
            if isinstance(error, DBAPIError) and left:
                time.sleep(_SECONDS_BETWEEN)
                continue
            reason = str(error).splitlines()[0].replace(url, bare(url))
            raise UsageError(
                f"{bare(str(place))}: cannot be used to keep trials: {reason}"
            ) from None
    raise AssertionError("the last opening returns or raises")
