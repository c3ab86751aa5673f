"""A webhook's other end: a real HTTP server on loopback that answers as it is told, and keeps what it got."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Got:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(frozen=True)
class Say:
    """One answer: its status and headers; `silent` for none until the server ends, `endless` for no end."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    endless: bool = False


class Receiver:
    """Takes requests. `answers` are given in turn, the last one for good."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: list[Say] = [Say()]
        self.ending = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                receiver._answer(self)

            do_POST = do_GET = _any

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("content-length", "0"))
        body = request.rfile.read(length)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append(Got(request.command, request.path, headers, body))
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if said.silent:
            self.ending.wait(60)
            return
        request.send_response(said.status)
        for name, value in said.headers.items():
            request.send_header(name, value)
        if not said.endless:
            request.send_header("content-length", "0")
            request.end_headers()
            return
        request.end_headers()
        try:
            while not self.ending.is_set():
                request.wfile.write(b"x" * 65_536)
        except OSError:
            pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()
