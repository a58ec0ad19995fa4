"""An HTTP server that answers each request with the next of some prepared byte strings.

::

    with ScriptedServer([answer(503, retry_after="0"), answer(200, b"{}")]) as server:
        assert transport(server.url).request("GET", "x").status == 200
    assert server.heads == 2

An answer is sent as it is, and the connection is then closed.  The last answer is repeated.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType

REFUSE = b""
"""An answer of no bytes: the connection is closed after the request."""
HANG = b"\0(hang)"
"""At the end of an answer, or alone: the connection then stays open until the server is closed."""


def answer(
    status: int = 200, body: bytes = b"", *, length: int | None = None, **headers: str
) -> bytes:
    """Return a response; ``content_type`` is the header Content-Type."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    spelt = {name.replace("_", "-"): value for name, value in headers.items()}
    spelt.setdefault("content-length", str(len(body) if length is None else length))
    lines += [f"{name}: {value}" for name, value in spelt.items() if value]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


class ScriptedServer:
    """It listens on a free port of 127.0.0.1 from the beginning."""

    def __init__(
        self,
        answers: Sequence[bytes | Iterable[bytes]],
        context: ssl.SSLContext | None = None,
    ) -> None:
        """An answer that is not bytes is sent part by part; ``context``: over TLS."""
        self._answers = answers
        self._context = context
        self.requests: list[tuple[bytes, dict[str, str], bytes]] = []
        """Request line, headers in lower case, and body of each request."""
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def lines(self) -> list[str]:
        """The request lines without the version."""
        return [line.decode().rpartition(" ")[0] for line, _, _ in self.requests]

    def close(self) -> None:
        """Close all connections, and the port."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(10)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        if self._context is not None:
            with suppress(OSError):
                connection = self._context.wrap_socket(connection, server_side=True)
                self._open.append(connection)
        with suppress(OSError), connection.makefile("rb") as reading:
            line = reading.readline().strip()
            if not line:
                connection.close()
                return
            headers = {}
            while pair := reading.readline().strip():
                name, _, value = pair.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = reading.read(int(headers.get("content-length", 0)))
            self.requests.append((line, headers, body))
            chosen = self._answers[min(len(self.requests), len(self._answers)) - 1]
            for part in [chosen] if isinstance(chosen, bytes) else chosen:
                connection.sendall(part.removesuffix(HANG))
                if part.endswith(HANG):
                    return
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
