"""Ends of bodies from the HTTP agent: dropped, rejected, reset, or lost while bytes are held."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
import trustme
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from cartd.archive.http_agent import Connection, Pool
from cartd.archive.http_messages import Request
from tests.support.agent_fixture import Collected, agent_client
from tests.support.archive_client_fixture import Offers
from tests.support.archive_faults import Drip, Fault, Hang, Send, endless, hang_after, head, steps

LAST_BYTES_LATER = steps(
    Send(head(200, [("Content-Length", "10")])), Drip(b"ten  bytes", piece=5, delay=0.01)
)


@pytest.mark.parametrize("way", ["abortConnection", "loseConnection", "stopProducing"])
@pytest.mark.parametrize(
    "fault",
    [endless(), hang_after(5), None, LAST_BYTES_LATER],
    ids=["endless", "silent", "all", "last"],
)
@pytest_twisted.ensureDeferred
async def test_stop_producing_drops_the_connection(fault: Fault | None, way: str) -> None:
    async with agent_client() as asking:
        asking.faulty.put("7", b"ten  bytes")
        if fault is not None:
            asking.faulty.fault("7", fault)

        def drop(body: Collected, data: bytes) -> None:
            if fault is not LAST_BYTES_LATER or len(body.data) == 10:
                getattr(body.transport, way)()

        body = Collected(drop)
        (await asking.ask("GET")).deliverBody(body)
        assert isinstance(await body.end(), ResponseFailed)
        assert len(body.pieces) <= 2
        await asking.until(lambda: asking.faulty.open_connections == 0)


@pytest_twisted.ensureDeferred
async def test_an_exception_of_the_protocol_drops_the_connection() -> None:
    def refuse(body: Collected, data: bytes) -> None:
        raise OSError("no space")

    async with agent_client() as asking:
        asking.faulty.fault("7", endless())
        body = Collected(refuse)
        (await asking.ask("GET")).deliverBody(body)
        end = await body.end()
        assert isinstance(end, ResponseFailed)
        assert end.reasons[0].check(OSError)
        assert len(body.pieces) == 1
        await asking.collect("HEAD")
        assert asking.connections() == [1, 2]
        await asking.until(lambda: asking.faulty.open_connections == 1)


@pytest_twisted.ensureDeferred
async def test_an_exception_in_make_connection_drops_the_connection() -> None:
    class Broken(Collected):
        def connectionMade(self) -> None:
            raise OSError("not ready")

    async with agent_client() as asking:
        asking.faulty.fault("7", endless())
        response = await asking.ask("GET")
        with pytest.raises(OSError, match="not ready"):
            response.deliverBody(Broken())
        await asking.until(lambda: asking.faulty.open_connections == 0)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest_twisted.ensureDeferred
async def test_a_reset_connection_does_not_end_a_body_well(tls: bool, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "roots.pem")
    offers = Offers(authority.issue_cert("127.0.0.1")) if tls else None
    async with agent_client(offers, tmp_path / "roots.pem") as asking:
        asking.faulty.fault("7", steps(Send(head(200) + b"abc"), Hang()))
        first: Deferred[None] = Deferred()
        body = Collected(lambda body, data: first.callback(None))
        (await asking.ask("GET")).deliverBody(body)
        await first
        asking.faulty.drop_connections()
        assert isinstance(await body.end(), ResponseFailed)


class Asked:
    """A request over a connection whose transport is a test's."""

    def __init__(self, pool: Pool) -> None:
        self.request = Request(b"GET", b"http://archive.example/7", Headers())
        self.responses: list[IResponse] = []
        self.connection = Connection(self.request.origin, pool)
        self.connection.makeConnection(StringTransport())
        self.connection.send(self.request).addCallback(self.responses.append)


@pytest.mark.parametrize(
    ("fields", "kind", "data"),
    [("", PotentialDataLoss, b"abcdef"), ("Content-Length: 9\r\n", ResponseFailed, b"abc")],
    ids=["whole", "cut"],
)
def test_a_tls_connection_may_end_while_bytes_are_buffered(
    fields: str, kind: type[Exception], data: bytes
) -> None:
    asked = Asked(Pool(Clock(), max_idle=1, idle_seconds=1))
    body = Collected(lambda body, data: body.transport.pauseProducing())
    asked.connection.dataReceived(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode())
    asked.responses[0].deliverBody(body)
    asked.connection.dataReceived(b"abc")
    asked.connection.dataReceived(b"def")
    asked.connection.connectionLost(Failure(ConnectionDone()))
    body.transport.resumeProducing()
    body.transport.resumeProducing()
    assert body.data == data
    assert isinstance(body.ended.result, kind)


def test_a_lost_connection_is_not_waited_for() -> None:
    pool = Pool(Clock(), max_idle=1, idle_seconds=1)
    asked = Asked(pool)
    body = Collected(lambda body, data: body.transport.pauseProducing())
    asked.connection.dataReceived(head(200))
    asked.responses[0].deliverBody(body)
    asked.connection.dataReceived(b"abc")
    asked.connection.connectionLost(Failure(ConnectionDone()))
    body.transport.abortConnection()
    assert pool.closeCachedConnections().called
