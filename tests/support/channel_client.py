"""A client's connection to a site without sockets, with a clock that the test advances."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from cartd.deferreds.threads import ThreadRunner
from cartd.http.paths import REQUEST_RULES
from cartd.http.server import LimitedSite
from tests.support.server_limits import limits
from tests.support.volume_parts import InThisThread

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@implementer(IPushProducer)
class Body:
    """A response body that continues until the test ends it."""

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...


class Download(Resource):
    isLeaf = True
    request: Request

    def render(self, request: Request) -> Any:
        self.request = request
        request.setHeader(b"Content-Length", b"4")
        request.registerProducer(Body(), True)
        request.write(b"da")
        return NOT_DONE_YET

    def end(self) -> None:
        self.request.write(b"ta")
        self.request.unregisterProducer()
        self.request.finish()


class Connected:
    """A client's connection to a site, with a clock that the test advances."""

    def __init__(
        self,
        threads: ThreadRunner | None = None,
        download: Download | None = None,
        **changed: Any,
    ) -> None:
        self.limits = limits(**{"max_manifest_size": 100, **changed})
        self.clock = Clock()
        self.download = download or Download()
        self.site = LimitedSite(
            self.download, REQUEST_RULES, self.clock, self.limits, threads=threads or InThisThread()
        )
        self.transport = StringTransport()
        self.channel = self.site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def ask(self) -> None:
        self.send(GET)

    def answers(self) -> list[tuple[int, str | None]]:
        """Return the status of each rejection, and the limit that it names."""
        rejections = []
        for answer in self.transport.value().split(b"HTTP/1.1 ")[1:]:
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            rejections.append((int(answer[:3]), body.get("limit")))
        return rejections

    @property
    def closing(self) -> bool:
        return bool(self.transport.disconnecting)

    @property
    def broken(self) -> bool:
        return bool(self.transport.disconnected)
