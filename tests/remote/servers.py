"""Servers on loopback: files with ranges, a hub, and what stands before another and fails at will.

Each counts what it was asked, so that tests can say what an answer costs.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Asked:
    """A request, and what a test has it answered with instead."""

    method: str
    path: str
    range: str
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong: a status, half an answer, or another ETag; `times` of them, then none."""

    status: int = 0
    is_cut: bool = False
    etag: str = ""
    times: int = 1 << 30
    where: Callable[[Asked], bool] = lambda asked: True

    def hits(self, asked: Asked) -> bool:
        if self.times <= 0 or not self.where(asked):
            return False
        self.times -= 1
        return True


@dataclass
class State:
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    # What has to stand in a path, as a signature does.
    needs: str = ""

    def clear(self) -> None:
        self.asked.clear()
        self.faults.clear()
        self.needs = ""

    def methods(self) -> list[str]:
        return [one.method for one in self.asked]

    @property
    def sent_bytes(self) -> int:
        return sum(one.sent for one in self.asked)


class Server:
    """A server in a thread; `url` is where it is, `state` what it was asked and does wrong."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], **more: object) -> None:
        self.state = State()
        made = type("Handler", (handler,), {"state": self.state, **more})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), made)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *arguments: object) -> None:
        pass

    def _begin(self) -> tuple[Asked, Fault | None]:
        asked = Asked(self.command, self.path, self.headers.get("Range", ""))
        self.state.asked.append(asked)
        return asked, next((f for f in self.state.faults if f.hits(asked)), None)

    def _answer(
        self, asked: Asked, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", headers.get("Length", str(len(body))))
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            asked.sent = len(body) // 2
        elif self.command != "HEAD":
            self.wfile.write(body)
            asked.sent = len(body)


class FileHandler(_Handler):
    """Files of a folder, with ranges, ETags and If-Match."""

    folder: Path

    def do_GET(self) -> None:
        asked, fault = self._begin()
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if fault and fault.status:
            self._answer(asked, fault.status, {}, b"no")
        elif self.state.needs not in self.path or (
            self.state.needs and not self.headers.get("Authorization", "").startswith("Basic ")
        ):
            self._answer(asked, 403, {}, b"")
        elif not path.is_file():
            self._answer(asked, 404, {}, b"")
        else:
            self._give(asked, path.read_bytes(), fault)

    do_HEAD = do_GET  # noqa: N815 (as http.server names them)

    def _give(self, asked: Asked, data: bytes, fault: Fault | None) -> None:
        etag = f'"{fault.etag if fault and fault.etag else hashlib.md5(data).hexdigest()}"'
        wanted = self.headers.get("If-Match")
        if wanted and wanted != etag:
            self._answer(asked, 412, {}, b"")
            return
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        status, cut = 200, bool(fault and fault.is_cut)
        if asked.range:
            first, _, last = asked.range.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(data)), len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            status, data = 206, data[start:stop]
        self._answer(asked, status, headers, data, cut=cut)


class HubHandler(FileHandler):
    """A hub of models at one commit: what a repository holds, and its files."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            asked, _ = self._begin()
            name = "/".join(urlsplit(self.path).path.split("/")[3:5])
            body = self._described(name)
            headers = {"Content-Type": "application/json"}
            headers |= {} if body else {"X-Error-Code": "RepoNotFound"}
            self._answer(asked, 200 if body else 404, headers, json.dumps(body).encode())
            return
        self.path = self.path.replace(f"/resolve/{self.commit}/", "/")
        super().do_GET()

    do_HEAD = do_GET  # noqa: N815 (as http.server names them)

    def _described(self, name: str) -> dict[str, object]:
        folder = self.folder / name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size,
                     "blobId": "0"} for path in files]  # fmt: skip
        return {"id": name, "sha": self.commit, "siblings": siblings} if files else {}


class ProxyHandler(_Handler):
    """Passes everything on to another server, but for what goes wrong."""

    behind: str

    def _pass(self) -> None:
        asked, fault = self._begin()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault and fault.status:
            self._answer(asked, fault.status, {"Content-Type": "text/plain"}, b"no")
            return
        place = urlsplit(self.behind)
        there = http.client.HTTPConnection(place.hostname or "", place.port)
        there.request(self.command, self.path, body, dict(self.headers))
        answer = there.getresponse()
        data = answer.read()
        left = ("content-length", "connection", "transfer-encoding")
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in left}
        if fault and fault.etag:
            headers = {k: v for k, v in headers.items() if k.lower() != "etag"}
            headers["ETag"] = f'"{fault.etag}"'
        if self.command == "HEAD":
            headers["Length"] = answer.headers.get("Content-Length", "0")
        self._answer(asked, answer.status, headers, data, cut=bool(fault and fault.is_cut))
        there.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815
