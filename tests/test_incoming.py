"""The body of one file on its way to the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from cartd.checksum import Checksum, Mismatch
from cartd.errors import NoSpace
from cartd.incoming import BLOCK, HIGH, MOST_PIECES, Incoming
from cartd.partial import Directories, PartialFile
from cartd.threads import RunsInThread, Threads
from tests.volume_parts import (
    HeldThreads,
    InThisThread,
    RecordingProducer,
    begin,
    failure_of,
    in_the_loop,
    outcome,
    result_of,
)

OLD = 1_234_567_890
SMALL = b"a body of less than a block"
LARGE = random.Random(1).randbytes(3 * BLOCK + 12_345)


@dataclass
class Place:
    """A directory that takes files, and what a test wants to know of it."""

    root: Path
    threads: RunsInThread
    shared: RunsInThread
    write: Callable[[int, memoryview], int] = os.write

    @property
    def final(self) -> Path:
        return self.root / "7" / "mine" / "a" / "b.dat"

    def incoming(
        self, body: bytes, *, digest: str | None = None, mtime: int | None = OLD
    ) -> Incoming:
        digest = hashlib.sha1(body).hexdigest() if digest is None else digest
        partial = PartialFile(
            self.root / "incoming" / "7" / "0-x",
            self.final,
            self.root,
            Directories(self.root),
            write=self.write,
        )
        checksum = Checksum("sha1", digest, len(body))
        return Incoming(partial, checksum, mtime, self.threads, self.shared)

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if not path.is_dir() or path.is_symlink()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, InThisThread(), InThisThread())


@pytest.fixture
def held(tmp_path: Path) -> tuple[Place, HeldThreads]:
    threads = HeldThreads()
    return Place(tmp_path, threads, threads), threads


def fail_with(number: int, opened: list[int] | None = None) -> Callable[[int, memoryview], int]:
    """What a disk does that fails after half a block; ``opened`` gets the descriptor."""
    room = BLOCK // 2

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if opened is not None:
            opened.append(fd)
        if room == 0:
            raise OSError(number, os.strerror(number))
        written = os.write(fd, data[:room])
        room -= written
        return written

    return write


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


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


def test_a_file_is_readable_as_the_umask_says(place: Place) -> None:
    umask = os.umask(0o027)
    try:
        result_of(place.incoming(b"").finish())
    finally:
        os.umask(umask)
    assert stat.S_IMODE(place.final.stat().st_mode) == 0o640


def test_a_small_body_takes_one_shared_trip(tmp_path: Path) -> None:
    threads, shared = HeldThreads(), HeldThreads()
    incoming = Place(tmp_path, threads, shared).incoming(SMALL)
    incoming.write(SMALL[:5])
    incoming.write(SMALL[5:])
    finished = begin(incoming.finish())
    assert (shared.made, threads.made, finished) == (1, 0, [])
    shared.let_all_go()
    assert (shared.made, threads.made, len(finished)) == (1, 0, 1)


def test_a_large_body_takes_no_shared_trip(tmp_path: Path) -> None:
    threads, shared = HeldThreads(), HeldThreads()
    incoming = Place(tmp_path, threads, shared).incoming(LARGE)
    incoming.write(LARGE)
    begin(incoming.finish())
    threads.let_all_go()
    assert (shared.made, threads.made) == (0, 2)


def test_a_file_appears_only_when_it_is_verified(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    threads.let_all_go()
    assert place.files() == [place.root / "incoming" / "7" / "0-x"]
    begin(incoming.finish())
    assert not place.final.exists()
    threads.let_all_go()
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
        producer = TurnByTurn(incoming, LARGE, random.Random(2))
        incoming.registerProducer(producer, True)
        await producer.done
        incoming.unregisterProducer()
        await incoming.finish()
        assert Place(tmp_path, threads, threads).final.read_bytes() == LARGE
    finally:
        threads.stop()


@implementer(IPushProducer)
class TurnByTurn:
    """A push producer that writes a piece of random size in each turn of the loop."""

    def __init__(self, consumer: Incoming, body: bytes, sizes: random.Random) -> None:
        self._consumer, self._body, self._sizes = consumer, body, sizes
        self._at = 0
        self._reactor: Any = reactor
        self.done: Deferred[None] = Deferred()
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._turn = self._reactor.callLater(0, self._write)

    def pauseProducing(self) -> None:
        if self._turn.active():
            self._turn.cancel()

    def stopProducing(self) -> None:
        self.pauseProducing()
        self.done.errback(AssertionError("stopped"))

    def _write(self) -> None:
        self._turn = self._reactor.callLater(0, self._write)
        stop = self._at + self._sizes.randrange(300_000)
        piece, self._at = self._body[self._at : stop], stop
        self._consumer.write(piece)
        if self._at >= len(self._body):
            self.pauseProducing()
            self.done.callback(None)


def test_a_drip_of_single_bytes_comes_out_whole(place: Place) -> None:
    body = random.Random(3).randbytes(2 * MOST_PIECES + 7)
    incoming = place.incoming(body)
    for byte in body:
        incoming.write(bytes([byte]))
    result_of(incoming.finish())
    assert place.final.read_bytes() == body


def test_the_producer_pauses_while_the_disk_is_slow(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    body = bytes(BLOCK + HIGH + 10)
    incoming, producer = place.incoming(body), RecordingProducer()
    incoming.registerProducer(producer, True)
    incoming.write(body[:BLOCK])
    incoming.write(body[: HIGH - 1])
    assert producer.told == []
    incoming.write(b"\0")
    assert producer.told == ["pause"]
    incoming.write(b"\0")
    assert producer.told == ["pause"]
    threads.let_one_go()
    assert producer.told == ["pause", "resume"]


def test_only_one_trip_is_under_way_for_a_file(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    for start in range(0, len(LARGE), BLOCK):
        incoming.write(LARGE[start : start + BLOCK])
    finished = begin(incoming.finish())
    while threads.held:
        assert len(threads.held) == 1
        threads.let_one_go()
    assert finished == [hashlib.sha1(LARGE).hexdigest()]


def test_a_byte_too_many_stops_the_producer_at_once(place: Place) -> None:
    incoming, producer = place.incoming(SMALL), RecordingProducer()
    incoming.registerProducer(producer, True)
    incoming.write(LARGE)
    assert producer.told == ["stop"]
    incoming.write(LARGE)
    incoming.unregisterProducer()
    assert isinstance(incoming.failure, Mismatch)
    with pytest.raises(Mismatch):
        result_of(incoming.finish())
    assert place.files() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "disk quota"])
def test_a_full_disk_is_told_as_no_space(place: Place, number: int) -> None:
    opened: list[int] = []
    place.write = fail_with(number, opened)
    incoming, producer = place.incoming(LARGE), RecordingProducer()
    incoming.registerProducer(producer, True)
    incoming.write(LARGE)
    assert producer.told == ["stop"]
    with pytest.raises(NoSpace):
        result_of(incoming.finish())
    assert place.files() == []
    assert not is_open(opened[0])


def test_another_fault_of_the_disk_keeps_its_number_and_names_the_file(place: Place) -> None:
    place.write = fail_with(errno.EIO)
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    with pytest.raises(OSError, match=r"7/mine/a/b\.dat") as caught:
        result_of(incoming.finish())
    assert caught.value.errno == errno.EIO
    assert str(place.root) not in str(caught.value)


def test_a_producer_that_comes_after_the_failure_is_stopped(place: Place) -> None:
    incoming, producer = place.incoming(b""), RecordingProducer()
    incoming.write(LARGE)
    incoming.registerProducer(producer, True)
    assert producer.told == ["stop"]


def test_a_second_producer_or_one_that_is_pulled_is_refused(place: Place) -> None:
    incoming = place.incoming(b"")
    with pytest.raises(TypeError):
        incoming.registerProducer(RecordingProducer(), False)
    incoming.registerProducer(RecordingProducer(), True)
    with pytest.raises(RuntimeError):
        incoming.registerProducer(RecordingProducer(), True)
    incoming.unregisterProducer()
    incoming.registerProducer(RecordingProducer(), True)


def test_an_absurd_modification_time_is_told_and_leaves_nothing(place: Place) -> None:
    incoming = place.incoming(b"", mtime=10**30)
    with pytest.raises(OSError, match="modification time 1000000"):
        result_of(incoming.finish())
    assert place.files() == []


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(place: Place) -> None:
    outside = place.root / "outside"
    outside.write_bytes(b"precious")
    place.final.parent.mkdir(parents=True)
    place.final.symlink_to(outside)
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.finish())
    assert outside.read_bytes() == b"precious"
    assert not place.final.is_symlink()
    assert place.final.read_bytes() == SMALL


def test_a_link_in_the_place_of_a_directory_is_not_followed(place: Place) -> None:
    outside = place.root / "outside"
    outside.mkdir()
    place.final.parent.parent.mkdir(parents=True)
    place.final.parent.symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        result_of(place.incoming(b"").finish())
    assert place.files() == [place.final.parent]


def test_directories_that_vanished_are_made_again(tmp_path: Path) -> None:
    directories = Directories(tmp_path)
    for name in ("one", "two"):
        temporary = tmp_path / "incoming" / name
        PartialFile(temporary, tmp_path / name, tmp_path, directories).place()
        (tmp_path / "incoming").rmdir()
    assert (tmp_path / "two").exists()


def test_a_directory_that_vanished_fails_one_file_and_is_then_made_again(tmp_path: Path) -> None:
    directories = Directories(tmp_path)

    def place(name: str) -> None:
        final = tmp_path / "tree" / name
        PartialFile(tmp_path / "incoming" / name, final, tmp_path, directories).place()

    place("one")
    shutil.rmtree(tmp_path / "tree")
    with pytest.raises(FileNotFoundError, match="tree/two"):
        place("two")
    place("three")
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["three"]


def test_a_temporary_file_of_somebody_else_is_neither_used_nor_removed(place: Place) -> None:
    theirs = place.root / "incoming" / "7" / "0-x"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        result_of(place.incoming(b"").finish())
    assert theirs.read_bytes() == b"theirs"
    assert place.files() == [theirs]


def test_what_comes_after_the_failure_is_not_kept(place: Place) -> None:
    incoming, late = place.incoming(b""), bytes(10)
    incoming.write(LARGE)
    before = sys.getrefcount(late)
    incoming.write(late)
    assert sys.getrefcount(late) == before


def test_an_abort_before_the_first_block_needs_no_trip(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.abort())
    result_of(incoming.abort())
    assert threads.made == 0
    assert place.files() == []


def test_an_abort_waits_for_the_thread_and_leaves_nothing(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    opened: list[int] = []

    def write(fd: int, data: memoryview) -> int:
        opened.append(fd)
        return os.write(fd, data)

    place.write = write
    incoming = place.incoming(LARGE)
    incoming.write(LARGE[:BLOCK])
    aborted = begin(incoming.abort())
    assert aborted == []
    threads.let_one_go()
    assert is_open(opened[0])
    assert aborted == []
    threads.let_all_go()
    assert aborted == [None]
    assert place.files() == []
    assert not is_open(opened[0])


def test_finish_after_abort_says_that_it_was_given_up(place: Place) -> None:
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.abort())
    with pytest.raises(CancelledError):
        result_of(incoming.finish())
    assert place.files() == []


def test_abort_after_finish_keeps_the_file(place: Place) -> None:
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    result_of(incoming.finish())
    result_of(incoming.abort())
    assert place.final.read_bytes() == SMALL


def test_an_abort_ends_a_finish_that_waits(held: tuple[Place, HeldThreads]) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    finished, aborted = begin(incoming.finish()), begin(incoming.abort())
    threads.let_all_go()
    assert isinstance(failure_of(finished), CancelledError)
    assert aborted == [None]
    assert place.files() == []


def test_a_cancelled_finish_touches_nothing_under_a_running_thread(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE[:BLOCK])
    threads.let_one_go()
    incoming.write(LARGE[BLOCK:])
    finishing = Deferred.fromCoroutine(incoming.finish())
    finished = outcome(finishing)
    finishing.cancel()
    assert place.files() == [place.root / "incoming" / "7" / "0-x"]
    assert (len(threads.held), finished) == (1, [])
    threads.let_all_go()
    assert isinstance(failure_of(finished), CancelledError)
    assert place.files() == []


def test_a_finish_that_is_cancelled_twice_still_cleans_up(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(LARGE)
    incoming.write(LARGE)
    finishing = Deferred.fromCoroutine(incoming.finish())
    finished = outcome(finishing)
    finishing.cancel()
    finishing.cancel()
    threads.let_all_go()
    assert isinstance(failure_of(finished), CancelledError)
    assert place.files() == []


def test_a_file_that_was_whole_when_the_cancel_came_stays(
    held: tuple[Place, HeldThreads],
) -> None:
    place, threads = held
    incoming = place.incoming(SMALL)
    incoming.write(SMALL)
    finishing = Deferred.fromCoroutine(incoming.finish())
    finished = outcome(finishing)
    finishing.cancel()
    threads.let_all_go()
    assert isinstance(failure_of(finished), CancelledError)
    assert place.files() == [place.final]
