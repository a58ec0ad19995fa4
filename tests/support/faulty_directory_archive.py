"""The directory archive with injected faults, in the test's own reactor or in another process.

A resource around that of the archive's site fails requests before they reach it, or changes the
bytes that it sends.  As a script it has the arguments RATE SEED, then those of ``cartd-archive``.
"""

from __future__ import annotations

import random
import sys
from enum import Enum
from typing import Any

from twisted.python import log
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from cartd.directory_archive.service import DirectoryArchive, Options, makeService
from cartd.errors import error_body


class Fault(Enum):
    """One way in which a request fails."""

    SERVER_ERROR = "500, and nothing was done"
    UNAVAILABLE = "503, and nothing was done"
    RESET = "the connection is reset before the response head"
    TRUNCATED = "half of the body, then the connection ends"
    WRONG_BYTES = "a body of the right length whose first byte is wrong"


WITHOUT_BODY = (Fault.SERVER_ERROR, Fault.UNAVAILABLE, Fault.RESET)


class FaultInjector:
    """Makes a fraction of the requests fail; the same seed gives the same sequence."""

    def __init__(self, rate: float, seed: int | None = None) -> None:
        """``rate``: from 0 (none) to 1 (all)."""
        self._rate = rate
        self._random = random.Random(seed)

    def draw(self, *, body: bool) -> Fault | None:
        """Return the fault of the next request, if any; ``body``: the response has a body."""
        if self._rate == 0 or self._random.random() >= self._rate:
            return None
        return self._random.choice(tuple(Fault) if body else WITHOUT_BODY)


def inject_faults(archive: DirectoryArchive, faults: FaultInjector) -> None:
    """Make ``archive``, which is not started yet, fail; ``GET /`` never fails."""
    archive.site.resource = FaultyResource(archive.site.resource, faults)


def command(rate: float, seed: int) -> tuple[str, ...]:
    """Return the command of a process that serves a directory with faults."""
    return sys.executable, __file__, str(rate), str(seed)


class FaultyResource(Resource):
    """Passes requests to ``resource``, unless they fail."""

    isLeaf = True

    def __init__(self, resource: IResource, faults: FaultInjector) -> None:
        super().__init__()
        self._resource = resource
        self._faults = faults

    def render(self, request: Any) -> Any:
        if request.path == b"/":
            return self._resource.render(request)
        match self._faults.draw(body=request.method == b"GET"):
            case None:
                pass
            case Fault.SERVER_ERROR:
                return _error(request, 500)
            case Fault.UNAVAILABLE:
                return _error(request, 503)
            case Fault.RESET:
                request.channel.transport.abortConnection()
                return NOT_DONE_YET
            case fault:
                request.write = FaultyBody(request, fault).write
        return self._resource.render(request)


class FaultyBody:
    """Writes a response, and truncates or corrupts it if it has bytes of a file."""

    def __init__(self, request: Any, fault: Fault) -> None:
        self._request = request
        self._write = request.write
        self._fault: Fault | None = fault
        self._left: int | None = None
        """Bytes to send before the connection ends; None: all."""
        self._begun = False

    def write(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            data = self._begin(data)
        if self._left is None:
            self._write(data)
        elif self._left > 0:
            data = data[: self._left]
            self._left -= len(data)
            self._write(data)
            if self._left == 0:
                self._request.channel.loseConnection()

    def _begin(self, data: bytes) -> bytes:
        """Choose what happens; return the first bytes of the body, perhaps wrong ones."""
        if self._request.code not in (200, 206):
            return data
        [length] = map(int, self._request.responseHeaders.getRawHeaders("Content-Length"))
        if length == 0 or (length == 1 and self._fault is Fault.TRUNCATED):
            self._left = 0
            self._request.channel.transport.abortConnection()
        elif self._fault is Fault.TRUNCATED:
            self._left = length // 2
        else:
            return bytes((data[0] ^ 0xFF,)) + data[1:]
        return data


def _error(request: Any, code: int) -> bytes:
    request.setResponseCode(code)
    request.setHeader("Content-Type", "application/json")
    body: bytes = error_body(code, "injected fault")
    return b"" if request.method == b"HEAD" else body


def _main(rate: str, seed: str, *options: str) -> None:
    from twisted.internet import reactor as installed

    reactor: Any = installed
    log.startLogging(sys.stdout)
    parsed = Options()
    parsed.parseOptions(options)
    archive = makeService(parsed, reactor)
    inject_faults(archive, FaultInjector(float(rate), int(seed)))
    archive.startService()
    reactor.addSystemEventTrigger("before", "shutdown", archive.stopService)
    reactor.run()


if __name__ == "__main__":
    _main(*sys.argv[1:])
