"""Clients that read slowly, stall or disconnect: others are unaffected, nothing stays pinned."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import unpacked, wait_for
from tests.support.wire import Wire, wire

SMALL_BUFFER = 64 * 1024
LARGE = Random(1).randbytes(24 * 2**20)
"""Far more than the socket buffers between the service and a client hold."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("large", {"a/large": LARGE})
        yield running


@contextmanager
def download(site: CartSite, uid: str) -> Iterator[tuple[Wire, int]]:
    """A client that stops reading after the head of the response; and the length of the tar."""
    with wire(site.port, receive_buffer=SMALL_BUFFER) as connection:
        connection.get(f"/{uid}?filename=data.tar", "Connection: close")
        head = connection.head()
        assert head.status == 200
        yield connection, int(head.headers["content-length"])


def break_off(connection: Wire) -> None:
    """Close it abruptly, as the system does for a killed client."""
    at_once = struct.pack("ii", 1, 0)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    connection.socket.close()


def test_paused_reader_gets_the_right_bytes(site: CartSite) -> None:
    with download(site, "large") as (connection, length):
        assert site.open_files("large")
        assert site.cartd.download("large") == {"a/large": LARGE}
        assert unpacked(connection.read(length)) == {"a/large": LARGE}
        assert connection.rest() == b""
    wait_for(lambda: not site.open_files("large"))


def test_stalled_readers_use_little_memory(site: CartSite) -> None:
    site.cartd.download("large")
    before = site.process().memory_info().rss
    with ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(download(site, "large"))
        wait_for(lambda: len(site.open_files("large")) == 20)
        assert site.cartd.download("large") == {"a/large": LARGE}
        taken = site.process().memory_info().rss - before
        assert taken < 240 * 2**20, f"{taken:,} bytes for 20 downloads of {len(LARGE):,}"
    wait_for(lambda: not site.open_files("large"))


@pytest.mark.parametrize("breaks_off", [False, True], ids=["it closes", "it breaks off"])
def test_client_disconnect_releases_everything(site: CartSite, breaks_off: bool) -> None:
    idle = site.process().num_fds()
    with download(site, "large") as (connection, _):
        wait_for(lambda: len(site.open_files("large")) == 1)
        if breaks_off:
            break_off(connection)
    wait_for(lambda: not site.open_files("large"))
    wait_for(lambda: site.process().num_fds() <= idle)


def test_deleted_cart_is_kept_until_its_last_download_ends(site: CartSite) -> None:
    site.stage("doomed", {"large": LARGE, "other": b"not opened yet"})
    [tree] = site.on_volume("doomed")
    with download(site, "doomed") as (first, length), download(site, "doomed") as (second, _):
        assert site.cartd.delete("doomed").status == 200
        assert site.cartd.get("/doomed").status == 404
        assert unpacked(first.read(length)) == {"large": LARGE, "other": b"not opened yet"}
        assert first.rest() == b""
        assert tree.exists()
        break_off(second)
    wait_for(lambda: not tree.parent.exists())
    assert site.open_files("doomed") == []


def test_client_disconnect_closes_the_bundle(site: CartSite) -> None:
    site.stage("bundled", {"large": LARGE}, bundle=True)
    [tar] = site.on_volume("bundled")
    with download(site, "bundled"):
        wait_for(lambda: site.open_files("bundled") == [str(tar)])
        assert site.cartd.delete("bundled").status == 200
        assert tar.exists()
    wait_for(lambda: not tar.parent.exists())


def test_disconnect_before_the_response_pins_nothing(site: CartSite) -> None:
    site.stage("planned", {f"{number}/file": b"x" for number in range(300)})
    [tree] = site.on_volume("planned")
    for number in range(40):
        with wire(site.port) as connection:
            connection.get(f"/planned?filename={number}.tar", f"Range: bytes={number}-")
            if number % 2:
                site.cartd.status("planned")  # meanwhile the download proceeds
    assert site.cartd.delete("planned").status == 200
    wait_for(lambda: not tree.parent.exists())


def test_answers_without_a_byte_of_the_cart_pin_nothing(site: CartSite) -> None:
    site.stage("unread", {"file": b"data"})
    etag = site.cartd.get("/unread").headers["etag"]
    assert site.cartd.get("/unread", If_None_Match=etag).status == 304
    assert site.cartd.get("/unread", Range="bytes=99999999-").status == 416
    assert site.cartd.delete("unread").status == 200
    assert site.on_volume("unread") == []


def test_delete_completes_after_client_disconnect(site: CartSite) -> None:
    for version in range(12):
        site.stage("unwanted", {"file": b"%d" % version})
    with wire(site.port) as connection:
        connection.send(b"DELETE /unwanted HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(lambda: site.cartd.request("HEAD", "/unwanted").status == 404)
    wait_for(lambda: not site.on_volume("unwanted"))


def test_pipelined_requests_wait_for_the_download(site: CartSite) -> None:
    with wire(site.port, receive_buffer=SMALL_BUFFER) as connection:
        connection.get("/large?filename=data.tar")
        connection.send(b"HEAD /large HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        answer = connection.answer()
        assert unpacked(answer.body) == {"a/large": LARGE}
        for _ in range(200):
            assert connection.answer(to_head=True).status == 204
