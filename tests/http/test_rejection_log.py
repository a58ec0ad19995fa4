"""The log line of each rejected request: its format, and what is not logged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import capturedLogs, formatEvent, formatEventAsClassicLogText

from cartd.http.access_log import MAX_REJECTION_TEXT, log_rejection
from cartd.tracing import LogContext

CONTEXT = LogContext(request_id="0123456789abcdef")
PEER = IPv4Address("TCP", "192.0.2.7", 4321)
FORGED = '2026-11-24T06:30:56+0000 [cartd.rejection_log#info] Refused 401 198.51.100.9 "GET /" ""'


def log_lines(
    code: int, message: str = "Why", limit: str | None = None, **request: Any
) -> list[str]:
    with capturedLogs() as entries:
        log_rejection(code, message, limit, **{"peer": PEER, "context": CONTEXT, **request})
    return [formatEvent(entry) for entry in entries]


def test_rejection_logs_status_address_request_and_reason() -> None:
    [line] = log_lines(404, "No cart", method=b"GET", target=b"/a?filename=b")
    assert line == 'Refused 404 192.0.2.7 "GET /a?filename=b" "No cart" 0123456789abcdef'


def test_rejection_before_a_request_is_logged() -> None:
    assert log_lines(400, "No HTTP") == ['Refused 400 192.0.2.7 "" "No HTTP" 0123456789abcdef']


@pytest.mark.parametrize("code", [400, 401, 404, 405, 408, 413, 429, 431])
def test_client_errors_are_logged_as_rejections(code: int) -> None:
    assert len(log_lines(code)) == 1


@pytest.mark.parametrize("code", [200, 202, 204, 206, 304, 403, 415, 416, 421, 500, 501, 503, 507])
def test_other_statuses_are_not_logged_as_rejections(code: int) -> None:
    assert log_lines(code) == []


def test_503_with_a_limit_is_logged_as_rejection() -> None:
    assert len(log_lines(503, limit="server.max_connections")) == 1


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (PEER, "192.0.2.7"),
        (IPv6Address("TCP", "2001:db8::7", 1), "2001:db8::7"),
        (IPv6Address("TCP", "fe80::1%eth0", 1), "fe80::1"),
        (IPv6Address("TCP", "::ffff:192.0.2.7", 1), "192.0.2.7"),
        (IPv4Address("TCP", 'x"\n', 1), "-"),
        (UNIXAddress(b"/run/cartd.sock"), "-"),
        (None, "-"),
    ],
    ids=str,
)
def test_the_address_is_an_ip_address_or_none(peer: Any, expected: str) -> None:
    [line] = log_lines(404, peer=peer)
    assert line.split()[2] == expected


@pytest.mark.parametrize(
    "text",
    [f"\n{FORGED}", f"\r{FORGED}", f"\0{FORGED}", f"\x85{FORGED}", f'" {FORGED}', f"\\{FORGED}",
     "\x1b[2J\x7f\x08", "{code} {0}", "\u2028x", "\udcff"],
    ids=ascii,
)  # fmt: skip
def test_client_text_cannot_break_out_of_its_quotes(text: str) -> None:
    target = text.encode("utf-8", "surrogatepass")
    with capturedLogs() as entries:
        log_rejection(401, text, None, peer=PEER, context=CONTEXT, method=b"GET", target=target)
    [line] = map(formatEventAsClassicLogText, entries)
    assert line is not None and line.endswith("\n")
    assert line[:-1].isascii() and line[:-1].isprintable()
    _, _, strings = line[:-1].partition(" 192.0.2.7 ")
    request_line, end = json.JSONDecoder().raw_decode(strings)
    assert request_line == "GET " + target.decode("latin-1")
    reason, end = json.JSONDecoder().raw_decode(strings, end + 1)
    assert reason == text
    assert strings[end:] == f" {CONTEXT.request_id}"


def test_log_line_length_is_limited() -> None:
    [line] = log_lines(400, "é" * 9999, method=b"GET", target=b"\xff" * 9999)
    assert line.count("\\u00e9") == line.count("GET ") * MAX_REJECTION_TEXT
    assert line.count('..."') == 2
    assert len(line) < 3000
