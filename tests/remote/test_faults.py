"""What goes wrong between here and elsewhere: tried again, or said in a line with its exit code."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.remote.conftest import KEYS, folder_bytes, run, write_model, write_recipe
from tests.remote.servers import Fault

pytest.importorskip("obstore")
pytestmark = pytest.mark.slow


def is_data(asked):
    """Say whether a request is for a tensor's bytes, not for a header."""
    return asked.method == "GET" and asked.range and not asked.range.startswith("bytes=0-")


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", rows=600)


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "r.json", {"op": "scale", "target": "*", "by": 2.0})


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, times=3),
        Fault(status=503, times=3, where=is_data),
        Fault(is_cut=True, times=2, where=is_data),
        Fault(status=500, times=2, where=lambda asked: asked.method == "PUT"),
    ],
    ids=["503", "503 of data", "cut", "500 of an upload"],
)
def test_what_passes_is_tried_again(bucket, folder, recipe, tmp_path, fault):
    source = bucket.upload(folder)
    assert run("apply", recipe, folder, tmp_path / "out").returncode == 0
    bucket.proxy.state.faults.append(fault)
    done = run("apply", recipe, source, f"{bucket.url}/out")
    assert (done.returncode, fault.times) == (0, 0), done.stderr
    assert bucket.contents("out/") == folder_bytes(tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=503), "the server answers with status 503 each time"),
        (Fault(status=403), r"access is denied \(status 403\)"),
        (Fault(is_cut=True, where=is_data), "the connection was cut"),
        (Fault(etag="another", where=is_data), "was changed while it was read"),
        (Fault(status=412, where=is_data), "was changed while it was read"),
    ],
    ids=["503", "403", "cut", "another ETag", "412"],
)
def test_what_stays_wrong_ends_with_3_and_nothing_written(
    web, recipe, tmp_path, request, fault, said
):
    write_model(web.folder / re.sub(r"\W", "_", request.node.name), rows=600)
    url = f"{web.url}/{re.sub(r'[^a-zA-Z0-9_]', '_', request.node.name)}/"
    web.state.faults.append(fault)
    done = run("apply", recipe, url, tmp_path / "out")
    assert done.returncode == 3
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_meanwhile_is_noticed(bucket, folder, recipe, tmp_path):
    source = bucket.upload(folder)
    changed = []

    def change(asked):
        if is_data(asked) and not changed:
            name = "model-00001-of-00002.safetensors"
            data = (folder / name).read_bytes()
            bucket.client.put_object(Bucket=bucket.name, Key=f"model/{name}",
                                     Body=data[:-4] + b"\1\2\3\4")  # fmt: skip
            changed.append(asked)
        return False

    bucket.proxy.state.faults.append(Fault(where=change))
    done = run("apply", recipe, source, f"{bucket.url}/out")
    assert (done.returncode, bool(changed)) == (3, True)
    assert "was changed while it was read" in done.stderr
    assert bucket.contents("out/") == {}
    assert bucket.uploads() == []


@pytest.mark.parametrize(
    ("method", "part"),
    [("PUT", "out/model"), ("PUT", "config.json"), ("PUT", "surgeon.manifest")],
)
def test_a_refused_upload_ends_with_5_and_is_taken_back(bucket, folder, recipe, method, part):
    refused = Fault(status=403, where=lambda one: one.method == method and part in one.path)
    bucket.proxy.state.faults.append(refused)
    done = run("apply", recipe, folder, f"{bucket.url}/out")
    assert done.returncode == 5
    assert "cannot be written: access is denied (status 403)" in done.stderr
    assert bucket.contents() == {}


def test_a_server_that_is_not_there_is_said_to_be(recipe, tmp_path):
    done = run("inspect", "http://127.0.0.1:9/x.safetensors")
    assert done.returncode == 3
    assert done.stderr == (
        "http://127.0.0.1:9/x.safetensors: cannot be read: the server cannot be reached\n"
    )


def test_who_makes_the_requests_may_be_killed(web, folder):
    """In a process of its own, whose helpers it is."""
    shutil.copy(folder / "model-00001-of-00002.safetensors", web.folder / "killed.safetensors")
    program = (
        "import surgeon, multiprocessing, time\n"
        f"url = '{web.url}/killed.safetensors'\n"
        "first = surgeon.inspect(url).as_json()\n"
        "for child in multiprocessing.active_children(): child.kill(); child.join()\n"
        "time.sleep(0.5)\n"
        "assert surgeon.inspect(url).as_json() == first\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=100, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_aborts_uploads_and_takes_back(bucket, tmp_path, number):
    data = {f"w{n}": np.zeros((1024, 10_000), np.float32) for n in range(3)}
    save_file(data, tmp_path / "in.safetensors")
    recipe = write_recipe(tmp_path / "r.json")
    running = []

    def end(asked):
        if "partNumber=4" in asked.path and running:
            running.pop().send_signal(number)
        return False

    bucket.proxy.state.faults.append(Fault(where=end))
    process = subprocess.Popen(
        [sys.executable, "-m", "surgeon", "apply", recipe, tmp_path / "in.safetensors",
         f"{bucket.url}/out.safetensors"],
        stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    running.append(process)
    _, said = process.communicate(timeout=100)
    assert (process.returncode, running) == (128 + number, [])
    assert "Traceback" not in said
    assert bucket.contents() == {}
    assert bucket.uploads() == []


SECRETS = ("planted-user", "planted-password", "planted-query", KEYS["AWS_SECRET_ACCESS_KEY"])


def _secrets_in(*texts):
    return [one for one in SECRETS if any(one in str(text) for text in texts)]


@pytest.mark.parametrize("fault", [None, 403, 503, "other"])
def test_no_secret_is_printed_or_written(bucket, web, recipe, tmp_path, request, fault):
    folder = write_model(web.folder / f"secret-{fault}", shards=1)
    host = web.url.removeprefix("http://")
    name = f"{folder.name}/model-00001-of-00001.safetensors"
    url = f"http://planted-user:planted-password@{host}/{name}?signature=planted-query"
    if fault:
        web.state.faults.append(
            Fault(etag="x", where=is_data) if fault == "other" else Fault(status=fault)
        )
    said = []
    web.state.needs = "signature=planted-query"
    out = tmp_path / "out"
    commands = [
        ("apply", recipe, url, out, "--cache", tmp_path / "cache"),
        ("apply", recipe, url, f"{bucket.url}/out/x.safetensors"),
        ("plan", recipe, url, "--json"), ("inspect", url), ("inspect", url, "--json"),
        ("diff", url, url, "--json"), ("apply", recipe, url, url),
        ("plan", recipe, url, "--model", f"m={url}"), ("apply", url, url, out),
        ("verify", url), ("compare", url, url), ("inspect", url, "--no-such-option"),
        ("validate", url), ("inspect", f"{url}#inner"), ("plan", recipe, url, "-o", url),
        ("plan", recipe, url, "--set", f"a={url}"),
    ]  # fmt: skip
    for command in commands if fault is None else commands[:5]:
        done = run(*command)
        said += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = [path.read_bytes().decode(errors="replace") for path in files]
    written += [data.decode(errors="replace") for data in bucket.contents("out/").values()]
    assert _secrets_in(*said, *files, *written) == []
    assert fault or (written and len(bucket.contents("out/")) == 2)
