"""A process that probes one model type after the other, ended where it hangs."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

# A type with models of several kinds in it takes minutes on a busy machine.
_SECONDS_PER_TYPE = 400


def _work(pipe: Connection) -> None:
    """Probe the types that come through a pipe, one after the other."""
    from tests.architectures.build import NoBuildError, classes_of_types
    from tests.architectures.probe import probe

    classes = classes_of_types()
    while True:
        model_type = pipe.recv()
        try:
            found: Any = probe(model_type, classes[model_type])
        except NoBuildError as error:
            found = str(error)
        except Exception as error:  # whatever goes wrong with one type, the others are probed
            found = f"{type(error).__name__}: {error}"
        pipe.send(found)


class Worker:
    """A process that probes, started again where it hangs."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()

    def probe(self, model_type: str) -> Any:
        """Return what is known of a type, or why nothing is."""
        self._pipe.send(model_type)
        try:
            if self._pipe.poll(_SECONDS_PER_TYPE):
                return self._pipe.recv()
            reason = f"more than {_SECONDS_PER_TYPE} s"
        except (EOFError, ConnectionError):
            reason = "the process ended"
        self.close()
        self._start()
        return reason

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
