"""A simulated archive with disk and tape that is slow, fails and sends wrong data."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed

from cartd.archive import ArchiveClient, ArchiveError, FileState
from cartd.archive.client import receive

if TYPE_CHECKING:
    from tests.simulation.reactor import SimulatedReactor

SIZES = {"none": 0, "one": 1, "some": 90, "page": 512, "more": 700, "much": 3000}
"""The files: sizes by id."""
WITHOUT_HASH = frozenset({"one", "page"})
"""Files whose manifest entries may have no hash.  They are never sent with wrong bytes of the right
size, which cartd could not detect."""
FAULTS = ("busy", "refused", "gone", "wrong", "short", "cut", "long", "silent")
BODY_FAULTS = frozenset({"wrong", "short", "cut", "long", "silent"})
PERMANENT = "gone"


def content(archive_id: str) -> bytes:
    size = SIZES[archive_id]
    return hashlib.shake_128(archive_id.encode()).digest(size)


def mtime(archive_id: str) -> int:
    return 1_600_000_000 + SIZES[archive_id]


class ArchiveState:
    """State of the archive and its coming faults; outlives every simulated process."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.on_tape: set[str] = set()
        self.recalled: dict[str, float] = {}
        """When a requested file will be on disk."""
        self.next_faults: defaultdict[str, deque[str]] = defaultdict(deque)
        """Faults for the next requests of a file."""
        self.lost: set[str] = set()
        """Files that the archive does not have."""
        self.chance = 0.0
        """Probability of a random fault per request."""
        self.down_until = 0.0
        self.requests = 0
        """Number of requests."""
        self.fault_counts: Counter[str] = Counter()
        """Number of faults per file."""
        self.messages: dict[str, set[str]] = {name: set() for name in SIZES}
        """Per file, error messages that a cart may have because of its faults."""

    def heal(self) -> None:
        self.next_faults.clear()
        self.chance = self.down_until = 0.0
        self.on_tape.clear()
        self.lost.clear()

    def to_tape(self, archive_id: str) -> None:
        self.on_tape.add(archive_id)
        self.recalled.pop(archive_id, None)

    def is_on_disk(self, archive_id: str, now: float) -> bool:
        if archive_id in self.on_tape and self.recalled.get(archive_id, now + 1) <= now:
            self.on_tape.discard(archive_id)
        return archive_id not in self.on_tape

    def recall(self, archive_id: str, now: float) -> None:
        if archive_id in self.on_tape and archive_id not in self.recalled:
            self.recalled[archive_id] = now + self.random.choice((0.1, 3.0, 40.0))

    def fault(self, archive_id: str, now: float, *, body: bool) -> str | None:
        """Return the fault of this request; a fault of a body waits for a request with a body."""
        self.requests += 1
        if now < self.down_until:
            return "refused"
        if archive_id in self.lost:
            return PERMANENT
        coming = self.next_faults[archive_id]
        if coming and (body or coming[0] not in BODY_FAULTS):
            return coming.popleft()
        if self.chance and self.random.random() < self.chance:
            return self.random.choice([fault for fault in FAULTS if fault != PERMANENT])
        return None

    def make_error(
        self, archive_id: str, message: str, *, retryable: bool = True, outage: bool = False
    ) -> ArchiveError:
        self.record_fault(archive_id, message)
        return ArchiveError(
            message,
            retryable=retryable,
            outage=outage,
            unavailable=outage and "answered" in message,
        )

    def record_fault(self, archive_id: str, message: str) -> None:
        self.fault_counts[archive_id] += 1
        self.messages[archive_id].add(message)


