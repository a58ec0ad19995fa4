"""A client that starts to read a download, and reads the rest when the test says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse

from tests.support.running_cartd import DEADLINE, RunningCartd

TOO_MUCH_FOR_SOCKETS = 8 * 2**20
"""Bytes of a download that exceed all buffers between the service and a client.

By default (``tcp_wmem``), Linux buffers 4 MiB for sending.
"""


class SlowReader:
    """Its receive buffer is small, so that the service cannot send everything at once."""

    def __init__(self, cartd: RunningCartd, path: str, **headers: str) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(("127.0.0.1", cartd.port))
        fields = {"Host": "localhost", "Connection": "close", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._socket.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        self._answer = HTTPResponse(self._socket)
        self._answer.begin()
        self.status = self._answer.status
        self.headers = {name.lower(): value for name, value in self._answer.getheaders()}
        self.first = self._answer.read(1)

    def rest(self) -> bytes:
        """Return the whole body; raise if the connection is closed before its end."""
        return self.first + self._answer.read()

    def close(self) -> None:
        self._answer.close()
        self._socket.close()


@contextmanager
def slow_reader(cartd: RunningCartd, uid: str) -> Iterator[SlowReader]:
    """Run a download of the cart during the block, with its first byte read."""
    reader = SlowReader(cartd, f"/{uid}?filename=data.tar")
    try:
        assert reader.status == 200
        yield reader
    finally:
        reader.close()
