"""What gives a recipe its number: a command that reads an output, or a function of tensors."""

from __future__ import annotations

import math
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from os import killpg
from pathlib import Path
from typing import IO, Any, Protocol

from surgeon import surgery
from surgeon.base.errors import SurgeonError, UsageError
from surgeon.formats import Checkpoint
from surgeon.library.memory import apply_to
from surgeon.library.opening import OpenedCheckpoint
from surgeon.library.running import telling_of_depth
from surgeon.output.execute import Options
from surgeon.output.workers import default_workers
from surgeon.recipe import Recipe

PLACE = "{output}"
# Of what a command prints, in bytes from the end; and of a message, in characters.
_MOST_READ = 1 << 16
_MOST_SAID = 300
_SECONDS_TO_STOP = 5


class NoNumberError(Exception):
    """A trial that gave no number, and why."""


class Score(Protocol):
    """Gives a recipe's number; raises NoNumberError, or SurgeonError, where it has none."""

    def __call__(self, recipe: Recipe) -> float: ...


@dataclass(frozen=True)
class Command:
    """Applies a recipe into a scratch folder and runs a command on what was written.

    `environment` is the command's; None is that of this process.
    """

    command: str
    source: str
    bind: Callable[[Recipe], Mapping[str, str]]
    is_folder: bool
    allow_code: bool
    environment: Mapping[str, str] | None

    def __call__(self, recipe: Recipe) -> float:
        with tempfile.TemporaryDirectory(prefix="surgeon-search-") as scratch:
            output = self.output_in(scratch)
            # Of how it would be trained, a command could not tell.
            bare = replace(recipe, training=None)
            locations = self.bind(recipe)
            with (
                telling_of_depth(),
                surgery.opened(
                    bare, self.source, locations, "none", allow_code=self.allow_code
                ) as made,
            ):
                surgery.write(made, output, Options(default_workers(), "none"))
            return last_number(self.command, output, self.environment)

    def output_in(self, folder: str) -> Path:
        """Return where the output goes in a folder: a file, or a model folder."""
        return Path(folder) / ("model" if self.is_folder else "model.safetensors")


def require_place(command: str) -> None:
    """Raise UsageError where a command has no place for what it is to evaluate."""
    if PLACE not in command:
        raise UsageError(f"evaluate: '{command}' has no {PLACE}, where the model's path goes")


def is_folder(source: str) -> bool:
    """Say whether outputs are to be model folders: where the input is one, or names its index."""
    place = source.partition("#")[0]
    return Path(place).is_dir() or place.endswith(".index.json")


def last_number(command: str, output: Path, environment: Mapping[str, str] | None) -> float:
    """Run a command on an output; return the number that is the last line that it prints."""
    line = command.replace(PLACE, shlex.quote(str(output)))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        # A session of its own, so that what the command starts can be stopped with it.
        process = subprocess.Popen(
            line, shell=True, stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        said, complaint = _last_line(out), _last_line(errors)
    if code:
        how = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
        raise NoNumberError(f"the command {how}: {complaint or said or 'it said nothing'}")
    return as_number(said, "the command's last line")


def as_number(value: Any, what: str) -> float:
    """Return a finite float; raises NoNumberError for everything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise NoNumberError(f"{what} is no number: {value!r:.{_MOST_SAID}}") from None
    if not math.isfinite(number):
        raise NoNumberError(f"{what} is {number}, and no number to compare")
    return number


def _last_line(file: IO[bytes]) -> str:
    size = file.seek(0, 2)
    file.seek(max(size - _MOST_READ, 0))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[-_MOST_SAID:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_STOP)
            return


@dataclass(frozen=True)
class Function:
    """Applies a recipe in memory and gives a function what came out."""

    function: Callable[[dict[str, Any]], float]
    state_dict: Mapping[str, Any]
    models: Any
    allow_code: bool

    def __call__(self, recipe: Recipe) -> float:
        made = apply_to(self.state_dict, recipe, models=self.models, allow_code=self.allow_code)
        try:
            value = self.function(made)
        except SurgeonError:
            raise
        except Exception as error:
            raise NoNumberError(f"{type(error).__name__}: {error}"[:_MOST_SAID]) from error
        return as_number(value, "what the function returned")


def in_memory(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the tensors of a checkpoint as tensors of torch; tied names share one."""
    opened = OpenedCheckpoint(checkpoint)
    found = {name: opened[name].torch() for name in opened if name not in opened.ties}
    return {name: found[opened.ties.get(name, name)] for name in opened}
