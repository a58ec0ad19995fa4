"""An HTTP proxy in front of the service that counts what is downloaded, and damages it on request.

::

    with DownloadProxy(cartd.port) as proxy:
        proxy.fault = lambda answer: answer.cut(1000)
        client.download(...)
    assert proxy.fetched_twice() == 0

Each connection carries one request.  The part of a download that has been sent is counted when
the client's system has taken it.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

BLOCK = 1 << 14


@dataclass
class Answer:
    """The head of an answer, and what happens to its body; a fault changes it."""

    request: str
    """The head of the request."""
    head: str
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    stall: threading.Event | None = None
    """What to wait for after ``cut_after`` bytes."""
    change: Callable[[int, bytes], bytes] | None = None
    """Returns other bytes for those at an offset of the download."""
    paced: Callable[[int], None] | None = None
    """Called with the offset before each block of the body."""

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def is_download(self) -> bool:
        return self.request.startswith("GET ") and "filename=" in self.request

    @property
    def start(self) -> int:
        """Offset in the download of the first byte of the body."""
        found = re.search(r"(?i)content-range: bytes (\d+)-", self.head)
        return int(found[1]) if found else 0

    def replace(self, name: str, value: str) -> None:
        """Set a header, or remove it if the value is empty."""
        line = f"{name}: {value}\r\n" if value else ""
        head, count = re.subn(rf"(?i){name}: .*\r\n", lambda _: line, self.head)
        self.head = head if count else f"{self.head}{line}"


@dataclass
class DownloadProxy:
    """Listens on a port of its own, which stays when the service is restarted."""

    target: int
    fault: Callable[[Answer], None] | None = None
    """Called with each answer to a download."""
    drops_ranges: bool = False
    """Whether to remove Range and If-Range from requests, as some caches do."""
    sent: list[list[int]] = field(default_factory=list)
    """The spans of downloads that were sent, as offsets."""
    requests: list[str] = field(default_factory=list)
    """The heads of all requests."""

    def __enter__(self) -> DownloadProxy:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def fetched(self) -> int:
        """Return how many bytes of downloads were sent in all."""
        return sum(end - start for start, end in self.sent)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=[client], daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * BLOCK)
            request, rest = _head(client)
            if not request:
                return
            self.requests.append(request)
            with socket.create_connection(("127.0.0.1", self.target)) as service:
                if self.drops_ranges:
                    request = re.sub(r"(?im)^(if-)?range: .*\r\n", "", request)
                kept = re.sub(r"(?i)connection: .*\r\n", "", request)
                service.sendall(f"{kept}Connection: close\r\n\r\n".encode("latin-1") + rest)
                length = re.search(r"(?i)content-length: (\d+)", request)
                missing = int(length[1]) - len(rest) if length else 0
                while missing > 0:
                    data = client.recv(BLOCK)
                    missing -= len(data)
                    service.sendall(data)
                head, body = _head(service)
                if not head:
                    return  # the service was killed
                self._answer(Answer(request, head), body, service, client)

    def _answer(
        self, answer: Answer, body: bytes, service: socket.socket, client: socket.socket
    ) -> None:
        if answer.is_download and answer.status in (200, 206) and self.fault is not None:
            self.fault(answer)
        answer.replace("Connection", "close")
        at = answer.start
        span = [at, at]
        if answer.is_download and answer.status in (200, 206):
            self.sent.append(span)  # before a client that needs no more of it goes on
        client.sendall(f"{answer.head}\r\n".encode("latin-1"))
        limit = answer.cut_after
        with suppress(OSError):
            while body or (body := service.recv(BLOCK)):
                if answer.paced is not None:
                    answer.paced(at)
                if limit is not None:
                    body = body[:limit]
                    limit -= len(body)
                client.sendall(body if answer.change is None else answer.change(at, body))
                at += len(body)
                span[1] = at
                body = b""
                if limit == 0:
                    if answer.stall is not None:
                        answer.stall.wait(60)
                    return


def _head(connection: socket.socket) -> tuple[str, bytes]:
    """Return a head without its last empty line, and what follows it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(BLOCK)
        if not more:
            return "", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1") + "\r\n", rest
