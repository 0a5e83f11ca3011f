"""An object store on this machine: moto's, behind a proxy that can lose requests and answers.

The proxy speaks HTTP/1.1, one request a connection, and passes whole requests on. ``faults`` are met
by the next requests of a method: "refuse" (503), "cut" (the connection ends in the middle of the request's
body; the store sees nothing), "lose" (the store does it, the answer never comes), "short" (half of the
answer's body, then the end).
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ANYBODY = "AWS4-HMAC-SHA256 Credential=tester/20260101/us-east-1/s3/aws4_request, Signature=x"


class ObjectStore:
    """One store for a test session; buckets keep tests apart."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        host, port = self._moto.get_host_and_port()
        self._address = (host, port)
        self._buckets = 0
        self.is_off = False
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.requests: list[tuple[str, str]] = []
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._proxy.daemon_threads = True
        self._thread = threading.Thread(target=self._proxy.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Of the proxy."""
        return f"http://127.0.0.1:{self._proxy.server_port}"

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Answer 503 to everything while inside."""
        self.is_off = True
        try:
            yield
        finally:
            self.is_off = False

    def fail_puts(self, fault: str, count: int) -> None:
        """Have the next so many puts meet a fault."""
        self.faults["PUT"].extend([fault] * count)

    def make_bucket(self) -> str:
        """A fresh bucket; returns its location."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        status, _, _ = self.forward("PUT", f"/{name}", b"", {})
        assert status == 200
        return f"s3://{name}"

    def keys(self, location: str) -> list[str]:
        """Every key in the bucket of a location, past the proxy."""
        bucket = location.removeprefix("s3://").partition("/")[0]
        _, _, body = self.forward("GET", f"/{bucket}?list-type=2", b"", {})
        return re.findall(r"<Key>([^<]*)</Key>", body.decode())

    def drop_bucket(self, location: str) -> None:
        """Remove a bucket and all in it."""
        bucket = location.removeprefix("s3://").partition("/")[0]
        for key in self.keys(location):
            status, _, _ = self.forward("DELETE", f"/{bucket}/{key}", b"", {"Authorization": _ANYBODY})
            assert status == 204
        assert self.forward("DELETE", f"/{bucket}", b"", {})[0] == 204

    def forward(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Pass a request on to moto."""
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._thread.join()
        self._moto.stop()


def _handler_of(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            store.requests.append((self.command, self.path))
            waiting = store.faults[self.command]
            fault = waiting.popleft() if waiting else ""
            length = int(self.headers.get("Content-Length", 0))
            if fault == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                self.connection.close()
                return
            body = self.rfile.read(length)
            if fault == "refuse" or store.is_off:
                self._answer(503, [], b"slow down")
                return
            status, headers, answer = store.forward(self.command, self.path, body, dict(self.headers))
            if fault == "lose":
                self.close_connection = True
                self.connection.close()
                return
            self._answer(status, headers, answer, short=fault == "short")

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, *, short: bool = False
        ) -> None:
            self.send_response(status)
            told = {name.lower() for name, _ in headers}
            for name, value in headers:
                if name.lower() not in {"connection", "transfer-encoding", "date", "server"}:
                    self.send_header(name, value)
            if "content-length" not in told:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if short else body)
            if short:
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
