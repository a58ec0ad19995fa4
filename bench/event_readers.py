"""Clients of event streams, in a process of their own, which prints its figures at its end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from bench.carts import delete
from bench.helper_process import helper_process
from bench.processes import MeasurementFailed
from bench.server import Server

AT_A_TIME = 50
"""Streams that are being opened at the same time."""


@dataclass(slots=True)
class Streams:
    """The figures of all streams, complete at their end."""

    events: int = 0
    open: int = 0
    """Streams that were open to the end."""


@contextmanager
def reading_events(server: Server, uids: Sequence[str], number: int) -> Iterator[Streams]:
    """Read so many streams during the block, of each cart as many as of the others.

    All have their first event when the block begins.
    """
    streams = Streams()

    def complete(figures: dict[str, Any]) -> None:
        streams.events, streams.open = figures["events"], figures["open"]

    arguments = (str(server.port), str(number), *uids)
    with helper_process("bench.event_readers", *arguments, on_result=complete):
        yield streams


def seconds_to_an_event(server: Server, uid: str) -> float:
    """Delete a cart; return the seconds from the response until its stream has the last event."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", f"/-/carts/{uid}/events")
        answer = connection.getresponse()
        if answer.status != 200 or not _read_until(answer.readline, b"event: status\n"):
            raise MeasurementFailed(f"the stream of {uid} was answered with {answer.status}")
        delete(server, uid)
        began = time.monotonic()
        if not _read_until(answer.readline, b"event: end\n"):
            raise MeasurementFailed(f"the stream of {uid} has no end")
        return time.monotonic() - began
    finally:
        connection.close()


def _read_until(readline: Any, wanted: bytes) -> bool:
    while line := readline():
        if line == wanted:
            return True
    return False


class _Readers:
    def __init__(self, port: int, uids: Sequence[str]) -> None:
        self._port = port
        self._uids = uids
        self._opening = asyncio.Semaphore(AT_A_TIME)
        self.events = 0
        self.open = 0

    async def run(self, number: int) -> None:
        tasks = []
        begun = [asyncio.Event() for _ in range(number)]
        for position, event in enumerate(begun):
            uid = self._uids[position % len(self._uids)]
            tasks.append(asyncio.create_task(self._read(uid, event)))
        for event in begun:
            await event.wait()
        print("reading", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        self.open = sum(not task.done() for task in tasks)
        failed = [task for task in tasks if task.done() and task.exception() is not None]
        for task in tasks:
            task.cancel()
        if failed:
            sys.exit(f"{len(failed)} streams failed: {failed[0].exception()}")

    async def _read(self, uid: str, begun: asyncio.Event) -> None:
        try:
            async with self._opening:
                stream, writer = await asyncio.open_connection("127.0.0.1", self._port)
                request = f"GET /-/carts/{uid}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
                writer.write(request.encode())
                head = await stream.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 200"):
                    raise MeasurementFailed(f"a stream was answered with {head[:100]!r}")
                await stream.readuntil(b"event: ")
        finally:
            begun.set()
        while line := await stream.readline():
            self.events += line.startswith(b"event: ")
        writer.close()


def _main() -> None:
    """Read from the first line of output until the end of input, then print the figures."""
    readers = _Readers(int(sys.argv[1]), sys.argv[3:])
    asyncio.run(readers.run(int(sys.argv[2])))
    print(json.dumps({"events": readers.events, "open": readers.open}))


if __name__ == "__main__":
    _main()
