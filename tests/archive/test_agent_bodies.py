"""Bodies from the HTTP agent: flow control, and re-entrant calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
import trustme
from twisted.internet.task import deferLater
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import IResponse

from tests.support.agent_fixture import Collected, agent_client
from tests.support.archive_client_fixture import Offers, reactor
from tests.support.archive_faults import Fault, Send, endless, head, steps

SIZE = 400_000
DATA = bytes(range(250)) * (SIZE // 250)
ONE_READ = 65_536


def in_chunks(size: int) -> Fault:
    pieces = (DATA[start : start + size] for start in range(0, SIZE, size))
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return steps(Send(head(200, [("Transfer-Encoding", "chunked")]) + body))


@pytest_twisted.ensureDeferred
async def test_at_most_one_read_is_buffered_before_the_body_is_read() -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", endless())
        response = await asking.ask("GET")
        await asking.settled()
        body = Collected()
        response.deliverBody(body)
        assert len(body.data) <= ONE_READ
        body.transport.abortConnection()
        assert isinstance(await body.end(), ResponseFailed)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize(
    "fault", [None, in_chunks(7), in_chunks(30_000)], ids=["length", "small-chunks", "large-chunks"]
)
@pytest_twisted.ensureDeferred
async def test_no_byte_is_delivered_to_a_paused_protocol(
    fault: Fault | None, tls: bool, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "roots.pem")
    offers = Offers(authority.issue_cert("127.0.0.1")) if tls else None
    async with agent_client(offers, tmp_path / "roots.pem") as asking:
        asking.faulty.put("7", DATA)
        if fault is not None:
            asking.faulty.fault("7", fault)

        paused = False

        def pause(body: Collected, data: bytes) -> None:
            nonlocal paused
            assert not paused
            paused = True
            body.transport.pauseProducing()

        body = Collected(pause)
        (await asking.ask("GET")).deliverBody(body)
        while not body.ended.called:
            await asking.settled()
            paused = False
            body.transport.resumeProducing()
        assert isinstance(await body.end(), ResponseDone)
        assert body.data == DATA
        # The last pause is over for the connection too.
        await asking.settled()
        assert asking.faulty.requests[-1].connection == asking.connections()[0]


@pytest_twisted.ensureDeferred
async def test_at_most_one_read_is_buffered_for_a_paused_protocol() -> None:
    async with agent_client() as asking:
        asking.faulty.fault("7", endless())
        body = Collected(lambda body, data: len(body.pieces) > 1 or body.transport.pauseProducing())
        (await asking.ask("GET")).deliverBody(body)
        await asking.settled()
        assert len(body.pieces) == 1
        body.transport.resumeProducing()
        assert sum(map(len, body.pieces[1:])) <= ONE_READ
        body.transport.abortConnection()
        assert isinstance(await body.end(), ResponseFailed)


@pytest_twisted.ensureDeferred
async def test_a_protocol_may_pause_from_the_start() -> None:
    class Unready(Collected):
        def connectionMade(self) -> None:
            self.transport.pauseProducing()

    async with agent_client() as asking:
        asking.faulty.put("7", b"abc")
        body = Unready()
        (await asking.ask("GET")).deliverBody(body)
        await asking.settled()
        assert body.pieces == []
        assert not body.ended.called
        body.transport.resumeProducing()
        assert body.data == b"abc"
        assert isinstance(await body.end(), ResponseDone)


@pytest_twisted.ensureDeferred
async def test_pieces_are_delivered_one_after_the_other() -> None:
    async with agent_client() as asking:
        within = False

        def flicker(body: Collected, data: bytes) -> None:
            nonlocal within
            assert not within
            within = True
            body.transport.pauseProducing()
            body.transport.resumeProducing()
            within = False

        asking.faulty.put("7", DATA)
        body = Collected(flicker)
        response = await asking.ask("GET")
        response.deliverBody(body)
        assert isinstance(await body.end(), ResponseDone)
        assert body.data == DATA


@pytest_twisted.ensureDeferred
async def test_no_byte_is_delivered_before_the_callback_returns() -> None:
    async with agent_client() as asking:
        asking.faulty.put("7", b"abc")
        body = Collected()
        within: list[bytes] = []

        def take(response: IResponse) -> None:
            response.deliverBody(body)
            within.extend(body.pieces)

        await asking.ask("GET").addCallback(take)
        assert isinstance(await body.end(), ResponseDone)
        assert (within, body.data) == ([], b"abc")


@pytest_twisted.ensureDeferred
async def test_a_complete_unread_body_releases_its_connection() -> None:
    async with agent_client() as asking:
        asking.faulty.put("7", b"abc")
        response = await asking.ask("GET")
        # Not within the callback of the response, which may still request the body.
        await deferLater(reactor, 0)
        assert (await asking.collect("GET"))[0] == b"abc"
        assert asking.connections() == [1, 1]
        body = Collected()
        response.deliverBody(body)
        assert body.data == b"abc"
        assert isinstance(await body.end(), ResponseDone)


@pytest.mark.parametrize("chunks", [False, True], ids=["length", "chunks"])
@pytest_twisted.ensureDeferred
async def test_only_a_long_body_is_read_in_large_pieces(chunks: bool) -> None:
    async with agent_client() as asking:
        data = bytes(16_000_000)
        asking.faulty.put("long", data)
        asking.faulty.put("short", bytes(1_000_000))
        if chunks:
            wire = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
            start = head(200, [("Transfer-Encoding", "chunked")])
            asking.faulty.fault("long", steps(Send(start), Send(wire)))
        largest: dict[str, int] = {}
        for archive_id in ("short", "long", "short"):
            body = Collected()
            (await asking.ask("GET", archive_id)).deliverBody(body)
            await body.end()
            largest[archive_id] = max(map(len, body.pieces))
        assert asking.faulty.total_connections == 1
        assert largest["short"] <= ONE_READ < largest["long"]
