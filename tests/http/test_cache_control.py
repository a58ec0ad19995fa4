"""Cache-Control is set on every response, for every route and status."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from tests.support.cart_site import CartSite, cart_site
from tests.support.directory_archive_client import directory_archive
from tests.support.running_cartd import entry, manifest
from tests.support.wire import WireAnswer, wire

NO_STORE = "no-store"
TAR = "private, no-cache, no-transform"
PUBLIC = "public, max-age=3600"
LIMIT = 100_000
HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
END = HOST + b"\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = f"[server]\nmax_manifest_size = {LIMIT}\nmax_connections_per_address = 20\n"
    with cart_site(tmp_path_factory.mktemp("site"), "--tape-delay=1e8", ini=ini) as running:
        running.cartd.post("ready", manifest([]))
        running.cartd.post("taped", running.manifest({"a": b"never"}))
        running.cartd.post("failed", manifest([entry("no-such-id", "gone", b"")]))
        running.cartd.wait_until("ready", "ready")
        running.cartd.wait_until("failed", "error")
        yield running


def answer_to(site: CartSite, request: bytes) -> WireAnswer:
    with wire(site.port) as connection:
        connection.send(request)
        return connection.answer(to_head=request.startswith(b"HEAD "))


ANSWERS = {
    "the root": (b"GET /" + END, 200, NO_STORE),
    "the description": (b"GET /-/openapi.json" + END, 200, PUBLIC),
    "a head of the description": (b"HEAD /-/openapi.json" + END, 200, PUBLIC),
    "a status": (b"HEAD /ready" + END, 204, NO_STORE),
    "a status of staging": (b"HEAD /taped" + END, 204, NO_STORE),
    "a status of no cart": (b"HEAD /nobody" + END, 404, NO_STORE),
    "a status of an error": (b"HEAD /failed" + END, 500, NO_STORE),
    "a tar": (b"GET /ready?filename=x" + END, 200, TAR),
    "a part": (b"GET /ready?filename=x" + HOST + b"Range: bytes=0-9\r\n\r\n", 206, TAR),
    "no new tar": (b"GET /ready?filename=x" + HOST + b"If-None-Match: *\r\n\r\n", 304, TAR),
    "no such part": (b"GET /ready" + HOST + b"Range: bytes=999999-\r\n\r\n", 416, NO_STORE),
    "not ready": (b"GET /taped" + END, 202, NO_STORE),
    "no cart": (b"GET /nobody" + END, 404, NO_STORE),
    "an error": (b"GET /failed" + END, 500, NO_STORE),
    "no path": (b"GET /a/b" + END, 404, NO_STORE),
    "a bad name": (b"GET /ready?filename=a%2Fb" + END, 400, NO_STORE),
    "a new cart": (b"POST /new" + HOST + b"Content-Length: 14\r\n\r\n" + b'{"fileids":[]}', 201,
                   NO_STORE),
    "a bad manifest": (b"POST /bad" + HOST + b"Content-Length: 1\r\n\r\n{", 400, NO_STORE),
    "too long": (b"POST /bad" + HOST + b"Content-Length: 9999999\r\n\r\n", 413, NO_STORE),
    "no such method": (b"PUT /ready" + END, 405, NO_STORE),
    "a deletion of nothing": (b"DELETE /nobody" + END, 404, NO_STORE),
    "a path in another code": (b"GET /%ff" + END, 400, NO_STORE),
    "no HTTP": (b"GARBAGE\r\n\r\n", 400, NO_STORE),
    "a long head": (b"GET /" + HOST + b"A: " + b"a" * 100_000, 431, NO_STORE),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "control"), ANSWERS.values(), ids=ANSWERS.keys())
def test_every_response_has_cache_control(
    site: CartSite, request_: bytes, status: int, control: str
) -> None:
    answer = answer_to(site, request_)
    assert (answer.status, answer.headers.get("cache-control")) == (status, control)


def test_delete_response_is_no_store(site: CartSite) -> None:
    assert site.cartd.post("short-lived", manifest([])).headers["cache-control"] == NO_STORE
    answer = site.cartd.delete("short-lived")
    assert (answer.status, answer.headers["cache-control"]) == (200, NO_STORE)


def test_rejected_connection_is_no_store(site: CartSite) -> None:
    connections = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(20)]
    try:
        answer = answer_to(site, b"GET /ready" + END)
    finally:
        for connection in connections:
            connection.close()
    assert (answer.status, answer.headers["cache-control"]) == (429, NO_STORE)


@pytest.mark.parametrize(
    ("method", "target", "status", "control"),
    [
        ("GET", "/", 200, NO_STORE),
        ("GET", "/a", 200, TAR),
        ("HEAD", "/a", 204, NO_STORE),
        ("POST", "/a", 200, NO_STORE),
        ("PUT", "/b", 411, NO_STORE),
        ("DELETE", "/a", 200, NO_STORE),
        ("PATCH", "/a", 400, NO_STORE),
        ("GET", "/none", 404, NO_STORE),
        ("HEAD", "/none", 404, NO_STORE),
        ("OPTIONS", "/a", None, NO_STORE),
        ("GET", "/%ff", 400, NO_STORE),
        ("GET", "/a?byte_range=x", 400, NO_STORE),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_response_of_directory_archive_has_cache_control(
    tmp_path: Path, method: str, target: str, status: int | None, control: str
) -> None:
    (tmp_path / "a").write_bytes(b"data")
    async with directory_archive(tmp_path) as client:
        answer = await client.ask(method, target)
    assert status is None or answer.status == status
    assert answer.headers["cache-control"] == control
