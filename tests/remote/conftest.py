"""What tests of things elsewhere need: models, servers, a bucket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.remote.servers import FileHandler, HubHandler, ProxyHandler, Server

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "planted-secret-of-the-environment",
        "AWS_REGION": "us-east-1"}  # fmt: skip


def write_model(folder: Path, *, shards: int = 2, seed: int = 0, rows: int = 64) -> Path:
    """Write a model folder of as many shards, with what lies beside them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    names = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    weights: dict[str, str] = {}
    total = 0
    for number, name in enumerate(names):
        tensors = {f"layers.{number}.{part}": random.standard_normal((rows, 64), np.float32)
                   for part in ("a", "b")}  # fmt: skip
        save_file(tensors, folder / name, {"format": "pt"})
        weights |= dict.fromkeys(tensors, name)
        total += sum(one.nbytes for one in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    return folder


def write_recipe(path: Path, *steps: dict[str, object], **more: object) -> Path:
    path.write_text(json.dumps({"surgeon": 1, "steps": list(steps), **more}))
    return path


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "surgeon", *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A web server of an empty folder, which is its `folder`."""
    folder = tmp_path_factory.mktemp("site")
    server = Server(FileHandler, folder=folder)
    server.folder = folder
    yield server
    server.close()


@pytest.fixture
def web(site: Server) -> Iterator[Server]:
    site.state.clear()
    yield site
    site.state.clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub whose repositories are the folders of its `folder`."""
    folder = tmp_path / "hub"
    server = Server(HubHandler, folder=folder)
    server.folder = folder
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield server
    server.close()


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """A server that speaks S3."""
    pytest.importorskip("moto")
    pytest.importorskip("flask")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


class Bucket:
    """A bucket behind a proxy that counts, and fails at will."""

    def __init__(self, proxy: Server, behind: str, name: str) -> None:
        import boto3

        self.proxy, self.name, self.url = proxy, name, f"s3://{name}"
        self.client = boto3.client(
            "s3", endpoint_url=behind, region_name="us-east-1",
            aws_access_key_id="key", aws_secret_access_key="secret",
        )  # fmt: skip
        self.client.create_bucket(Bucket=name)

    def upload(self, source: Path, key: str = "") -> str:
        key = key or source.name
        files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
        for path in files:
            name = key if source.is_file() else f"{key}/{path.relative_to(source)}"
            self.client.upload_file(str(path), self.name, name)
        return f"{self.url}/{key}"

    def contents(self, prefix: str = "") -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        read = self.client.get_object
        keys = [one["Key"] for one in found]
        return {k.removeprefix(prefix): read(Bucket=self.name, Key=k)["Body"].read() for k in keys}

    def uploads(self) -> list[object]:
        return self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])


@pytest.fixture
def bucket(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    pytest.importorskip("obstore")
    pytest.importorskip("boto3")
    proxy = Server(ProxyHandler, behind=moto)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": proxy.url}.items():
        monkeypatch.setenv(name, value)
    yield Bucket(proxy, moto, f"bucket-{abs(hash(str(tmp_path))) % 10**8}")
    proxy.close()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, by their names in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
