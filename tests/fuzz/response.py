"""The archive's responses: a value within bounds, or an error message that any user may see.

No other server may be contacted.  An input is a letter for the request (``H`` status, ``P`` stage,
any other fetch), and then what the archive sends in response to each request.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from cartd.archive import ArchiveClient, ArchiveError, FileState
from cartd.archive.client import MAX_REDIRECTS, NoCookies
from cartd.archive.responses import MAX_PARSED_RETRY_AFTER, MAX_SIZE, MAX_TIME
from tests.fuzz.peer import FixedResponse
from tests.support.archive_client_fixture import Sink

WORDS = (
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 No\r\n", b"HTTP/1.1 302 Found\r\n",
    b"HTTP/1.1 500 Bad\r\n",
    b"HTTP/1.1 503 Away\r\n", b"Content-Length: 0\r\n\r\n", b"X-Content-Length: 5\r\n", b"\r\n\r\n",
    b"Last-Modified: 1700000000.25\r\n", b"Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
    b"X-Pacifica-File-Storage-Media: disk\r\n", b"X-Pacifica-File: /srv/7\r\n",
    b"Retry-After: 5\r\n",
    b"Location: ", b"http:", b"//127.0.0.1:8080/", b"file:///", b"/../", b"?", b"#", b"@", b"%2f",
    b"Content-Encoding: gzip\r\n", b"Set-Cookie: a=b\r\n", b'{"message": "', b'", "traceback": "',
    b"No such file or directory: '/srv/7'", b"\\ud800", b"\x1b[2J", b"\xc2\x85", b"9" * 31, b"-",
    b".",
    b"nan", b"inf", b"1e9", b"\xe2\x80\xae", b"[[[[[[[[",
)  # fmt: skip

URL = "http://127.0.0.1:8080/"
_ORIGIN = ("http", "127.0.0.1", 8080, b"127.0.0.1:8080")
_LONGEST = 320
_STALL = 60.0


def check(data: bytes) -> None:
    asked, wire = data[:1], data[1:]
    agent, clock, sink = FixedResponse(wire), Clock(), Sink()
    archive = ArchiveClient(
        HTTPClient(agent, cookiejar=NoCookies()),
        URL,
        clock,
        now=lambda: 1_700_000_000.0,
        head_timeout=_STALL,
        stall_timeout=_STALL,
    )
    asking: Coroutine[Any, Any, Any] = archive.fetch("7", sink)
    if asked in (b"H", b"P"):
        asking.close()
        asking = archive.status("7") if asked == b"H" else archive.stage("7")
    outcome = _outcome(asking)
    assert clock.getDelayedCalls() == []
    assert sink.producer is None
    assert len(sink.data) <= len(wire)
    assert len(agent.asked) <= 2 * (MAX_REDIRECTS + 1)
    assert {request.origin for request in agent.asked} == {_ORIGIN}
    if isinstance(outcome, ArchiveError):
        _check_error(outcome)
    elif asked == b"H":
        assert isinstance(outcome, FileState)
        assert 0 <= outcome.size <= MAX_SIZE
        assert 0 <= outcome.mtime <= MAX_TIME
    elif asked == b"P":
        assert outcome is None or 0 <= outcome <= MAX_PARSED_RETRY_AFTER
    else:
        assert outcome is None


def _outcome(asking: Coroutine[Any, Any, Any]) -> Any:
    """Return the result, or the ArchiveError that was raised; raise any other exception."""
    outcomes: list[Any] = []
    Deferred.fromCoroutine(asking).addBoth(outcomes.append)
    [outcome] = outcomes
    if isinstance(outcome, Failure):
        if outcome.check(ArchiveError) is None:
            outcome.raiseException()
        return outcome.value
    return outcome


def _check_error(error: ArchiveError) -> None:
    message = str(error)
    assert message.isprintable() and len(message) <= _LONGEST, message
    assert message.startswith(("the archive", "an empty id")), message
    assert error.retry_after is None or 0 <= error.retry_after <= MAX_PARSED_RETRY_AFTER
    assert not (error.missing and error.retryable)
