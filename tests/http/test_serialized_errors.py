"""Error responses sent before there is a request."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from twisted.internet.address import IPv4Address

from cartd.http.request import serialize_error
from cartd.http.request_limits import EarlyResponse
from cartd.tracing import LogContext

PEER = IPv4Address("TCP", "192.0.2.1", 1234)


@pytest.mark.parametrize(("code", "comes_again"), [(413, 0), (401, 0), (429, 1), (503, 1)])
def test_error_is_complete_and_has_retry_after_if_retryable(code: int, comes_again: int) -> None:
    answer = serialize_error(
        PEER,
        EarlyResponse(code, "Why", "server.some", [(b"WWW-Authenticate", b"Basic")]),
        context=LogContext(),
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % code)
    assert lines.count(b"Retry-After: 2") == comes_again
    assert b"WWW-Authenticate: Basic" in lines and b"Connection: close" in lines
    assert b"Content-Length: %d" % len(body) in lines
    said = json.loads(body)
    assert (said["message"], said["limit"]) == ("Why", "server.some")


@pytest.mark.parametrize("method", [b"HEAD", b""], ids=["HEAD", "before the request"])
def test_error_to_head_has_status_headers(method: bytes) -> None:
    answer = serialize_error(
        PEER, EarlyResponse(503, "Wh\xe9\r\ny"), context=LogContext(), method=method
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nX-Pacifica-Status: error\r\n" in head
    assert b"\r\nX-Pacifica-Message: Wh\\xe9\\x0d\\x0ay" in head
    assert bool(body) == (method == b"")
    assert b"X-Pacifica" not in serialize_error(
        PEER, EarlyResponse(503, "Why"), context=LogContext(), method=b"GET"
    )


@pytest.mark.parametrize("code", [204, 400, 401, 408, 413, 429, 431, 503])
def test_every_error_has_a_date(code: int) -> None:
    response = serialize_error(PEER, EarlyResponse(code, "Why"), context=LogContext())
    head = response.partition(b"\r\n\r\n")[0].decode()
    [date] = [line[6:] for line in head.split("\r\n") if line.startswith("Date: ")]
    sent_at = parsedate_to_datetime(date)
    assert abs(datetime.now(UTC) - sent_at) < timedelta(hours=1)
