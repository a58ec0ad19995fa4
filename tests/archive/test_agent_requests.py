"""Requests of the HTTP agent: their bytes, and invalid ones."""

from __future__ import annotations

import pytest
from twisted.web.http_headers import Headers

from cartd.archive.http_messages import Origin, Request

URI = b"http://archive.example:8080/files/7"


@pytest.mark.parametrize(
    ("uri", "origin", "target"),
    [
        pytest.param(
            b"http://h/a/b?c=d&e", Origin("http", "h", 80, b"h"), b"/a/b?c=d&e", id="default-port"
        ),
        pytest.param(b"https://h/a", Origin("https", "h", 443, b"h"), b"/a", id="tls"),
        pytest.param(
            b"https://h:80/a", Origin("https", "h", 80, b"h:80"), b"/a", id="the-other-default"
        ),
        pytest.param(b"http://h:/a", Origin("http", "h", 80, b"h"), b"/a", id="empty-port"),
        pytest.param(b"http://h:080/a", Origin("http", "h", 80, b"h"), b"/a", id="port-with-zero"),
        pytest.param(b"http://H.Example/A", Origin("http", "h.example", 80, b"h.example"), b"/A",
                     id="capitals"),
        pytest.param(b"http://[::1]:81/a", Origin("http", "::1", 81, b"[::1]:81"), b"/a", id="v6"),
        pytest.param(b"http://h", Origin("http", "h", 80, b"h"), b"/", id="no-path"),
        pytest.param(b"http://h?a", Origin("http", "h", 80, b"h"), b"/?a", id="only-a-query"),
        pytest.param(b"http://h/a#b/c?d", Origin("http", "h", 80, b"h"), b"/a", id="fragment"),
        pytest.param(b"http://h//x@y:z/", Origin("http", "h", 80, b"h"), b"//x@y:z/", id="odd"),
    ],
)  # fmt: skip
def test_a_uri_names_a_host_and_what_to_ask_of_it(
    uri: bytes, origin: Origin, target: bytes
) -> None:
    request = Request(b"GET", uri, Headers())
    assert request.origin == origin
    first, host, *_ = request.head.split(b"\r\n")
    assert first == b"GET " + target + b" HTTP/1.1"
    assert host == b"Host: " + origin.authority


def test_a_request_is_its_lines_and_nothing_else() -> None:
    headers = Headers({b"User-Agent": [b"cartd/1"], b"X-Two": [b"a", b"b \xe9"]})
    headers.addRawHeader(b"Accept-Encoding", b"gzip")
    assert Request(b"GET", URI, headers).head == (
        b"GET /files/7 HTTP/1.1\r\n"
        b"Host: archive.example:8080\r\n"
        b"Accept-Encoding: identity\r\n"
        b"User-Agent: cartd/1\r\n"
        b"X-Two: a\r\n"
        b"X-Two: b \xe9\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize(
    ("method", "said"),
    [(b"POST", True), (b"PUT", True), (b"PATCH", True), (b"GET", False), (b"HEAD", False),
     (b"DELETE", False)],
)  # fmt: skip
def test_a_method_that_may_have_a_body_sends_content_length_0(method: bytes, said: bool) -> None:
    head = Request(method, URI, Headers()).head
    assert (b"\r\nContent-Length: 0\r\n" in head) is said


@pytest.mark.parametrize(
    "method",
    [b"", b"GET ", b"GE T", b"GET /x HTTP/1.1\r\nX:", b"G\r\n", b"GET\0", b"G\xc9T", b"CONNECT"],
)
def test_an_invalid_method_is_rejected(method: bytes) -> None:
    with pytest.raises(ValueError, match="not a method"):
        Request(method, URI, Headers())


@pytest.mark.parametrize(
    "uri",
    [
        b"", b"/x", b"h/x", b"ftp://h/x", b"http:/h/x", b"http://", b"http:///x", b"http://u@h/x",
        b"http://u:p@h/x", b"http://h:x/", b"http://h:65536/", b"http://h:0/", b"http://h:-1/",
        b"http://h:999999/", b"http://h/a b", b"http://h/\r\nHost: evil", b"http://h/\n",
        b"http://h/\0", b"http://h/\x7f", b"http://h/\xc3\xa9", b"http://h\xc3\xa9/", b"http://h /",
        b"http://h\r\n/", b"http://[::1/", b"http://::1/", b"http://h,g/", b"http://a..b/", b"http://.a/",
        b"http://" + b"a" * 64 + b"/", b" http://h/",
        b"http://h/ ", b"http://h/a\r\n", b"http://h/a#\n",
    ],
)  # fmt: skip
def test_an_invalid_uri_is_rejected(uri: bytes) -> None:
    with pytest.raises(ValueError, match="not "):
        Request(b"GET", uri, Headers())


@pytest.mark.parametrize(
    "name",
    ["connection", "Content-Length", "transfer-encoding", "TE", "Host", "Upgrade", "expect",
     "Trailer", "Keep-Alive", "Proxy-Connection"],
)  # fmt: skip
def test_reserved_header_fields_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="may not set"):
        Request(b"GET", URI, Headers({name: ["x"]}))


@pytest.mark.parametrize("value", [b"a\0b", b"a\x7f", b"\x1b[0m", b"a\x0bb"])
def test_no_control_character_is_sent_in_a_header(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a field value"):
        Request(b"GET", URI, Headers({b"X": [value]}))


@pytest.mark.parametrize("value", [b"a\r\nInjected: b", b"a\nInjected: b", b"a\rInjected: b"])
def test_a_header_cannot_smuggle_a_second_line(value: bytes) -> None:
    head = Request(b"GET", URI, Headers({b"X": [value]})).head
    assert b"\r\nX: a Injected: b\r\n" in head


@pytest.mark.parametrize(
    ("method", "twice"),
    [(b"GET", True), (b"HEAD", True), (b"POST", False), (b"PUT", False), (b"DELETE", False)],
)
def test_only_safe_methods_are_retryable(method: bytes, twice: bool) -> None:
    assert Request(method, URI, Headers()).retryable is twice
