"""Slow clients that read different parts of the same tar, and check every byte."""

from __future__ import annotations

import asyncio
import mmap
import time
from dataclasses import dataclass
from pathlib import Path

from bench.processes import MeasurementFailed
from bench.server import Server

_PIECE = 64 * 2**10


@dataclass(slots=True)
class Reading:
    """Bytes that all clients have read."""

    right: int = 0
    wrong: int = 0
    """Bytes of pieces that differed."""


def read_slowly(
    server: Server, path: str, tar: Path, *, clients: int, rate: int, seconds: float
) -> Reading:
    """Let ``clients`` read ``rate`` bytes per second each; ``tar`` is the expected content.

    They start evenly spread over the tar, the first at its first byte; a client that reaches the
    end of the tar stops.
    """
    with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as right:
        return asyncio.run(_read_all(server.port, path, right, clients, rate, seconds))


async def _read_all(
    port: int, path: str, right: mmap.mmap, clients: int, rate: int, seconds: float
) -> Reading:
    reading = Reading()
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            start = len(right) * number // clients
            group.create_task(_read(port, path, right, start, rate, seconds, reading))
    return reading


async def _read(
    port: int,
    path: str,
    right: mmap.mmap,
    start: int,
    rate: int,
    seconds: float,
    reading: Reading,
) -> None:
    stream, writer = await asyncio.open_connection("127.0.0.1", port, limit=_PIECE)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes={start}-\r\n\r\n".encode()
    )
    head = await stream.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 206"):
        raise MeasurementFailed(f"a slow download was answered with {head[:100]!r}")
    began = time.monotonic()
    position = start
    while position < len(right) and time.monotonic() - began < seconds:
        piece = await stream.read(_PIECE)
        if not piece:
            raise MeasurementFailed(
                f"a slow download ended {len(right) - position} bytes before its end"
            )
        if piece == right[position : position + len(piece)]:
            reading.right += len(piece)
        else:
            reading.wrong += len(piece)
        position += len(piece)
        await asyncio.sleep(began + (position - start) / rate - time.monotonic())
    writer.transport.abort()
