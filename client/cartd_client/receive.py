"""Receives a tar in order: identifies and hashes its members, and hands them to a sink.

A *sink* is where the bytes go: into files of a directory, into one file, or nowhere.  Members are
*settled* in batches by a thread of their own: their sums are compared, the sink gives them their
names and has them on the disk, and the state on the disk says so.  Meanwhile the next batch
arrives; no more than two batches are unsettled.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from queue import Queue
from typing import Any

from cartd_client.contents import Contents, Item, Tally, dumped_missing
from cartd_client.errors import VerificationFailed
from cartd_client.model import FileProblem
from cartd_client.resume import State, save_state
from cartd_client.tar_stream import Member, TarError, TarStream

MAX_BATCH_FILES = 4096
MAX_BATCH_BYTES = 256 << 20
MAX_BATCH_SECONDS = 15.0
MAX_WRONG = 1000
"""Wrong files after which a download ends: it is wrong as a whole."""


class Sink:
    """Discards all bytes; the base of the others.

    ``begin``, ``write`` and ``end`` are called by the thread that receives, :meth:`publish` by the
    one that settles.
    """

    turn: AbstractContextManager[Any] = nullcontext()
    """Held while a part of the tar is received.

    A sink whose ``publish`` makes many short system calls holds it for them: the interpreter runs
    one thread at a time, and two that pass it on at each call take longer than one by one.
    """

    def raw(self, data: bytes) -> None:
        """Take the next bytes of the tar itself, before its members are parsed."""

    def begin(self, item: Item) -> None:
        """A file begins."""

    def write(self, item: Item, data: memoryview) -> None:
        """Take content of the file."""

    def end(self, item: Item) -> None:
        """The content of the file is complete; its sum may not be."""

    def flush(self) -> None:
        """Note durably enough for a kill what was received; called after each part of the tar."""

    def new_batch(self) -> Any:
        """A batch is complete: return what :meth:`publish` needs of the sink."""
        return None

    def publish(self, items: list[Item], batch: Any) -> None:
        """Have the judged items on the disk, those that are right under their names."""

    def settled(self, batch: Any) -> None:
        """The state on the disk has the batch."""

    def close(self) -> None:
        """Release everything; what was received stays for a resume."""


class Settler:
    """The batches of one download, and the thread that settles them."""

    def __init__(
        self, sink: Sink, contents: Contents, state: State, path: Path | None, *, batches: bool
    ) -> None:
        """``path``: file of the state, None without one.

        ``batches``: whether files get their names before the whole is there.
        """
        self.state = state
        self.wrong: list[tuple[Item, str]] = []
        """Files whose sum was wrong."""
        self._sink = sink
        self._contents = contents
        self._path = path
        self._batches = batches
        self._tally = Tally(state.files, state.bytes, dict(state.verified), state.unverified)
        self._items: list[Item] = []
        self._end = state.position
        self._bytes = 0
        self._since = time.monotonic()
        self._queue: Queue[tuple[list[Item], int, Any] | None] = Queue(1)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def tally(self) -> Tally:
        """What is settled."""
        return self._tally

    def add(self, item: Item) -> None:
        """Add a file, or a directory, whose content has been received."""
        self._items.append(item)
        self._bytes += item.member.size
        self._end = max(self._end, item.member.end)

    def reach(self, position: int) -> None:
        """Note that there are no more members before ``position``."""
        self._end = position

    def settle_if_due(self) -> None:
        """Settle the batch if it is large or old."""
        is_due = (
            len(self._items) >= MAX_BATCH_FILES
            or self._bytes >= MAX_BATCH_BYTES
            or (self._items and time.monotonic() - self._since > MAX_BATCH_SECONDS)
        )
        if is_due and self._batches:
            self.settle()

    def settle(self) -> None:
        """Hand the batch to the thread; waits for the batch before it.

        :raises BaseException: what the thread has met.
        """
        self._check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="settle", daemon=True)
            self._thread.start()
        self._queue.put((self._items, self._end, self._sink.new_batch()))
        self._items = []
        self._bytes = 0
        self._since = time.monotonic()

    def finish(self) -> None:
        """Settle all that was added, and wait for it; raises as :meth:`settle`."""
        self.settle()
        self.stop()
        self._check()

    def stop(self) -> None:
        """Wait until what was handed over is settled."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            work = self._queue.get()
            if work is None:
                return
            if self._error is None:
                try:
                    self._settle(*work)
                except BaseException as error:
                    self._error = error

    def _settle(self, items: list[Item], position: int, batch: Any) -> None:
        for item in items:
            item.judge()
        self._sink.publish(items, batch)
        for item in items:
            self._count(item)
        state, tally = self.state, self._tally
        state.position = max(state.position, position)
        state.files, state.bytes = tally.files, tally.bytes
        state.verified, state.unverified = dict(tally.verified), tally.unverified
        state.wrong = [_dumped(item, problem) for item, problem in self.wrong]
        state.missing = dumped_missing(self._contents.missing)
        state.in_order = self._contents.expected is None or self._contents.expected.is_in_order
        if self._path is not None:
            save_state(self._path, state)
        self._sink.settled(batch)
        if len(self.wrong) > MAX_WRONG:
            raise VerificationFailed(f"More than {MAX_WRONG} files are wrong: the download ends")

    def _count(self, item: Item) -> None:
        if item.member.is_directory:
            return
        if item.tag is not None:
            member = item.member
            self.state.tags.append([member.name, member.data, member.size])
        elif item.outcome is None:
            if item.is_again:
                return
            self.wrong.append((item, item.problem or "it is wrong"))
        else:
            if item.is_again:
                self.wrong = [pair for pair in self.wrong if pair[0].member != item.member]
            self._tally.add(item.member.size, item.outcome)


