"""Run many command lines of surgeon in one process; prints what became of each as JSON.

The standard library alone, and of surgeon its `__main__`: `driver.py JOBS.json`, a list of argument
lists.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def run(arguments: list[str]) -> dict[str, object]:
    """Do what `python -m surgeon ARGUMENTS` does, without a process of its own."""
    sys.argv = ["surgeon", *arguments]
    raw = io.BytesIO()
    said = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    code: object = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_module("surgeon", run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        except Exception:
            traceback.print_exc()
            code = "a traceback"
    return {"code": code, "said": raw.getvalue().decode()}


if __name__ == "__main__":
    # Nothing here outlives the test: waiting for the disk is most of what small runs do.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    jobs = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([run(arguments) for arguments in jobs]))
