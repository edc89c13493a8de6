"""The same bytes from files, from a bucket, over a cluster, and over one that reads a bucket."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.remote.conftest import Bucket, folder_bytes, run, write_model, write_recipe
from tests.remote.servers import Fault
from tests.remote.test_faults import is_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("distributed") is None, reason="an extra"),
]
TIES = {"op": "ties", "models": ["b", "c"], "density": 0.3}


def test_the_same_bytes_wherever_files_are_and_whoever_writes(
    bucket: Bucket, tmp_path: Path
) -> None:
    folders = [write_model(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    recipe = write_recipe(tmp_path / "ties.json", TIES, models={"b": None, "c": None})
    urls = [bucket.upload(folder, folder.name) for folder in folders]
    made = {}
    for name, inputs, more in [
        ("files", folders, []),
        ("bucket", urls, []),
        ("cluster", folders, ["--cluster", "local:2"]),
        ("cluster of a bucket", urls, ["--cluster", "local:2"]),
    ]:
        out = tmp_path / name
        done = run("apply", recipe, *inputs, "-o", out, "--quiet", *more)
        assert done.returncode == 0, (name, done.stderr)
        found = folder_bytes(out)
        del found["surgeon.manifest.json"]  # it names the inputs by where they are
        made[name] = found
    assert all(found == made["files"] for found in made.values())


def test_workers_notice_an_input_that_changes(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.upload(write_model(tmp_path / "a", rows=600), "a")
    recipe = write_recipe(tmp_path / "r.json", {"op": "scale", "target": "*", "by": 2.0})
    bucket.proxy.state.faults.append(Fault(etag="another", where=is_data))
    done = run("apply", recipe, url, "-o", tmp_path / "out", "--cluster", "local:2")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
