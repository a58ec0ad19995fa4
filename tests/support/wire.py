"""HTTP at the byte level: requests as given, responses parsed strictly.

Python's client cannot send invalid requests, and tolerates invalid responses.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cartd import __version__
from tests.support.running_cartd import DEADLINE

_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([ -~]*)")
"""A header field as this service writes it: printable ASCII (RFC 9110, section 5.5)."""


@dataclass(frozen=True, slots=True)
class WireAnswer:
    """An answer; no two of its headers have one name."""

    version: str
    status: int
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection to the service."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._unread = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, target: str, *headers: str) -> None:
        """Send a whole GET, with the headers as they are."""
        self.send(
            "\r\n".join([f"GET {target} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()
        )

    def head(self) -> WireAnswer:
        """Read the head of an answer, and no more; its body is empty here."""
        while b"\r\n\r\n" not in self._unread:
            self._receive()
        text, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status_line, *lines = text.decode("ascii").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            field = _FIELD.fullmatch(line)
            assert field, line
            assert field[1].lower() not in headers, f"{field[1]} comes twice"
            headers[field[1].lower()] = field[2]
        return WireAnswer(version, int(status), headers, b"")

    def answer(self, *, to_head: bool = False) -> WireAnswer:
        """Read one answer of a known length; one ``to_head`` has no body."""
        head = self.head()
        if to_head or head.status in (204, 304):
            return head
        return WireAnswer(head.version, head.status, head.headers, self.read(_length(head)))

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes of a body."""
        while len(self._unread) < size:
            self._receive()
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def rest(self) -> bytes:
        """Read until the service closes or breaks the connection."""
        try:
            while data := self.socket.recv(1 << 20):
                self._unread += data
        except ConnectionResetError:
            pass
        data, self._unread = self._unread, b""
        return data

    def _receive(self) -> None:
        data = self.socket.recv(1 << 20)
        assert data, f"the connection was closed after {self._unread!r}"
        self._unread += data


@contextmanager
def wire(port: int, *, receive_buffer: int | None = None, source: str = "") -> Iterator[Wire]:
    """Connect, from the address ``source`` if it is given.

    With a small receive buffer, the service cannot be far ahead of the reader.
    """
    with socket.socket() as connecting:
        if receive_buffer is not None:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            connecting.bind((source, 0))
        connecting.settimeout(DEADLINE)
        connecting.connect(("127.0.0.1", port))
        yield Wire(connecting)


def ask(port: int, request: bytes, *, to_head: bool = False) -> WireAnswer:
    """Send these bytes on a connection of their own and read one answer."""
    with wire(port) as connection:
        connection.send(request)
        return connection.answer(to_head=to_head)


def assert_is_error(answer: Any, code: int, message: str, limit: str | None = None) -> None:
    """Check the JSON of an error; it must not contain a traceback."""
    assert answer.status == code, answer
    assert answer.headers["content-type"] == "application/json"
    said = answer.json
    assert said.pop("status").startswith(f"{code} ")
    assert said.pop("limit", None) == limit
    assert said == {"message": message, "traceback": "", "version": __version__}


def _length(head: WireAnswer) -> int:
    assert "transfer-encoding" not in head.headers
    return int(head.headers["content-length"])
