"""Run surgeon many times from one process, each in a fork that is failed or killed; prints JSON.

`driver.py JOB.json`: what is imported is imported once, so that a run takes as long as its work.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_PUBLISHING = {"rename", "renameat2", "link", "linkat", "flock", "fsync", "unlink", "unlinkat"}
_LACKING = {"": 0, "exchange": 1, "exchange and links": 3, "locks": 4}


class Driver:
    """A folder to begin with, a command, and what it makes of the folder."""

    def __init__(self, job: Json) -> None:
        self.job = job
        self.start = Path(job["start"])
        self.folder = self.start.with_name(f"{self.start.name}-trial")
        self.log = self.start.with_name("calls")
        self.command: list[str] = job["command"]
        self.shim = ctypes.CDLL(job["shim"]) if job.get("shim") else None
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.old = snapshot(self.start)
        self.end = time.monotonic() + job["seconds"]
        self.fresh()
        began = time.monotonic()
        code, said = self.run(self.command)
        self.lasts = time.monotonic() - began
        assert code == 0, said
        self.new = snapshot(self.folder)
        assert not debris(self.new), self.new.keys()
        assert self.new != self.old

    def fresh(self) -> None:
        """Put the folder back to how it was."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.start, self.folder)

    def run(
        self, arguments: list[str], *, at: int = 0, number: int = 0, log: bool = False,
        lacking: str = "", kill_after: float | None = None,
    ) -> tuple[int, str]:  # fmt: skip
        """Run a command line of surgeon; returns its exit code, negative for a signal, and text."""
        said = self.start.with_name("said")
        sys.stdout.flush()
        child = os.fork()
        if not child:
            self._become(arguments, said, at, number, log, lacking)
        if kill_after is not None:
            timer = threading.Event()
            timer.wait(kill_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")

    def _become(
        self, arguments: list[str], said: Path, at: int, number: int, log: bool, lacking: str
    ) -> None:
        code: Any = 70
        try:
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.folder)
            sys.argv = ["surgeon", *arguments]
            from surgeon.__main__ import main

            if self.shim:
                self.shim.attack_lack(_LACKING[lacking])
                where = os.fsencode(self.log) if log else b""
                self.shim.attack_arm(os.fsencode(self.folder), where, at, number)
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code if isinstance(code, int) else 1)

    # --- What may be there afterwards ---

    def judge(self, what: str, code: int, said: str, lacking: str = "", call: str = "") -> None:
        """Check what a run left, and that the next ones clear it; `call` is the one that failed."""
        try:
            self._judge(code, said, lacking, call)
        except AssertionError as error:
            self.wrong.append(f"{what}: exit code {code}: {error}: {said[-300:]}")

    def _judge(self, code: int, said: str, lacking: str, call: str) -> None:
        there = snapshot(self.folder)
        state = self.state_of(there)
        assert "Traceback" not in said, "a traceback"
        if code >= 0:  # it ended by itself
            assert state == ("new" if code == 0 else "old"), f"left {state}"
            # What failed may be the removal of what was replaced.
            if not call or code:
                assert not debris(there), f"left {debris(there)}"
            elif debris(there):
                self.counts["temporaries that could not be removed, but by the next run"] += 1
            # 2 and 4 where a manifest, or a config, that cannot be read leaves open what to do.
            assert code in (0, 2, 3, 4, 5), "another exit code"
            assert code == 0 or len(said.splitlines()) >= 1, "no message"
        self.counts[f"left {state} output" if state != "mixture" else "left a visible mixture"] += 1
        if state == "mixture":
            assert self.is_refused(), "a mixture that bind takes"
            ended, answer = self.run(["verify", self.job["output"]], lacking=lacking)
            settled = self.state_of(snapshot(self.folder))
            assert settled in ("old", "new"), f"verify left {settled}"
            assert ended == 0 or (ended == 3 and settled == "old"), f"verify: {ended} {answer}"
            self.counts["mixtures that the next command settled"] += 1
        # In place, the recipe fits what was there before alone.
        again = self.job["again"] if self.state_of(snapshot(self.folder)) == "new" else self.command
        ended, answer = self.run(again, lacking=lacking)
        assert ended == 0, f"the next run: {ended} {answer}"
        left = snapshot(self.folder)
        assert not debris(left), f"the next run left {debris(left)}"
        assert again != self.command or left == self.new, "the next run made something else"

    def state_of(self, there: Json) -> str:
        """Say whether a folder is as before or as after, but for temporaries."""
        plain = {name: content for name, content in there.items() if not _is_debris(name)}
        return "new" if plain == self.new else "old" if plain == self.old else "mixture"

    def is_refused(self) -> bool:
        """Say whether the next training run would refuse what is there, without finishing it."""
        from surgeon.manifest.model import Manifest, read
        from surgeon.manifest.names import manifest_of
        from surgeon.training.live import checkpoint_problems

        path = manifest_of(self.folder / self.job["output"])
        try:
            return bool(list(checkpoint_problems(read(Manifest, path))))
        except OSError:
            return True

    # --- Attacks ---

    def fail_every_call(self) -> None:
        """Fail each call that a run makes, and kill the run there."""
        for lacking in self.job["lacking"]:
            self.fresh()
            self.log.unlink(missing_ok=True)
            code, said = self.run(self.command, log=True, lacking=lacking)
            assert code == 0, said
            assert snapshot(self.folder) == self.new, f"without {lacking}: another output"
            calls = self.log.read_text().split()
            self.counts["calls that a run makes"] += len(calls)
            trials = [
                (at, number)
                for at, call in enumerate(calls, 1)
                for number in (0, errno.EIO, errno.ENOSPC)
                # The others end as they did before, wherever something else is lacking.
                if not lacking or (call in _PUBLISHING and number != errno.ENOSPC)
            ]
            random.Random(self.job["seed"]).shuffle(trials)
            # Where time is short, what makes an output appear comes first.
            trials.sort(key=lambda trial: calls[trial[0] - 1] not in _PUBLISHING)
            for at, number in trials:
                if time.monotonic() > self.end:
                    self.counts["loops that ended by the time limit"] += 1
                    break
                self.fresh()
                code, said = self.run(self.command, at=at, number=number, lacking=lacking)
                self.counts["calls failed" if number else "kills at a call"] += 1
                name = errno.errorcode.get(number, "kill")
                call = calls[at - 1]
                what = f"{name} at {call} ({at}), without '{lacking}'"
                self.judge(what, code, said, lacking, call if number else "")

    def kill_at_random(self) -> None:
        """Kill runs at random moments."""
        source = random.Random(self.job["seed"])
        for _ in range(self.job["moments"]):
            if time.monotonic() > self.end:
                self.counts["loops that ended by the time limit"] += 1
                break
            self.fresh()
            moment = source.uniform(0, 1.1 * self.lasts)
            code, said = self.run(self.command, kill_after=moment)
            self.counts["kills at a random moment" if code < 0 else "runs that ended first"] += 1
            self.judge(f"killed after {moment:.4f} s", code, said)


def snapshot(folder: Path) -> Json:
    """Return what is in a folder: of each file its hash, but where its inputs lie."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _is_debris(name: str) -> bool:
    return any(".surgeon-" in part for part in Path(name).parts)


def debris(there: Json) -> list[str]:
    return [name for name in there if _is_debris(name)]


def main() -> None:
    """Do a job, and print what came of it."""
    job = json.loads(Path(sys.argv[1]).read_text())
    for module in job["imports"]:
        __import__(module)
    driver = Driver(job)
    getattr(driver, job["do"])()
    print(json.dumps({"counts": driver.counts, "wrong": driver.wrong}))


if __name__ == "__main__":
    main()
