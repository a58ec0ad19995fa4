"""Each response has a request id, which its lines in the log have, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs

from cartd.config import parsers
from cartd.http.paths import REQUEST_RULES
from cartd.http.routes import Rest
from cartd.http.server import LimitedSite
from cartd.tracing import current
from tests.support.cart_site import CartSite, cart_site
from tests.support.channel_client import GET, Connected
from tests.support.running_cartd import wait_for
from tests.support.server_limits import limits
from tests.support.volume_parts import InThisThread
from tests.support.wire import WireAnswer, wire

ID = re.compile("[0-9a-f]{20}")
TAKEN = "0123456789abcdef-from-proxy"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("site")
    ini = "[server]\nmax_manifest_size = 9999\nheader_timeout = 1\n"
    with cart_site(directory, ini=ini) as running:
        running.stage("ready", {"a": b"data"})
        yield running


@pytest.fixture(scope="module")
def auth_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("auth_site")
    auth = "[auth]\nproxy_header = X-User\ntrusted_proxies = 127.0.0.1\n"
    with cart_site(directory, ini=auth) as running:
        yield running


def asked(site: CartSite, request: bytes) -> WireAnswer:
    with wire(site.port) as connection:
        connection.send(request)
        return connection.head()


def lines(site: CartSite, request_id: str, number: int) -> list[str]:
    """Return the lines of the log with that id, once there are that many."""

    def found() -> list[str]:
        return [line for line in site.cartd.log.splitlines() if request_id in line]

    wait_for(lambda: len(found()) >= number)
    return found()


HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
REQUESTS = [
    (200, 1, b"GET /" + HOST + b"\r\n"),
    (204, 1, b"HEAD /ready" + HOST + b"\r\n"),
    (200, 1, b"HEAD /ready?filename=x" + HOST + b"\r\n"),
    (200, 1, b"GET /ready" + HOST + b"\r\n"),
    (206, 1, b"GET /ready" + HOST + b"Range: bytes=0-9\r\n\r\n"),
    (416, 1, b"GET /ready" + HOST + b"Range: bytes=99999999-\r\n\r\n"),
    (304, 1, b"GET /-/openapi.json" + HOST + b"If-None-Match: *\r\n\r\n"),
    (200, 1, b"GET /-/carts/ready" + HOST + b"\r\n"),
    (404, 2, b"GET /-/carts/none" + HOST + b"\r\n"),
    (404, 2, b"HEAD /none" + HOST + b"\r\n"),
    (404, 2, b"GET /a/b/c" + HOST + b"\r\n"),
    (405, 2, b"PUT /x" + HOST + b"Content-Length: 0\r\n\r\n"),
    (204, 1, b"OPTIONS /x" + HOST + b"\r\n"),
    (204, 1, b"OPTIONS *" + HOST + b"\r\n"),
    (400, 2, b"no HTTP\r\n\r\n"),
    (400, 2, b"GET x" + HOST + b"\r\n"),
    (400, 2, b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"),
    (400, 2, b"POST /x" + HOST + b"Content-Length: 1\r\n\r\n{"),
    (413, 2, b"POST /x" + HOST + b"Content-Length: 10000\r\n\r\n"),
    (408, 2, b"GET /late HTTP/1.1\r\nHost:"),
    (431, 2, b"GET /long HTTP/1.1\r\nX: " + b"x" * 20_000),
    (403, 1, b"POST /x" + HOST + b"Origin: https://evil.example\r\nContent-Length: 2\r\n\r\n{}"),
]


@pytest.mark.parametrize(
    ("status", "number", "request_"),
    REQUESTS,
    ids=[f"{status} {sent[:24]!a}" for status, _, sent in REQUESTS],
)
def test_each_response_has_an_id_that_ends_its_log_lines(
    site: CartSite, status: int, number: int, request_: bytes
) -> None:
    answer = asked(site, request_)
    request_id = answer.headers["x-request-id"]
    assert answer.status == status
    assert ID.fullmatch(request_id)
    found = lines(site, request_id, number)
    assert len(found) == number
    assert all(line.endswith(f" {request_id}") for line in found)


def test_ids_differ_also_on_one_connection(site: CartSite) -> None:
    with wire(site.port) as connection:
        ids = set()
        for _ in range(300):
            connection.get("/")
            ids.add(connection.answer().headers["x-request-id"])
    assert len(ids) == 300


@pytest.mark.parametrize(
    "sent", [TAKEN, 'x" forged', "x\x1b[2J" + "y" * 9, "y" * 5000, "../../../../etc"]
)
def test_id_of_a_client_is_replaced(site: CartSite, sent: str) -> None:
    answer = asked(site, b"GET /" + HOST + b"X-Request-ID: " + sent.encode() + b"\r\n\r\n")
    assert ID.fullmatch(answer.headers["x-request-id"])
    assert sent[:20] not in site.cartd.log


def test_id_of_a_trusted_proxy_is_taken_over(auth_site: CartSite) -> None:
    header = f"X-Request-ID: {TAKEN}\r\n\r\n".encode()
    post = b"POST /x" + HOST + b"X-User: a b\r\nContent-Length: 2\r\n" + header + b"{}"
    requests = (
        (200, b"GET /" + HOST + header),
        (401, b"GET /none" + HOST + b"X-User: a b\r\n" + header),
        (401, post),
    )
    for status, request in requests:
        answer = asked(auth_site, request)
        assert (answer.status, answer.headers["x-request-id"]) == (status, TAKEN)
    found = lines(auth_site, TAKEN, 5)
    assert sorted("Refused 401" in line for line in found) == [False] * 3 + [True] * 2
    assert all(line.endswith(f" {TAKEN}") for line in found)


@pytest.mark.parametrize(
    "sent", [b'x" forged line', b"short", b"y" * 129, b"a-valid-id\r\nX-Request-ID: another-id"]
)
def test_invalid_id_of_a_trusted_proxy_is_replaced(auth_site: CartSite, sent: bytes) -> None:
    answer = asked(auth_site, b"GET /" + HOST + b"X-Request-ID: " + sent + b"\r\n\r\n")
    assert ID.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("networks", "peer", "taken"),
    [
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.0/24", "198.51.100.1", False),
        ("unix", "192.0.2.7", False),
        ("none", "192.0.2.7", False),
    ],
)
def test_the_setting_names_the_proxies(networks: str, peer: str, taken: bool) -> None:
    client = Connected()
    proxies = () if networks == "none" else parsers.networks(networks)
    trusting = LimitedSite(
        client.download,
        REQUEST_RULES,
        client.clock,
        client.limits,
        request_id_peers=proxies,
        threads=InThisThread(),
    )
    channel = trusting.buildProtocol(IPv4Address("TCP", peer, 1))
    transport = StringTransport(peerAddress=IPv4Address("TCP", peer, 1))
    channel.makeConnection(transport)
    channel.dataReceived(GET[:-2] + f"X-Request-ID: {TAKEN}\r\n\r\n".encode())
    assert (f"X-Request-ID: {TAKEN}\r\n".encode() in transport.value()) is taken


def test_rejected_connection_has_an_id(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("full")
    with cart_site(directory, ini="[server]\nmax_connections = 1\n") as full:
        with wire(full.port) as first:
            first.get("/")
            first.answer()
            with wire(full.port) as second:
                answer = second.head()
        assert answer.status == 503
        [line] = lines(full, answer.headers["x-request-id"], 1)
        assert line.endswith(f" {answer.headers['x-request-id']}") and "Refused 503" in line


def test_route_keeps_its_context_across_waits() -> None:
    seen: list[str] = []
    waits: list[Deferred[None]] = []

    async def waiting() -> None:
        waits.append(Deferred())
        await waits[-1]
        context = current.get()
        assert context is not None
        seen.append(context.request_id)

    none: Any = None
    routes = Rest(none, none, send=none, documents=none, recovered=waiting).app.resource()
    site = LimitedSite(routes, REQUEST_RULES, Clock(), limits(), threads=InThisThread())
    transports = [StringTransport(), StringTransport()]
    for transport in transports:
        channel = site.buildProtocol(None)
        channel.makeConnection(transport)
        channel.dataReceived(b"HEAD /u HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert current.get() is None
    with capturedLogs() as entries:
        waits[1].callback(None)
        waits[0].callback(None)
    assert current.get() is None
    ids = [re.search("X-Request-ID: (.*)\r\n", each.value().decode()) for each in transports]
    assert [each[1] for each in reversed(ids) if each] == seen
    # There are no carts here, so that each request fails after its wait.
    assert [entry["request_id"] for entry in entries if "log_failure" in entry] == seen
