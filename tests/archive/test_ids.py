"""Ids of files in URLs: each is one encoded segment."""

from __future__ import annotations

import time

import pytest
import pytest_twisted

from cartd.archive import ArchiveClient, TlsPolicy, http_client
from cartd.errors import ConfigError
from tests.support.archive_client_fixture import (
    DATA,
    ClientFactory,
    ClientUnderTest,
    asking,
    failure_of,
    reactor,
)
from tests.support.archive_faults import status

pytest_plugins = ("tests.support.archive_fixtures",)


HOSTILE = [
    pytest.param("12", "12", id="number"),
    pytest.param(".", "%2E", id="dot"),
    pytest.param("..", "%2E%2E", id="dot-dot"),
    pytest.param("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", id="climbing"),
    pytest.param("a/../b", "a%2F..%2Fb", id="dot-dot-within"),
    pytest.param("//evil.example/x", "%2F%2Fevil.example%2Fx", id="host"),
    pytest.param("http://evil.example/", "http%3A%2F%2Fevil.example%2F", id="url"),
    pytest.param("@evil.example", "%40evil.example", id="user"),
    pytest.param("?x=1&y", "%3Fx%3D1%26y", id="query"),
    pytest.param("#x", "%23x", id="fragment"),
    pytest.param(";x", "%3Bx", id="parameter"),
    pytest.param("%2e%2e", "%252e%252e", id="encoded-already"),
    pytest.param("%", "%25", id="bare-percent"),
    pytest.param("a b+c", "a%20b%2Bc", id="space-and-plus"),
    pytest.param("\\..\\x", "%5C..%5Cx", id="backslash"),
    pytest.param("x\r\nHost: evil", "x%0D%0AHost%3A%20evil", id="newline"),
    pytest.param("\0", "%00", id="nul"),
    pytest.param("e\u0301\u00e9", "e%CC%81%C3%A9", id="unicode-not-normalised"),
    pytest.param("\U0001f600", "%F0%9F%98%80", id="outside-the-basic-plane"),
]


@pytest.mark.parametrize("base", ["", "/a%20b/c"])
@pytest.mark.parametrize(("archive_id", "segment"), HOSTILE)
@pytest_twisted.ensureDeferred
async def test_an_id_is_one_segment_below_the_archives_own_path(
    make_client: ClientFactory, base: str, archive_id: str, segment: str
) -> None:
    async with asking(make_client, base=base) as asked:
        asked.faulty.put(archive_id, DATA)
        await asked.archive.status(archive_id)
        await asked.archive.stage(archive_id)
        assert await asked.fetch(archive_id) == DATA
        assert [request.target for request in asked.faulty.requests] == [f"{base}/{segment}"] * 3
        hosts = {tuple(request.header("Host")) for request in asked.faulty.requests}
        assert hosts == {(f"127.0.0.1:{asked.faulty.port}",)}


@pytest.mark.parametrize(
    ("archive_id", "headers", "hint"),
    [
        ("2026/b7", [("Content-Type", "text/html; charset=iso-8859-1")], True),
        ("2026/b7", [("Content-Type", "application/json")], False),
        ("b7", [("Content-Type", "text/html")], False),
        ("x/" * 400, [], True),
    ],
    ids=["of a proxy", "of the archive", "without a slash", "long"],
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest_twisted.ensureDeferred
async def test_a_404_that_may_be_a_proxys_names_the_encoded_id(
    asked: ClientUnderTest, method: str, archive_id: str, headers: list[tuple[str, str]], hint: bool
) -> None:
    asked.faulty.fault(archive_id, status(404, headers))
    request = asked.archive.status if method == "HEAD" else asked.fetch
    message = str(await failure_of(request(archive_id)))
    sent_as = f"sent as {'x%2F' * 9 if len(archive_id) > 99 else '2026%2Fb7'}"
    assert (sent_as in message and "a proxy in between may reject %2F" in message) is hint
    assert len(message) < 200


@pytest.mark.parametrize("archive_id", ["", "\ud800"], ids=["empty", "lone-surrogate"])
@pytest_twisted.ensureDeferred
async def test_an_id_that_no_url_can_hold_is_rejected(
    asked: ClientUnderTest, archive_id: str
) -> None:
    error = await failure_of(asked.archive.status(archive_id))
    assert not error.retryable
    assert asked.faulty.requests == []


@pytest.mark.parametrize(
    "url",
    ["", "ftp://h/", "h:8080", "http://", "http://u:secret@h/", "http://h/?x", "http://h/#x",
     "http://h:port/", "http://h:99999/", "http://h,g/", "http://h..g/"],
)  # fmt: skip
def test_an_invalid_archive_url_is_rejected(url: str) -> None:
    client, _ = http_client(reactor, connections=1, connect_timeout=1, policy=TlsPolicy())
    with pytest.raises(ConfigError) as caught:
        ArchiveClient(client, url, reactor, now=time.time, head_timeout=1, stall_timeout=1)
    assert "secret" not in str(caught.value)
