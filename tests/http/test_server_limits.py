"""Each limit of the running service: a client over it gets its name; others are unaffected."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry, manifest, running_cartd, wait_for
from tests.support.wire import Wire, assert_is_error, wire

INI = """
[server]
max_header_size = 2000
max_headers = 20
max_entries = 3
header_timeout = 1.5
body_timeout = 2
idle_timeout = 1
keepalive_timeout = 1
stall_timeout = 1
"""
FILES = {"a/one": b"first"}
HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site"), ini=INI) as running:
        running.stage("ready", FILES)
        yield running


@pytest.fixture(autouse=True)
def others_notice_nothing(site: CartSite) -> Iterator[None]:
    yield
    assert site.cartd.download("ready") == FILES


def assert_refused(connection: Wire, code: int, message: str, limit: str) -> None:
    """Check that the error names the limit, and that the connection is closed."""
    answer = connection.answer()
    assert_is_error(answer, code, f"{message} ({limit})", limit)
    assert answer.headers["connection"] == "close"
    assert connection.rest() == b""


TOO_BIG = {
    "a long path": b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n\r\n",
    "a path without an end": b"GET /" + b"a" * 100_000,
    "a long header": HEAD + b"X: " + b"a" * 2000 + b"\r\n\r\n",
    "a long header with more behind": HEAD + b"X: " + b"a" * 2000 + b"\r\n" + b"Y: z\r\n" * 999,
    "many headers of some length": HEAD + (b"X: " + b"a" * 400 + b"\r\n") * 6 + b"\r\n",
    "a header that is folded": HEAD + b"X: y\r\n" + (b" " + b"a" * 400 + b"\r\n") * 6 + b"\r\n",
    "the head of a second request": HEAD + b"\r\n" + HEAD + b"X: " + b"a" * 2000 + b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("request_", TOO_BIG.values(), ids=TOO_BIG.keys())
def test_head_over_max_header_size_is_rejected(site: CartSite, request_: bytes) -> None:
    with wire(site.port) as connection:
        connection.send(request_)
        if request_.startswith(HEAD + b"\r\n"):
            assert connection.answer().status == 200
        message = "The request head exceeds 2000 bytes"
        assert_refused(connection, 431, message, "server.max_header_size")


@pytest.mark.parametrize("end", [b"\r\n", b"X: y\r\n" * 5 + b"\r\n"], ids=["at the end", "before"])
def test_more_than_max_headers_is_rejected(site: CartSite, end: bytes) -> None:
    with wire(site.port) as connection:
        connection.send(HEAD + b"X: y\r\n" * 20 + end)
        message = "The request head exceeds 20 headers"
        assert_refused(connection, 431, message, "server.max_headers")


def test_a_head_within_its_limits_is_answered(site: CartSite) -> None:
    with wire(site.port) as connection:
        for _ in range(3):
            connection.send(HEAD + b"X: y\r\n" * 18 + b"Z: " + b"z" * 1800 + b"\r\n\r\n")
            assert connection.answer().status == 200


def send_slowly(connection: Wire, data: bytes) -> None:
    """Send a byte at a time, with pauses, until a response arrives."""
    connection.socket.settimeout(0.05)
    for at in range(len(data)):
        connection.send(data[at : at + 1])
        try:
            if connection.socket.recv(1, socket.MSG_PEEK):
                break
        except TimeoutError:
            continue
    connection.socket.settimeout(60)


def test_slow_head_is_rejected_after_header_timeout(site: CartSite) -> None:
    with wire(site.port) as connection:
        send_slowly(connection, HEAD + b"X: y\r\n" * 18)
        message = "The head is incomplete after 1.5 s"
        assert_refused(connection, 408, message, "server.header_timeout")


def test_slow_body_is_rejected_after_body_timeout(site: CartSite) -> None:
    with wire(site.port) as connection:
        connection.send(b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        send_slowly(connection, b" " * 1000)
        assert_refused(connection, 408, "The body is incomplete after 2 s", "server.body_timeout")
    assert site.cartd.request("HEAD", "/slow").status == 404


def test_stalled_body_is_rejected_after_idle_timeout(site: CartSite) -> None:
    with wire(site.port) as connection:
        connection.send(b"POST /still HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        message = "No body data arrived for 1 s"
        assert_refused(connection, 408, message, "server.idle_timeout")


@pytest.mark.parametrize("asked", [b"", HEAD + b"\r\n"], ids=["new", "used before"])
def test_idle_connection_is_closed_without_a_response(site: CartSite, asked: bytes) -> None:
    with wire(site.port) as connection:
        connection.send(asked)
        if asked:
            assert connection.answer().status == 200
        assert connection.rest() == b""


def test_manifest_with_too_many_entries_is_rejected(site: CartSite) -> None:
    body = manifest(entry(f"none-{n}", f"d/{n}", b"") for n in range(4))
    message = "fileids: has more than 3 entries (server.max_entries)"
    assert_is_error(site.cartd.post("many", body), 413, message, "server.max_entries")
    assert site.cartd.request("HEAD", "/many").status == 404
    site.stage("few", {"a": b"1", "b": b"2", "c": b"3"})


def test_multiple_ranges_get_the_complete_tar(site: CartSite) -> None:
    whole = site.cartd.get("/ready?filename=x").body
    for number in (2, 100):
        answer = site.cartd.get("/ready?filename=x", Range="bytes=" + "0-0," * number)
        assert (answer.status, answer.body) == (200, whole)


def test_stalled_download_is_aborted_and_its_cart_unpinned(site: CartSite) -> None:
    site.stage("big", {"big": b"x" * 20_000_000})
    with wire(site.port, receive_buffer=4096) as connection:
        connection.get("/big?filename=x")
        assert connection.head().status == 200
        wait_for(lambda: site.open_files("big"))
        wait_for(lambda: not site.open_files("big"))
        assert len(connection.rest()) < 20_000_000


# Tests with a service of their own


def test_connections_over_max_connections_are_rejected(tmp_path: Path) -> None:
    with (
        cart_site(tmp_path, ini="[server]\nmax_connections = 3\n") as site,
        wire(site.port) as one,
        wire(site.port) as two,
        wire(site.port) as three,
    ):
        for connection in (one, two, three):
            connection.get("/")
            assert connection.answer().status == 200
        with wire(site.port) as fourth:
            fourth.get("/")
            message = "The limit of 3 connections is reached (server.max_connections); retry later"
            answer = fourth.answer()
            assert_is_error(answer, 503, message, "server.max_connections")
            assert answer.headers["retry-after"] == "2"
            assert fourth.rest() == b""
        one.get("/")
        assert one.answer().status == 200
        one.socket.close()
        wait_for(lambda: site.cartd.get("/").status == 200)


def test_one_address_cannot_use_all_connections(tmp_path: Path) -> None:
    ini = "[server]\nmax_connections_per_address = 2\n"
    with (
        cart_site(tmp_path, ini=ini) as site,
        wire(site.port) as one,
        wire(site.port) as two,
    ):
        for connection in (one, two):
            connection.get("/")
            assert connection.answer().status == 200
        limit = "server.max_connections_per_address"
        answer = site.cartd.get("/")
        message = f"The limit of 2 connections from your address is reached ({limit}); retry later"
        assert_is_error(answer, 429, message, limit)
        for _ in range(5):
            with wire(site.port, source="127.0.0.2") as other:
                other.get("/")
                assert other.answer().status == 200
        two.socket.close()
        wait_for(lambda: site.cartd.get("/").status == 200)


def test_no_more_than_max_carts_staging_are_staged(tmp_path: Path) -> None:
    ini = "[cartd]\nmax_carts_staging = 2\n"
    with cart_site(tmp_path, "--tape-delay", "3600", ini=ini) as site:
        bodies = {uid: site.manifest({uid: uid.encode()}) for uid in ("one", "two", "three")}
        for uid in ("one", "two"):
            assert site.cartd.post(uid, bodies[uid]).status == 201
        answer = site.cartd.post("three", bodies["three"])
        limit = "cartd.max_carts_staging"
        message = f"2 carts are being staged, the limit ({limit}); try again later"
        assert_is_error(answer, 503, message, limit)
        assert answer.headers["retry-after"] == "2"
        assert site.cartd.request("HEAD", "/three").status == 404
        # The same manifest again creates no cart, so it does not count.
        assert site.cartd.post("two", bodies["two"]).status == 201
        assert_is_error(site.cartd.post("two", bodies["three"]), 503, message, limit)
        assert site.cartd.delete("one").status == 200
        assert site.cartd.post("three", bodies["three"]).status == 201


def test_rlimit_nofile_limits_connections(tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive="http://127.0.0.1:1/", started=False) as cartd:
        cartd.program = ("/bin/sh", "-c", f"ulimit -n 472; exec {' '.join(cartd.twistd)}")
        cartd.fresh = True
        cartd.start()
        assert "max_connections reduced from 4000 to 2" in cartd.log
        assert cartd.process is not None
        assert resource.prlimit(cartd.process.pid, resource.RLIMIT_NOFILE) == (472, 472)
        with wire(cartd.port) as one, wire(cartd.port) as two:
            for connection in (one, two):
                connection.get("/")
                assert connection.answer().status == 200
            assert cartd.get("/").status == 503
        assert cartd.terminate() == 0
