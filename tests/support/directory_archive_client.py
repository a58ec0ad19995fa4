"""The directory archive, listening in the test's own reactor, and a client that sends anything."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.directory_archive.service import Options, makeService
from tests.support.faulty_directory_archive import FaultInjector, inject_faults

reactor: Any = _reactor


@dataclass(frozen=True, slots=True)
class Answer:
    """The response until the connection was closed; status None if nothing came."""

    status: int | None
    headers: Mapping[str, str]
    body: bytes
    raw: bytes

    @property
    def whole(self) -> bool:
        """Whether the body has the declared length."""
        return self.headers.get("content-length") == str(len(self.body))


class Exchange(Protocol):
    """Sends one request and collects the response until the connection is closed."""

    transport: Any

    def __init__(self, request: bytes, pause: bool) -> None:
        self._request = request
        self._pause = pause
        self._received: list[bytes] = []
        self.begun: Deferred[None] = Deferred()
        """Fires with the first bytes; then, if ``pause``, reading stops."""
        self.closed: Deferred[Answer] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if not self._received:
            if self._pause:
                self.transport.pauseProducing()
            self.begun.callback(None)
        self._received.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(_parse(b"".join(self._received)))


def _parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head:
        return Answer(None, {}, b"", raw)
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines[1:])
    headers = {name.lower(): value for name, _, value in pairs}
    return Answer(int(lines[0].split()[1]), headers, body, raw)


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the archive at ``port`` that serves ``root``."""

    port: int
    root: Path

    async def begin(
        self, method: str, target: str, body: bytes = b"", *, pause: bool = False, **headers: str
    ) -> Exchange:
        """Send a request, ``target`` as it is; ``if_range=`` is ``If-Range:``."""
        fields = {"Host": "localhost", "Connection": "close"}
        if body and "transfer_encoding" not in headers:
            fields["Content-Length"] = str(len(body))
        fields |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        exchange = Exchange("\r\n".join(lines).encode() + body, pause)
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), exchange)
        return exchange

    async def ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request and read the whole response."""
        exchange = await self.begin(method, target, body, pause=False, **headers)
        return await exchange.closed


@asynccontextmanager
async def directory_archive(
    root: Path,
    *options: str,
    clock: IReactorTime | None = None,
    faults: FaultInjector | None = None,
    failures: int = 0,
) -> AsyncIterator[Client]:
    """Start the archive for ``root``; at the end exactly ``failures`` must be logged."""
    parsed = Options()
    parsed.parseOptions(["--root", str(root), "--port", "0", *options])
    service = makeService(parsed, reactor, clock)
    if faults is not None:
        inject_faults(service, faults)
    logged: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            logged.append(event["log_failure"].getTraceback())

    globalLogPublisher.addObserver(observe)
    gc.freeze()  # Only what is made from now on is examined by the collector.
    try:
        service.startService()
        assert service.port is not None
        address: Any = service.port.getHost()
        yield Client(address.port, root)
    finally:
        await service.stopService()
        gc.collect()  # a Deferred that failed unheard says so now
        globalLogPublisher.removeObserver(observe)
    assert len(logged) == failures, logged
