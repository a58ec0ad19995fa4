"""Responses of the archive of :mod:`tests.support.faulty_archive`, right or faulty, as steps.

A fault is a function from the request and the honest file (or none) to steps.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class StoredFile:
    """A file as an honest archive holds it."""

    data: bytes
    mtime: str = "1700000000.25"
    on_tape: bool = False
    tape_heads: int = 0
    """For how many HEADs after a POST it is still on tape."""
    staged: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came over the wire."""

    method: str
    target: str
    """Exactly as on the request line, undecoded."""
    headers: tuple[tuple[str, str], ...]
    number: int
    """Which request for this id and method it is, from 1."""
    overall: int
    """Which request for this id it is, whatever the method, from 1."""
    connection: int
    """Which connection it came over, from 1."""

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes as they are."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Drip:
    """Bytes in pieces, ``delay`` seconds between them (0: an iteration of the reactor)."""

    data: bytes
    piece: int = 1
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Endless:
    """The same bytes for ever, as fast as they are read."""

    data: bytes


class Hang:
    """Nothing more, with the connection open."""


class Close:
    """The end of the connection, in good order."""


class Reset:
    """The end of the connection by RST, after what was sent before."""


class Gate:
    """Nothing more until the test opens it; one gate for all requests."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._opened = False

    def pass_by(self, go_on: Callable[[], None]) -> None:
        if self._opened:
            go_on()
        else:
            self._waiting.append(go_on)

    def open(self) -> None:
        """In the thread of the reactor."""
        self._opened = True
        for go_on in self._waiting:
            go_on()


Step = Send | Drip | Endless | Hang | Gate | Close | Reset
Fault = Callable[[Seen, StoredFile | None], Sequence[Step]]


def reply(code: int, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> Send:
    """A complete response with its right ``Content-Length``."""
    return Send(head(code, [*headers, ("Content-Length", str(len(body)))]) + body)


def head(code: int, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    lines = [f"HTTP/1.1 {code} Whatever", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def state_headers(file: StoredFile) -> list[tuple[str, str]]:
    """The headers of a HEAD as Pacifica's archive interface spells them."""
    return [
        ("X-Pacifica-Messsage", "File was found"),
        ("X-Content-Length", str(len(file.data))),
        ("Last-Modified", file.mtime),
        ("X-Pacifica-File-Storage-Media", "tape" if file.on_tape else "disk"),
        ("Content-Type", "application/json"),
    ]


def honest(request: Seen, file: StoredFile | None) -> Sequence[Step]:
    """What an archive without faults does."""
    if file is None:
        body = b'{"status": "404 Not Found", "message": "no such file", "traceback": ""}'
        return [reply(404, (), b"" if request.method == "HEAD" else body)]
    if request.method == "HEAD":
        if file.staged and file.on_tape:
            file.on_tape = file.tape_heads > 0
            file.tape_heads -= 1
        return [Send(head(204, state_headers(file)))]
    if request.method == "POST":
        file.staged = True
        return [
            reply(200, [("Content-Type", "application/json")], b'{"message": "File was staged"}')
        ]
    return [reply(200, [("Content-Type", "application/octet-stream")], file.data)]


def steps(*fixed: Step) -> Fault:
    """These steps for any request."""
    return lambda request, file: fixed


def status(code: int, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> Fault:
    """A response with this status (a HEAD has its length, not its body)."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        if request.method == "HEAD":
            return [Send(head(code, [*headers, ("Content-Length", str(len(body)))]))]
        return [reply(code, headers, body)]

    return fault


def state(**changed: str | None) -> Fault:
    """A HEAD whose headers are changed, or left out where the value is none (``_`` for ``-``)."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        headers = dict(state_headers(_held(file)))
        for name, value in changed.items():
            spelt = next(key for key in headers if key.lower() == name.lower().replace("_", "-"))
            del headers[spelt]
            if value is not None:
                headers[spelt] = value
        return [Send(head(204, list(headers.items())))]

    return fault


def redirect(location: str, code: int = 302) -> Fault:
    return status(code, [("Location", location)])


def hang_before_head() -> Fault:
    return steps(Hang())


def close_before_head() -> Fault:
    return steps(Close())


def reset_before_head() -> Fault:
    return steps(Reset())


def garbage(data: bytes = b"SSH-2.0-OpenSSH_9.2\r\n\r\n") -> Fault:
    return steps(Send(data), Close())


def part(count: int, then: Step) -> Fault:
    """The right head, ``count`` bytes of the body, and then something else."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        data = _held(file).data
        return [Send(head(200, [("Content-Length", str(len(data)))]) + data[:count]), then]

    return fault


def truncated(count: int) -> Fault:
    return part(count, Close())


def reset_after(count: int) -> Fault:
    return part(count, Reset())


def hang_after(count: int) -> Fault:
    return part(count, Hang())


def halted(count: int, gate: Gate) -> Fault:
    """The right response, paused after ``count`` bytes of its body until a gate opens."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        data = _held(file).data
        start = head(200, [("Content-Length", str(len(data)))]) + data[:count]
        return [Send(start), gate, Send(data[count:])]

    return fault


def drip(piece: int = 1, delay: float = 0.0) -> Fault:
    """The right response, its body in pieces."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        data = _held(file).data
        return [Send(head(200, [("Content-Length", str(len(data)))])), Drip(data, piece, delay)]

    return fault


def chunked(*, cut: bool = False) -> Fault:
    """The body in chunks, as a streaming server sends it; cut: closed before the last chunk."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        data = _held(file).data
        body = b"".join(b"1\r\n%b\r\n" % data[i : i + 1] for i in range(len(data)))
        start = Send(head(200, [("Transfer-Encoding", "chunked")]) + body)
        return [start, Close()] if cut else [start, Send(b"0\r\n\r\n")]

    return fault


def no_length(count: int | None = None) -> Fault:
    """No length but the end of the connection, after all of the bytes or ``count``."""
    return lambda request, file: [Send(head(200) + _held(file).data[:count]), Close()]


def wrong_bytes() -> Fault:
    """The right number of wrong bytes."""
    return lambda request, file: [reply(200, (), bytes(b ^ 1 for b in _held(file).data))]


def other_body(data: bytes) -> Fault:
    """A complete response with other bytes."""
    return steps(reply(200, (), data))


def endless(data: bytes = b"and so on " * 1000) -> Fault:
    """A body that never ends, in chunks."""
    piece = b"%x\r\n%b\r\n" % (len(data), data)
    return steps(Send(head(200, [("Transfer-Encoding", "chunked")])), Endless(piece))


def gzipped() -> Fault:
    """The body in gzip, which was not requested."""
    return lambda request, file: [
        reply(200, [("Content-Encoding", "gzip")], gzip.compress(_held(file).data))
    ]


def _held(file: StoredFile | None) -> StoredFile:
    assert file is not None, "this fault is for a file that the archive holds"
    return file
