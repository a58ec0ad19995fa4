"""Heads of responses and the framing of their bodies (RFC 9112, section 6.3)."""

from __future__ import annotations

import pytest
from twisted.web.http_headers import Headers

from cartd.archive.http_messages import (
    MAX_LINES,
    SMALL_CHUNK,
    BadResponse,
    Chunked,
    Head,
    Sized,
    UntilClosed,
    framing,
)

OK = b"HTTP/1.1 200 OK\r\n"
OLD = b"HTTP/1.0 200 OK\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n"
FIVE = b"Content-Length: 5\r\n"


def read(data: bytes, *, to_head: bool = False) -> Head:
    return Head(data + b"\r\n", to_head=to_head)


def test_a_head_is_its_code_phrase_and_fields() -> None:
    head = read(b"HTTP/1.1 404 Not F\xf6und\r\nA: 1\r\nx-b:  \xe9 2 \r\nA:\r\n")
    assert (head.code, head.phrase) == (404, b"Not F\xf6und")
    assert head.headers.getRawHeaders(b"A") == [b"1", b""]
    assert head.headers.getRawHeaders(b"X-B") == [b"\xe9 2 "]


def test_the_fields_of_a_head_are_headers_as_of_twisted() -> None:
    fields = [(b"etag", b'"1"'), (b"x-B", b""), (b"X-b", b"\xe9 \t2"), (b"Content-MD5", b"\x85")]
    expected = Headers()
    for name, value in fields:
        expected.addRawHeader(name, value)
    found = read(OK + b"".join(b"%b: %b\r\n" % field for field in fields)).headers
    assert found == expected
    assert [*found.copy().getAllRawHeaders()] == [*expected.getAllRawHeaders()]


@pytest.mark.parametrize("status", [b"HTTP/1.1 200", b"HTTP/1.1 200 "])
def test_a_status_may_lack_its_phrase(status: bytes) -> None:
    head = read(status + b"\r\n")
    assert (head.code, head.phrase) == (200, b"")


def test_a_field_that_is_continued_on_the_next_line_is_one() -> None:
    head = read(OK + b"A: b\r\n  c\r\n\td\r\nE: f\r\n \r\n")
    assert head.headers.getRawHeaders(b"A") == [b"b c d"]
    assert head.headers.getRawHeaders(b"E") == [b"f "]
    assert read(OK + b"A: b\r\n\tc\r\n").headers.getRawHeaders(b"A") == [b"b c"]


