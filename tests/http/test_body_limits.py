"""Request bodies that are too long, too short, truncated, slow or large."""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry, manifest, wait_for
from tests.support.wire import Wire, assert_is_error, wire

LIMIT = 8_000_000
MAX_MANIFEST = "server.max_manifest_size"
TOO_LONG = f"The body exceeds {LIMIT} bytes ({MAX_MANIFEST})"
NOT_HTTP = "Invalid HTTP request"
FILES = {"a/one": b"first"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("site")
    with cart_site(directory, ini=f"[server]\nmax_manifest_size = {LIMIT}\n") as running:
        running.stage("ready", FILES)
        yield running


def declare(connection: Wire, uid: str, length: int, *headers: str) -> None:
    """Send the head of a POST."""
    lines = [
        f"POST /{uid} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {length}",
        *headers,
        "",
        "",
    ]
    connection.send("\r\n".join(lines).encode())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def unknown(uid: str, count: int) -> bytes:
    """Return a manifest of files that the archive does not have."""
    return manifest(entry(f"{uid}-{n}", f"d/{n}", b"", "md5") for n in range(count))


def posted(site: CartSite, uid: str) -> int:
    """Return the number of carts of this uid; check that each has all of its files."""
    carts = site.query(
        "SELECT files_total, (SELECT count(*) FROM file WHERE cart_id = cart.id) AS entered"
        " FROM cart WHERE cart_uid = ?",
        uid,
    )
    assert all(row["files_total"] == row["entered"] for row in carts)
    return len(carts)


def test_body_over_the_limit_is_rejected_before_it_is_sent(site: CartSite) -> None:
    for length in (LIMIT + 1, 10**30):
        with wire(site.port) as connection:
            declare(connection, "too-long", length)
            answer = connection.answer()
            assert_is_error(answer, 413, TOO_LONG, MAX_MANIFEST)
            assert answer.headers["connection"] == "close"
    assert posted(site, "too-long") == 0


def test_expect_100_continue_is_rejected_with_the_final_status(site: CartSite) -> None:
    with wire(site.port) as connection:
        declare(connection, "too-long", LIMIT + 1, "Expect: 100-continue")
        assert connection.answer().status == 413
        assert connection.rest() == b""
    body = site.manifest(FILES)
    with wire(site.port) as connection:
        declare(connection, "asked-first", len(body), "Expect: 100-continue")
        assert connection.head().status == 100
        connection.send(body)
        assert connection.answer().status == 201


def test_client_that_sends_a_rejected_body_can_read_the_response(site: CartSite) -> None:
    assert_is_error(site.cartd.post("too-long", b" " * (LIMIT + 1)), 413, TOO_LONG, MAX_MANIFEST)
    assert site.cartd.request("HEAD", "/too-long").status == 404


def test_client_that_never_stops_sending_is_disconnected(site: CartSite) -> None:
    with wire(site.port) as connection:
        declare(connection, "too-long", 10**15)
        assert connection.answer().status == 413
        with pytest.raises(OSError):
            while True:
                connection.send(b" " * 65536)
    assert site.cartd.get("/").status == 200


def test_chunked_body_is_rejected_once_over_the_limit(site: CartSite) -> None:
    with wire(site.port) as connection:
        connection.send(
            b"POST /too-long HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(LIMIT // 1_000_000):
            connection.send(chunk(b" " * 1_000_000))
        assert not select.select([connection.socket], [], [], 0)[0]
        connection.send(chunk(b"{"))
        assert_is_error(connection.answer(), 413, TOO_LONG, MAX_MANIFEST)
        connection.send(chunk(b"}"))
    assert posted(site, "too-long") == 0


def test_body_of_exactly_the_limit_is_accepted(site: CartSite) -> None:
    body = site.manifest(FILES)
    assert site.cartd.post("just-right", body + b" " * (LIMIT - len(body))).status == 201
    site.cartd.wait_until("just-right", "ready")


def test_a_body_in_chunks_and_in_single_bytes_is_read(site: CartSite) -> None:
    body = site.manifest(FILES)
    with wire(site.port) as connection:
        connection.send(
            b"POST /bytes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(len(body)):
            connection.send(chunk(body[number : number + 1]))
        connection.send(b"0\r\nTrailer: x\r\n\r\n")
        assert connection.answer().status == 201
    site.cartd.wait_until("bytes", "ready")


def test_unneeded_request_body_is_ignored(site: CartSite) -> None:
    with wire(site.port) as connection:
        for method in (b"GET", b"DELETE"):
            connection.send(
                method
                + b" /nobody HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nGET / HTT"
            )
            assert connection.answer().status == 404


@pytest.mark.parametrize("reset", [False, True], ids=["it closes", "it breaks off"])
def test_truncated_body_leaves_nothing_behind(site: CartSite, reset: bool) -> None:
    body = unknown("stopped", 5000)
    files = site.process().num_fds()
    with wire(site.port) as connection:
        declare(connection, "stopped", len(body))
        connection.send(body[: len(body) // 2])
        mine = connection.socket.getsockname()
        wait_for(lambda: mine in [peer.raddr for peer in site.process().net_connections()])
        assert site.cartd.status("ready") == ("ready", "")
        if reset:
            at_once = struct.pack("ii", 1, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    wait_for(lambda: site.process().num_fds() <= files)
    assert posted(site, "stopped") == 0


def test_body_is_not_read_beyond_content_length(site: CartSite) -> None:
    body = site.manifest(FILES)
    with wire(site.port) as connection:
        declare(connection, "lied", len(body))
        connection.send(body + body + b"\r\n")
        assert connection.answer().status == 201
        assert_is_error(connection.answer(), 400, NOT_HTTP)
        assert connection.rest() == b""
    with wire(site.port) as connection:
        declare(connection, "cut", len(body) - 1)
        connection.send(body)
        answer = connection.answer()
        assert answer.status == 400 and answer.json["message"].startswith("manifest: is not JSON")
    assert (posted(site, "lied"), posted(site, "cut")) == (1, 0)


def test_early_disconnect_leaves_a_complete_cart_or_none(
    site: CartSite,
) -> None:
    uids = [f"hasty-{number}" for number in range(8)]
    for uid in uids:
        body = unknown(uid, 1000)
        with wire(site.port) as connection:
            declare(connection, uid, len(body))
            connection.send(body)
    for uid in uids:
        assert posted(site, uid) in (0, 1)
        assert site.cartd.post(uid, unknown(uid, 1000)).status == 201
        assert posted(site, uid) >= 1
        site.cartd.wait_until(uid, "error")


def test_large_manifest_does_not_block_other_requests(site: CartSite) -> None:
    known = {"id": "none", "hashtype": "md5", "hashsum": ""}
    entries = [{**known, "path": f"d{n % 99}/{n}"} for n in range(100_000)]
    body = json.dumps({"fileids": entries}, separators=(",", ":")).encode()
    meanwhile = 0
    with wire(site.port) as connection:
        declare(connection, "large", len(body))
        connection.send(body)
        while not select.select([connection.socket], [], [], 0)[0]:
            assert site.cartd.status("ready") == ("ready", "")
            meanwhile += 1
        assert connection.answer().status == 201
    assert meanwhile > 20
    assert site.cartd.request("HEAD", "/large").headers["x-pacifica-files-total"] == "100000"
    assert posted(site, "large") == 1