class SimulatedArchive(ArchiveClient):
    """The archive client of one process; bodies are received by the real archive client's code."""

    def __init__(
        self,
        client: object,
        base_url: str,
        clock: SimulatedReactor,
        *,
        now: Callable[[], float],
        head_timeout: float,
        stall_timeout: float,
        min_rate: float,
        metrics: object,
    ) -> None:
        self._reactor = clock
        self._archive_state = clock.archive_state
        self._timeout = stall_timeout
        self._min_rate = min_rate

    async def status(self, archive_id: str) -> FileState:
        await self._respond(archive_id)
        on_disk = self._archive_state.is_on_disk(archive_id, self._reactor.seconds())
        return FileState(SIZES[archive_id], mtime(archive_id), on_disk)

    async def stage(self, archive_id: str) -> None:
        await self._respond(archive_id)
        self._archive_state.recall(archive_id, self._reactor.seconds())

    async def fetch(self, archive_id: str, sink: IConsumer) -> None:
        fault = await self._respond(archive_id, body=True)
        response: Any = _Response(self._reactor, archive_id, fault)
        await receive(response, sink, self._reactor, self._timeout, self._min_rate)

    async def _respond(self, archive_id: str, *, body: bool = False) -> str | None:
        """Return the fault of the body to come, if there is one."""
        random = self._archive_state.random
        await deferLater(self._reactor, random.choice((0.0, 0.001, 0.02, 0.5)))
        fault = self._archive_state.fault(archive_id, self._reactor.seconds(), body=body)
        if fault == "busy":
            raise self._archive_state.make_error(
                archive_id, "the archive answered 503: simulated", outage=True
            )
        if fault == "refused":
            raise self._archive_state.make_error(
                archive_id, "the archive refuses the connection", outage=True
            )
        if fault == PERMANENT:
            raise self._archive_state.make_error(
                archive_id, "the archive answered 404: simulated", retryable=False
            )
        return fault


class _Response:
    """The body of a response, passed to its protocol in pieces."""

    def __init__(self, reactor: SimulatedReactor, archive_id: str, fault: str | None) -> None:
        self._reactor = reactor
        self._archive_state = reactor.archive_state
        self._archive_id = archive_id
        self._fault = fault
        self._protocol: Any = None
        self._paused = False
        self._aborted = False
        self._scheduled = False
        self._pieces: deque[bytes] = deque()

    def deliverBody(self, protocol: Any) -> None:
        self._protocol = protocol
        body = self._body(content(self._archive_id))
        while body:
            size = self._archive_state.random.choice((1, 60, 200, 4000))
            self._pieces.append(body[:size])
            body = body[size:]
        protocol.makeConnection(self)
        self._continue()

    def _body(self, body: bytes) -> bytes:
        if self._fault == "wrong" and self._archive_id in WITHOUT_HASH:
            self._fault = "long"
        if self._fault == "wrong" and body:
            wrong = bytes([body[0] ^ 1]) + body[1:]
            self._archive_state.record_fault(self._archive_id, hashlib.sha1(wrong).hexdigest())
            return wrong
        if self._fault == "short" and body:
            self._archive_state.record_fault(
                self._archive_id, f"it has {len(body) // 2} bytes where"
            )
            return body[: len(body) // 2]
        if self._fault == "long":
            self._archive_state.record_fault(
                self._archive_id, f"it has more than the {len(body)} bytes"
            )
            return body + b"!"
        if self._fault in ("cut", "silent"):
            return body[: len(body) // 2]
        return body

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._continue()

    def abortConnection(self) -> None:
        self._aborted = True

    def _continue(self) -> None:
        if not (self._scheduled or self._aborted or self._paused):
            self._scheduled = True
            wait = self._archive_state.random.choice((0.0, 0.0, 0.001, 0.1))
            self._reactor.callLater(wait, self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if self._aborted or self._paused:
            return
        if self._pieces:
            self._protocol.dataReceived(self._pieces.popleft())
            self._continue()
        elif self._fault == "silent":
            self._archive_state.record_fault(self._archive_id, "the archive sent nothing for")
        elif self._fault == "cut":
            message = "the archive closed the connection in the middle of its response"
            self._archive_state.record_fault(self._archive_id, message)
            self._protocol.connectionLost(Failure(ResponseFailed([Failure(ConnectionLost())])))
        else:
            self._protocol.connectionLost(Failure(ResponseDone()))