@pytest.mark.parametrize(
    ("data", "length", "chunked", "persistent"),
    [
        pytest.param(OK + FIVE, 5, False, True, id="length"),
        pytest.param(OK + b"Content-Length: 0\r\n", 0, False, True, id="length-0"),
        pytest.param(OK + b"content-length:  007 \r\n", 7, False, True, id="zeros-and-spaces"),
        pytest.param(OK + CHUNKS, None, True, True, id="chunked"),
        pytest.param(OK + b"Transfer-Encoding: Chunked \r\n", None, True, True, id="Chunked"),
        pytest.param(OK, None, False, False, id="neither"),
        pytest.param(OK + FIVE + b"Connection: close\r\n", 5, False, False, id="close"),
        pytest.param(OK + FIVE + b"Connection: x, Close\r\n", 5, False, False,
                     id="Close-in-a-list"),
        pytest.param(OK + FIVE + b"Connection: x\r\nConnection: close\r\n", 5, False,
                     False, id="close-in-the-second"),
        pytest.param(OK + FIVE + b"Connection: closed\r\n", 5, False, True, id="closed"),
        pytest.param(OLD + FIVE, 5, False, False, id="1.0"),
        pytest.param(OLD + FIVE + b"Connection: Keep-Alive\r\n", 5, False,
                     True, id="1.0-kept"),
        pytest.param(OLD + b"Connection: keep-alive\r\n", None, False, False,
                     id="1.0-without-length"),
        pytest.param(OLD + b"Connection: keep-alive\r\n" + CHUNKS, None, True, False,
                     id="1.0-chunked"),
        pytest.param(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n", 0, False, True, id="204"),
        pytest.param(b"HTTP/1.1 304 No\r\n" + CHUNKS, 0, False, True, id="304"),
        pytest.param(b"HTTP/1.1 103 Early\r\nContent-Length: 5\r\n", 0, False, True, id="103"),
        pytest.param(b"HTTP/1.1 205 Reset\r\nContent-Length: 5\r\n", 5, False, True, id="205"),
        pytest.param(OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n", 5, False,
                     True, id="upgrade-offered"),
    ],
)  # fmt: skip
def test_a_head_determines_body_length_and_connection_reuse(
    data: bytes, length: int | None, chunked: bool, persistent: bool
) -> None:
    head = read(data)
    assert (head.length, head.chunked, head.persistent) == (length, chunked, persistent)


@pytest.mark.parametrize("fields", [b"", CHUNKS, FIVE])
def test_a_response_to_head_has_no_body_whatever_its_fields(fields: bytes) -> None:
    head = read(OK + fields, to_head=True)
    assert (head.length, head.chunked, head.persistent) == (0, False, True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(OK + FIVE + CHUNKS, id="length-and-coding"),
        pytest.param(OK + CHUNKS + FIVE, id="coding-and-length"),
        pytest.param(OK + FIVE + b"Content-Length: 6\r\n", id="two-lengths"),
        pytest.param(OK + FIVE + FIVE, id="length-twice"),
        pytest.param(OK + b"Content-Length: 5, 6\r\n", id="list-of-lengths"),
        pytest.param(OK + FIVE + b" 6\r\n", id="length-continued"),
        pytest.param(OK + b"Content-Length: -5\r\n", id="minus"),
        pytest.param(OK + b"Content-Length: +5\r\n", id="plus"),
        pytest.param(OK + b"Content-Length: 0x5\r\n", id="hexadecimal"),
        pytest.param(OK + b"Content-Length: 5_0\r\n", id="underscore"),
        pytest.param(OK + b"Content-Length: \xb2\r\n", id="superscript"),
        pytest.param(OK + b"Content-Length:\r\n", id="empty-length"),
        pytest.param(OK + b"Content-Length: 99999999999999999999\r\n", id="beyond-64-bits"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n", id="101"),
        pytest.param(b"HTTP/1.1 101 Switching\r\n", id="101-to-nothing"),
        pytest.param(b"HTTP/1.1 099 Low\r\n", id="099"),
        pytest.param(b"HTTP/1.1 20 OK\r\n", id="two-digits"),
        pytest.param(b"HTTP/1.1 2000 OK\r\n", id="four-digits"),
        pytest.param(b"HTTP/1.1  200 OK\r\n", id="two-spaces"),
        pytest.param(b"HTTP/2.0 200 OK\r\n", id="version-2"),
        pytest.param(b"HTTP/1.9 200 OK\r\n", id="version-1.9"),
        pytest.param(b"HTTP/1.x 200 OK\r\n", id="version-1.x"),
        pytest.param(b"ICE/1.1 200 OK\r\n", id="another-protocol"),
        pytest.param(b"\r\nHTTP/1.1 200 OK\r\n", id="empty-line-first"),
        pytest.param(b"HTTP/1.1 200 OK\nA: b\r\n", id="bare-line-feed"),
        pytest.param(b"HTTP/1.1 200 OK\rA: b\r\n", id="bare-return"),
        pytest.param(OK + b" A: b\r\n", id="field-begins-with-space"),
        pytest.param(OK + b"A : b\r\n", id="space-before-colon"),
        pytest.param(OK + b"A b\r\n", id="no-colon"),
        pytest.param(OK + b": b\r\n", id="no-name"),
        pytest.param(OK + b"A\xe9: b\r\n", id="name-not-ascii"),
        pytest.param(OK + b"A: b\0c\r\n", id="nul"),
        pytest.param(OK + b"A: b\rc\r\n", id="return-in-value"),
    ],
)
@pytest.mark.parametrize("to_head", [False, True], ids=["GET", "HEAD"])
def test_an_ambiguous_head_is_rejected(data: bytes, to_head: bool) -> None:
    with pytest.raises(BadResponse):
        read(data, to_head=to_head)


@pytest.mark.parametrize(
    "codings",
    [
        b"gzip, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"chunked\r\nTransfer-Encoding: chunked",
        b"identity",
        b"xchunked",
        b"chunked;x=y",
        b"chunked\x0b",
    ],
)
def test_an_unknown_transfer_coding_is_rejected(codings: bytes) -> None:
    with pytest.raises(BadResponse):
        read(OK + b"Transfer-Encoding: " + codings + b"\r\n")


def test_a_head_has_only_so_many_lines() -> None:
    assert read(OK + b"A: b\r\n" * (MAX_LINES - 2)).code == 200
    with pytest.raises(BadResponse, match="lines"):
        read(OK + b"A: b\r\n" * (MAX_LINES - 1))


def test_a_body_of_known_length_takes_just_that() -> None:
    body = framing(read(OK + FIVE))
    assert isinstance(body, Sized)
    assert body.feed(b"ab") == ([b"ab"], False)
    assert not body.complete
    assert body.feed(b"cdefg") == ([b"cde"], True)
    assert body.complete
    assert body.feed(b"h") == ([], True)


def test_a_body_without_length_takes_all() -> None:
    body = framing(read(OK))
    assert isinstance(body, UntilClosed)
    assert body.feed(b"ab") == ([b"ab"], False)
    assert not body.complete


WIRE = b'3\r\na\r\n\r\n0A;x="y"\r\n0123456789\r\n00\r\nTrailer: x\r\nOther: y\r\n\r\n'
SAID = b"a\r\n0123456789"


@pytest.mark.parametrize("step", [1, 2, 3, 7, len(WIRE)])
def test_chunks_are_joined_however_they_come(step: int) -> None:
    body = framing(read(OK + CHUNKS))
    assert isinstance(body, Chunked)
    got = b""
    for start in range(0, len(WIRE), step):
        assert not body.complete
        pieces, extra = body.feed(WIRE[start : start + step])
        assert not extra
        got += b"".join(pieces)
    assert body.complete
    assert got == SAID


@pytest.mark.parametrize(
    ("size", "joined"), [(SMALL_CHUNK - 100, True), (SMALL_CHUNK + 100, False)]
)
def test_only_small_chunks_are_copied_into_one(size: int, joined: bool) -> None:
    chunk = b"%x\r\n%b\r\n" % (size, bytes(size))
    pieces, _ = Chunked().feed(chunk * 5)
    assert len(pieces) == (1 if joined else 5)


@pytest.mark.parametrize("rest", [b"\r\n", b"\n", b"x", b"0\r\n\r\n", OK + b"\r\nabc\n"])
@pytest.mark.parametrize("together", [True, False])
def test_bytes_after_the_last_chunk_are_reported(rest: bytes, together: bool) -> None:
    body = Chunked()
    if together:
        assert body.feed(WIRE + rest) == ([SAID], True)
    else:
        assert body.feed(WIRE) == ([SAID], False)
        assert body.feed(rest) == ([], True)
    assert body.complete


@pytest.mark.parametrize(
    "wire",
    [b"zz\r\n", b"-1\r\na\r\n", b"0x1\r\na\r\n", b"1 \r\na\r\n", b"\r\n1\r\na\r\n", b"1\na\n",
     b"1\r\nab\r\n", b"1\r\na0\r\n\r\n", b"fffffffffffffffff\r\n", b";x\r\n",
     b"1\r\na\r\n0\r\nA b\r\n\r\n"],
)  # fmt: skip
def test_a_malformed_chunk_is_rejected(wire: bytes) -> None:
    with pytest.raises(BadResponse):
        Chunked().feed(wire)
