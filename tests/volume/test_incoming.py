"""Files that are received and written to the disk."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from cartd.checksum import Mismatch
from cartd.deferreds.threads import Threads
from cartd.volume.incoming import BLOCK, HIGH_WATERMARK, MAX_PIECES, IncomingFile
from tests.support.incoming_place import LARGE, OLD, SMALL, Place
from tests.support.volume_parts import (
    HeldThreads,
    InThisThread,
    RecordingProducer,
    begin,
    in_the_loop,
    result_of,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, InThisThread(), InThisThread())


@pytest.fixture
def held(tmp_path: Path) -> tuple[Place, HeldThreads]:
    threads = HeldThreads()
    return Place(tmp_path, threads, threads), threads


def test_it_is_a_consumer(place: Place) -> None:
    assert verifyObject(IConsumer, place.incoming(b""))


@pytest.mark.parametrize("body", [b"", b"x", SMALL, LARGE], ids=["empty", "one", "small", "large"])
def test_a_whole_body_gets_its_name_its_time_and_its_hash(place: Place, body: bytes) -> None:
    incoming = place.incoming(body)
    for start in range(0, len(body), 50_000):
        incoming.write(body[start : start + 50_000])
    assert result_of(incoming.finish()) == hashlib.sha1(body).hexdigest()
    assert place.final.read_bytes() == body
    assert place.final.stat().st_mtime == OLD
    assert place.files() == [place.final]


def test_an_unknown_time_is_left_to_the_system(place: Place) -> None:
    before = (place.root / "before").absolute()
    before.touch()
    result_of(place.incoming(b"", mtime=None).finish())
    assert place.final.stat().st_mtime >= before.stat().st_mtime


def test_a_file_has_the_mode_of_the_umask(place: Place) -> None:
    umask = os.umask(0o027)
    try:
        result_of(place.incoming(b"").finish())
    finally:
        os.umask(umask)
    assert stat.S_IMODE(place.final.stat().st_mode) == 0o640


def test_a_small_body_takes_one_batched_thread_call(tmp_path: Path) -> None:
    threads, shared = HeldThreads(), HeldThreads()
    incoming = Place(tmp_path, threads, shared).incoming(SMALL)
    incoming.write(SMALL[:5])
    incoming.write(SMALL[5:])
    finished = begin(incoming.finish())
    assert (shared.made, threads.made, finished) == (1, 0, [])
    shared.run_all()
    assert (shared.made, threads.made, len(finished)) == (1, 0, 1)


def test_a_large_body_takes_no_batched_thread_call(tmp_path: Path) -> None:
    threads, shared = HeldThreads(), HeldThreads()
    incoming = Place(tmp_path, threads, shared).incoming(LARGE)
    incoming.write(LARGE)
    begin(incoming.finish())
    threads.run_all()
    assert (shared.made, threads.made) == (0, 2)


def test_a_file_appears_only_when_it_is_verified(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    threads.run_all()
    assert place.files() == [place.root / "incoming" / "7" / "0-x"]
    begin(incoming.finish())
    assert not place.final.exists()
    threads.run_all()
    assert place.files() == [place.final]


@pytest.mark.parametrize(
    ("declared", "sent", "digest", "words"),
    [
        pytest.param(SMALL, SMALL, "0" * 40, "its sha1 is", id="small and wrong"),
        pytest.param(LARGE, LARGE, "0" * 40, "its sha1 is", id="large and wrong"),
        pytest.param(SMALL, SMALL[:-1], None, "26 bytes where 27", id="small and short"),
        pytest.param(LARGE, LARGE[:-1], None, "were declared", id="large and short"),
        pytest.param(SMALL, SMALL + b"!", None, "more than the 27", id="small and long"),
        pytest.param(LARGE, LARGE + b"!", None, "more than", id="large and long"),
        pytest.param(SMALL, b"", None, "0 bytes", id="nothing at all"),
    ],
)
def test_a_body_that_is_not_as_declared_leaves_nothing(
    place: Place, declared: bytes, sent: bytes, digest: str | None, words: str
) -> None:
    incoming = place.incoming(declared, digest=digest)
    incoming.write(sent)
    with pytest.raises(Mismatch, match=words):
        result_of(incoming.finish())
    assert place.files() == []


@in_the_loop
async def test_pieces_of_any_size_are_written_in_order_by_real_threads(tmp_path: Path) -> None:
    threads = Threads(reactor, 4)
    threads.start()
    try:
        incoming = Place(tmp_path, threads, threads).incoming(LARGE)
        producer = PiecewiseProducer(incoming, LARGE, random.Random(2))
        incoming.registerProducer(producer, True)
        await producer.done
        incoming.unregisterProducer()
        await incoming.finish()
        assert Place(tmp_path, threads, threads).final.read_bytes() == LARGE
    finally:
        threads.stop()


@implementer(IPushProducer)
class PiecewiseProducer:
    """A push producer that writes a piece of random size in each iteration of the reactor."""

    def __init__(self, consumer: IncomingFile, body: bytes, sizes: random.Random) -> None:
        self._consumer, self._body, self._sizes = consumer, body, sizes
        self._at = 0
        self._reactor: Any = reactor
        self.done: Deferred[None] = Deferred()
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._next_write = self._reactor.callLater(0, self._write)

    def pauseProducing(self) -> None:
        if self._next_write.active():
            self._next_write.cancel()

    def stopProducing(self) -> None:
        self.pauseProducing()
        self.done.errback(AssertionError("stopped"))

    def _write(self) -> None:
        self._next_write = self._reactor.callLater(0, self._write)
        stop = self._at + self._sizes.randrange(300_000)
        piece, self._at = self._body[self._at : stop], stop
        self._consumer.write(piece)
        if self._at >= len(self._body):
            self.pauseProducing()
            self.done.callback(None)


def test_a_drip_of_single_bytes_comes_out_whole(place: Place) -> None:
    body = random.Random(3).randbytes(2 * MAX_PIECES + 7)
    incoming = place.incoming(body)
    for byte in body:
        incoming.write(bytes([byte]))
    result_of(incoming.finish())
    assert place.final.read_bytes() == body


def test_the_producer_pauses_while_the_disk_is_slow(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    body = bytes(BLOCK + HIGH_WATERMARK + 10)
    incoming, producer = place.incoming(body), RecordingProducer()
    incoming.registerProducer(producer, True)
    incoming.write(body[:BLOCK])
    incoming.write(body[: HIGH_WATERMARK - 1])
    assert producer.calls == []
    incoming.write(b"\0")
    assert producer.calls == ["pause"]
    incoming.write(b"\0")
    assert producer.calls == ["pause"]
    threads.run_one()
    assert producer.calls == ["pause", "resume"]


def test_only_one_thread_call_is_under_way_for_a_file(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    for start in range(0, len(LARGE), BLOCK):
        incoming.write(LARGE[start : start + BLOCK])
    finished = begin(incoming.finish())
    while threads.held:
        assert len(threads.held) == 1
        threads.run_one()
    assert finished == [hashlib.sha1(LARGE).hexdigest()]
