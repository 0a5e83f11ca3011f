"""A QEMU's monitor that misbehaves as a test wants."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

GREETING = {
    "QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}
}


class FakeMonitor:
    """Listens at ``path``. ``answers`` makes the answer to a command; ``greet`` is heard first."""

    def __init__(self, path: str, answers: Callable[[str, dict[str, Any]], Any]) -> None:
        self.answers = answers
        self.greet = json.dumps(GREETING).encode() + b"\r\n"
        self.raw: Callable[[socket.socket, dict[str, Any]], bool] = lambda _link, _request: False
        """Handles a request by itself, and says so."""
        self.heard: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(8)
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._converse, args=(link,), daemon=True)
            thread.start()

    def _converse(self, link: socket.socket) -> None:
        with link:
            try:
                link.sendall(self.greet)
                for request in _requests(link):
                    self.heard.append(request["execute"])
                    if request["execute"] != "qmp_capabilities" and self.raw(link, request):
                        continue
                    answer = {} if request["execute"] == "qmp_capabilities" else self._answer(request)
                    tag = {"id": request["id"]} if "id" in request else {}
                    link.sendall(json.dumps({**tag, **_framed(answer)}).encode() + b"\n")
            except OSError:
                return

    def _answer(self, request: dict[str, Any]) -> Any:
        return self.answers(request["execute"], request.get("arguments", {}))


def _requests(link: socket.socket) -> Iterator[dict[str, Any]]:
    """Requests come one after another, with nothing between them."""
    decoder, text = json.JSONDecoder(), ""
    while data := link.recv(65536):
        text += data.decode()
        while text:
            try:
                request, end = decoder.raw_decode(text)
            except ValueError:
                break  # the rest has still to come
            text = text[end:].lstrip()
            yield request


def _framed(answer: Any) -> dict[str, Any]:
    if isinstance(answer, Exception):
        return {"error": {"class": "GenericError", "desc": str(answer)}}
    return {"return": answer}
