"""Answers that no route gives."""

from __future__ import annotations

import json

import pytest
from twisted.internet.address import IPv4Address

from cartd.server.short_answers import refusal

PEER = IPv4Address("TCP", "192.0.2.1", 1234)


@pytest.mark.parametrize(("code", "comes_again"), [(413, 0), (401, 0), (429, 1), (503, 1)])
def test_it_is_whole_and_says_when_to_come_again_if_that_helps(code: int, comes_again: int) -> None:
    answer = refusal(PEER, code, "Why", "server.some", [(b"WWW-Authenticate", b"Basic")])
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % code)
    assert lines.count(b"Retry-After: 2") == comes_again
    assert b"WWW-Authenticate: Basic" in lines and b"Connection: close" in lines
    assert b"Content-Length: %d" % len(body) in lines
    said = json.loads(body)
    assert (said["message"], said["limit"]) == ("Why", "server.some")
