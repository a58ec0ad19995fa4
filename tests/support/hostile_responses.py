"""Responses of a hostile archive, by name: the fault, and the message for the user.

For each the file exists and is right, so whatever goes wrong is the answer's doing.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass

from tests.support.archive_faults import (
    Close,
    Drip,
    Endless,
    Fault,
    Hang,
    Send,
    Step,
    head,
    redirect,
    state,
    status,
    steps,
)

DATA = bytes(range(200)) * 5
STALL = 0.5
"""Seconds of the stall timeout."""

OTHER_HOST = "127.0.0.2"
"""An address that must not be connected to."""

NOT_HTTP = "the archive's response is not HTTP"
NO_RESPONSE = f"did not answer within {STALL:g} seconds"

_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = head(200, [("Transfer-Encoding", "chunked")])
_BOMB = bytes(20_000_000)
_ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\nX-Evil: 1\r\n2026-01-01 [-] forged \u202e\u0000\u0085\u2028"


@dataclass(frozen=True, slots=True)
class Hostile:
    """A fault of one kind of request, and a part of its message."""

    method: str
    fault: Fault
    message: str
    on_tape: bool = False


def _head(*sent: bytes | Step) -> Fault:
    return steps(*(Send(one) if isinstance(one, bytes) else one for one in sent))


def _encoded(coding: str, body: bytes, code: int = 200) -> Fault:
    return status(code, [("Content-Encoding", coding)], body)


STATES = {
    # heads that never end, or are none
    "a line without end": Hostile("HEAD", _head(_OK + b"A: ", Endless(b"x" * 999)), NOT_HTTP),
    "lines without end": Hostile("HEAD", _head(_OK, Endless(b"A: b\r\n" * 99)), NOT_HTTP),
    "a status without end": Hostile("HEAD", _head(b"HTTP/1.1 200 ", Endless(b"K" * 999)), NOT_HTTP),
    "interim answers without end": Hostile(
        "HEAD", _head(Endless(b"HTTP/1.1 103 Early\r\n\r\n" * 50)), NOT_HTTP
    ),
    "a head that drips": Hostile("HEAD", _head(Drip(_OK + b"A: b\r\n" * 99, 1, 0.05)), NO_RESPONSE),
    "another protocol": Hostile(
        "HEAD", _head(b"HTTP/1.1 101 Sw\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"), NOT_HTTP
    ),
    "no head at all": Hostile("HEAD", _head(b"<html>hello</html>", Close()), NOT_HTTP),
    "HTTP/2": Hostile("HEAD", _head(b"\0\0\x12\x04\0\0\0\0\0" + bytes(18), Hang()), NOT_HTTP),
    "control characters": Hostile(
        "HEAD", _head(_OK + b"X-Content-Length: 5\0\r\nA: \x1b[2J\x08\r\n\r\n"), NOT_HTTP
    ),
    "a length and chunks": Hostile(
        "HEAD", _head(_OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), NOT_HTTP
    ),
    # sizes and dates
    "a size of 31 digits": Hostile(
        "HEAD", state(x_content_length="1" + "0" * 30), "malformed: 1000"
    ),
    "a size of 20 digits": Hostile("HEAD", state(x_content_length="9" * 20), "out of range"),
    "a size below zero": Hostile("HEAD", state(x_content_length="-1"), "is malformed: -1"),
    "two sizes": Hostile("HEAD", state(x_content_length="5\r\nX-Content-Length: 6"), "several"),
    "a size that fills any disk": Hostile(
        "HEAD", state(x_content_length=str(1 << 50)), "No Space Available"
    ),
    "a date of 19 digits": Hostile("HEAD", state(last_modified="1" + "0" * 18), "is malformed"),
    "a date of 60,000 digits": Hostile(
        "HEAD", state(last_modified="9" * 15 + "." + "0" * 60_000), "out of range: 9999"
    ),
    "no number": Hostile("HEAD", state(last_modified="nan"), "is malformed: nan"),
    "infinity": Hostile("HEAD", state(last_modified="-inf"), "is malformed: -inf"),
    "a date that is prose": Hostile(
        "HEAD", state(last_modified="so \xa0\x85 on" * 4000), "is malformed: so"
    ),
    # elsewhere
    "another host": Hostile("HEAD", redirect(f"http://{OTHER_HOST}:9/"), "to another server"),
    "a file": Hostile("HEAD", redirect("file:///etc/passwd"), "to another server"),
    "another scheme": Hostile("HEAD", redirect("gopher:x"), "to an invalid URL: gopher:x"),
    "the scheme alone": Hostile("HEAD", redirect("http:"), "to an invalid URL: http:"),
    "itself": Hostile("HEAD", redirect("/itself"), "redirects more than 5 times"),
    "a host of 60,000 letters": Hostile(
        "HEAD", redirect(f"http://{'h' * 60_000}/"), "to another server"
    ),
}

_SAYS_TOO_MUCH = json.dumps({"message": _ESCAPES + "no " * 5000, "traceback": _ESCAPES}).encode()

BODIES = {
    # bodies that never end, or not where they say
    "chunks without end": Hostile(
        "GET", steps(Send(_CHUNKED), Endless(b"5\r\nabcde\r\n" * 99)), "more than the 1000 bytes"
    ),
    "more than was said": Hostile("GET", status(200, [], DATA + b"!"), "more than the 1000 bytes"),
    "less than was said": Hostile("GET", status(200, [], DATA[1:]), "has 999 bytes where 1000"),
    "an extension without end": Hostile(
        "GET", steps(Send(_CHUNKED + b"5;"), Endless(b"x" * 9999)), "sent nothing for"
    ),
    "a trailer without end": Hostile(
        "GET", steps(Send(_CHUNKED + b"0\r\n"), Endless(b"A: b\r\n" * 999)), "sent nothing for"
    ),
    "a chunk of 17 digits": Hostile("GET", _head(_CHUNKED + b"f" * 17 + b"\r\n"), NOT_HTTP),
    "two lengths": Hostile(
        "GET", _head(_OK + b"Content-Length: 1000\r\nContent-Length: 9\r\n\r\n" + DATA), NOT_HTTP
    ),
    "a length below zero": Hostile("GET", _head(_OK + b"Content-Length: -1\r\n\r\n"), NOT_HTTP),
    "a length of 31 digits": Hostile(
        "GET", _head(_OK + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n" + DATA), NOT_HTTP
    ),
    "a length of 2**62": Hostile(
        "GET",
        _head(_OK + b"Content-Length: %d\r\n\r\n" % 2**62 + DATA, Endless(b"x" * 9999)),
        "more than the 1000 bytes",
    ),
    # what expands
    "gzip": Hostile(
        "GET", _encoded("gzip", gzip.compress(_BOMB)), "unrequested Content-Encoding: gzip"
    ),
    "GZip": Hostile(
        "GET", _encoded("GZip", gzip.compress(_BOMB)), "unrequested Content-Encoding: gzip"
    ),
    "deflate": Hostile(
        "GET", _encoded("deflate", zlib.compress(_BOMB)), "Content-Encoding: deflate"
    ),
    "br": Hostile("GET", _encoded("br", b"\x5b" + bytes(999)), "unrequested Content-Encoding: br"),
    "several codings": Hostile(
        "GET", _encoded("identity, gzip", gzip.compress(_BOMB)), "Content-Encoding: identity,gzip"
    ),
    "a transfer in gzip": Hostile(
        "GET", _head(head(200, [("Transfer-Encoding", "gzip, chunked")]), Hang()), NOT_HTTP
    ),
    "a coding that is an escape": Hostile(
        "GET",
        status(200, [("Content-Encoding", "\x9b2J \x85" + "z" * 9000)], DATA),
        "Content-Encoding: 2j",
    ),
    "gzip in an error": Hostile(
        "GET", _encoded("gzip", gzip.compress(_BOMB), 404), "answered 404 Not Found to GET"
    ),
    # what is quoted
    "an error that says too much": Hostile(
        "GET", status(404, [], _SAYS_TOO_MUCH), "404 Not Found to GET: [2J ]0;owned X-Evil: 1"
    ),
    "an error without end": Hostile(
        "GET",
        steps(Send(head(404) + b'{"message": "'), Endless(b"no \\u001b[2J" * 999)),
        "answered 404 Not Found to GET",
    ),
    "a phrase that is an escape": Hostile(
        "GET", _head(b"HTTP/1.1 418 \x9b2J\x85 forged\r\nContent-Length: 0\r\n\r\n"), "answered 418"
    ),
}

RECALLS = {
    "an agreement without end": Hostile(
        "POST", steps(Send(_CHUNKED), Endless(b"5\r\nabcde\r\n" * 99)), "", on_tape=True
    ),
    "an agreement in gzip": Hostile(
        "POST", _encoded("gzip", gzip.compress(_BOMB)), "", on_tape=True
    ),
    "a refusal that says too much": Hostile(
        "POST", status(403, [], _SAYS_TOO_MUCH), "answered 403 Forbidden to POST", on_tape=True
    ),
    "a recall elsewhere": Hostile(
        "POST", redirect(f"http://{OTHER_HOST}:9/", 307), "to another server", on_tape=True
    ),
}
"""Those without a message are accepted: the file comes."""

HOSTILE_RESPONSES = STATES | BODIES | RECALLS
