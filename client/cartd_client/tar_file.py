"""Saves a tar as ``NAME``: as ``NAME.part`` until it is complete and all its files are right."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cartd_client.contents import Item
from cartd_client.receive import Sink
from cartd_client.resume import Lock, State, load_state, sync_directory, sync_file, write_all

_BLOCK = 1 << 20


class PartFile:
    """``NAME.part``, locked, with its state ``NAME.part.json``."""

    def __init__(self, target: Path) -> None:
        """Create the file if it is missing, with the directory, and lock it."""
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.state_path = target.with_name(target.name + ".part.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path, str(target))
        self.fd = os.open(
            self.path,
            os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0),
        )

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.fd).st_size

    def load(self) -> State | None:
        """Return the state of an earlier run."""
        return load_state(self.state_path)

    def clear(self) -> None:
        """Remove what an earlier run has left."""
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self.state_path.unlink(missing_ok=True)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``end``; the next write is at ``end``."""
        os.ftruncate(self.fd, end)
        os.lseek(self.fd, start, os.SEEK_SET)
        while start < end:
            data = os.read(self.fd, min(_BLOCK, end - start))
            start += len(data)
            yield data

    def read_at(self, offset: int, size: int) -> bytes:
        """Return bytes of the file."""
        os.lseek(self.fd, offset, os.SEEK_SET)
        data = b""
        while len(data) < size and (more := os.read(self.fd, size - len(data))):
            data += more
        return data

    def finish(self) -> None:
        """Give the file its name: it is complete and right."""
        sync_file(self.fd)
        if os.name == "nt":  # which renames no open file
            self.close()
        self.path.replace(self.target)
        sync_directory(self.target.parent)
        self.state_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock; what was received stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._lock.release()


class FileSink(Sink):
    """Writes the bytes of the tar as they come."""

    def __init__(self, file: PartFile) -> None:
        self.file = file
        self.is_replaying = False
        """Whether the bytes are those that are in the file already."""

    def raw(self, data: bytes) -> None:
        if not self.is_replaying:
            write_all(self.file.fd, data)

    def begin(self, item: Item) -> None:
        if item.is_again:
            os.lseek(self.file.fd, item.member.data, os.SEEK_SET)

    def write(self, item: Item, data: memoryview) -> None:
        if item.is_again:
            write_all(self.file.fd, data)

    def publish(self, items: list[Item], batch: object) -> None:
        sync_file(self.file.fd)


class StdoutSink(Sink):
    """Writes the tar to standard output."""

    def raw(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)

    def flush(self) -> None:
        sys.stdout.buffer.flush()


class TarAndTree(Sink):
    """Saves the tar, and unpacks it."""

    def __init__(self, unpacking: Sink, file_sink: FileSink) -> None:
        self.file_sink = file_sink
        self._unpacking = unpacking
        self.turn = unpacking.turn

    def raw(self, data: bytes) -> None:
        self.file_sink.raw(data)

    def begin(self, item: Item) -> None:
        self.file_sink.begin(item)
        self._unpacking.begin(item)

    def write(self, item: Item, data: memoryview) -> None:
        self.file_sink.write(item, data)
        self._unpacking.write(item, data)

    def end(self, item: Item) -> None:
        self._unpacking.end(item)

    def flush(self) -> None:
        self._unpacking.flush()

    def new_batch(self) -> Any:
        return self._unpacking.new_batch()

    def publish(self, items: list[Item], batch: Any) -> None:
        self.file_sink.publish(items, batch)
        self._unpacking.publish(items, batch)

    def settled(self, batch: Any) -> None:
        self._unpacking.settled(batch)
