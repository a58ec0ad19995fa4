"""A connection's bytes: the same response however they are split, and no byte left for the next.

An input is a letter for the method (``H`` is HEAD, any other GET), a byte that decides how the rest
is split, and the rest: what the archive sends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from cartd.archive.http_messages import END, Request
from tests.fuzz.peer import Collected, Exchange

WORDS = (
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 100 \r\n\r\n", b"HTTP/1.1 204 \r\n",
    b"HTTP/1.1 101 \r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"5\r\nabcde\r\n", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b";x=y", b"\r\n ", b"\n", b"\r", b"\0",
    b", chunked", b"-1", b"+5", b"18446744073709551616", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)  # fmt: skip

GET = Request(b"GET", b"http://127.0.0.1/7", Headers())
HEAD = Request(b"HEAD", b"http://127.0.0.1/7", Headers())

_ENDS_WELL = (ResponseDone, PotentialDataLoss)
_FAILS = (ResponseFailed, ResponseNeverReceived)


class Outcome(NamedTuple):
    """The outcome of one response; ``code`` is 0 if there was none."""

    code: int
    fields: list[tuple[bytes, list[bytes]]]
    body: bytes
    end: type[BaseException] | None
    kept: bool


def check(data: bytes) -> None:
    request = HEAD if data[:1] == b"H" else GET
    seed, wire = int.from_bytes(data[1:2], "big"), data[2:]
    at_once = _outcome(request, [wire])
    for cut in (_cut(wire, Random(seed)), (wire[at : at + 1] for at in range(len(wire)))):
        in_pieces = _outcome(request, cut)
        if at_once.end in _ENDS_WELL:
            assert in_pieces == at_once, (at_once, in_pieces)
        else:
            assert in_pieces.end == at_once.end, (at_once, in_pieces)
            assert in_pieces.code == at_once.code and not in_pieces.kept
    _check_rules(request, at_once, wire)


def _outcome(request: Request, pieces: Iterator[bytes] | list[bytes]) -> Outcome:
    exchange = Exchange(request)
    body = Collected()
    code = 0
    fields: list[tuple[bytes, list[bytes]]] = []

    def take(response: IResponse) -> None:
        nonlocal code, fields
        code = response.code
        fields = list(response.headers.getAllRawHeaders())
        response.deliverBody(body)

    failed: list[type[BaseException]] = []

    def fail(reason: Failure) -> None:
        assert reason.type is not None
        failed.append(reason.type)

    exchange.answered.addCallback(take).addErrback(fail)
    exchange.receive(pieces)
    kept = exchange.is_kept()
    exchange.end()
    end = failed[0] if failed else body.end
    assert end in (*_ENDS_WELL, *_FAILS), end
    return Outcome(code, fields, bytes(body.data), end, kept)


def _check_rules(request: Request, outcome: Outcome, wire: bytes) -> None:
    """A connection may be reused only if no byte followed the response."""
    assert all(not re.search(rb"[\r\n\0]", value) for _, some in outcome.fields for value in some)
    if outcome.end in _ENDS_WELL:
        assert 200 <= outcome.code <= 999
    if outcome.end is not ResponseDone:
        assert not outcome.kept
        return
    fields = dict(outcome.fields)
    head = _end_of_head(wire)
    if request is HEAD or outcome.code in (204, 304):
        assert outcome.body == b""
        length = 0
    elif b"Transfer-Encoding" in fields:
        assert b"Content-Length" not in fields
        assert not outcome.kept or wire.endswith(b"\n")
        return
    else:
        [length] = map(int, fields[b"Content-Length"])
        assert outcome.body == wire[head : head + length] and len(outcome.body) == length
    assert not outcome.kept or len(wire) == head + length


def _end_of_head(wire: bytes) -> int:
    """Return where the head of the response ends, after any interim responses."""
    end = 0
    while True:
        start, end = end, wire.index(END, end) + len(END)
        if wire[start + 9 : start + 10] != b"1":
            return end


def _cut(wire: bytes, random: Random) -> Iterator[bytes]:
    while wire:
        size = random.choice((1, 2, 3, 7, 50, 500))
        yield wire[:size]
        wire = wire[size:]