class Receiver:
    """Feeds the bytes of a tar through contents and sink to the settler."""

    def __init__(self, tar: TarStream, contents: Contents, sink: Sink, settler: Settler) -> None:
        self.tar = tar
        self.item: Item | None = None
        """The file whose content is arriving."""
        self.files = 0
        """Files that have arrived."""
        self._contents = contents
        self._sink = sink
        self._settler = settler

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        :raises VerificationFailed: they are no tar of a cart.
        """
        with self._sink.turn:
            self._feed(data)
            self._sink.flush()
        self._settler.settle_if_due()

    def _feed(self, data: bytes) -> None:
        try:
            for event in self.tar.feed(data):
                if isinstance(event, memoryview):
                    self._content(event)
                elif isinstance(event, Member):
                    self._member(event)
                else:
                    self._end()
        except TarError as error:
            raise VerificationFailed(f"The download is not the tar of a cart: {error}") from error

    def close(self) -> None:
        """Check that the tar is complete; raises VerificationFailed."""
        try:
            self.tar.close()
        except TarError as error:
            raise VerificationFailed(f"The download is not the tar of a cart: {error}") from error

    def _member(self, member: Member) -> None:
        if member.is_directory:
            self.item = Item(member, self._contents.parts(member))
            return
        self.item = item = self._contents.item(member)
        self._sink.begin(item)

    def _content(self, data: memoryview) -> None:
        item = self.item
        assert item is not None
        if item.hasher is not None:
            item.hasher.update(data)
        if item.tag is not None:
            item.tag.feed(data)
        self._sink.write(item, data)

    def _end(self) -> None:
        item, self.item = self.item, None
        assert item is not None
        self.files += not item.member.is_directory and item.tag is None
        complete(item)
        self._sink.end(item)
        self._settler.add(item)


def complete(item: Item) -> None:
    """Note that all content has been hashed; judges it if that costs no wait."""
    if item.member.is_directory:
        item.outcome = ""
        return
    if item.hasher is not None:
        item.hasher.finish()
    if item.tag is not None:
        item.tag.close()
        item.outcome = ""
    elif item.hasher is None or item.hasher.is_complete:
        item.judge()


def problems(wrong: list[tuple[Item, str]]) -> list[FileProblem]:
    """Return what the report says of wrong files."""
    return [FileProblem(path_of(item), problem, "wrong-content") for item, problem in wrong]


def path_of(item: Item) -> str:
    """Return the path of a file in its cart."""
    return item.wanted.path if item.wanted is not None else "/".join(item.parts[1:] or item.parts)


def _dumped(item: Item, problem: str) -> list[Any]:
    return [list(item.member), problem, list(item.wanted) if item.wanted is not None else None]
