"""Slow clients that hold connections: they send or read one byte at a time, without an end.

They run in a process of their own, which prints their figures when its input ends.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.helper_process import helper_process
from bench.server import Server

ADDRESS = "127.0.0.1"
"""Source address of the attackers, other than that of the honest clients."""
PAUSE = 0.5
"""Seconds between two bytes of one client."""
RAMP = 100.0
"""New clients per second at first, as the lasting attack is measured, not its beginning."""
_HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
_SMALL = 4096
"""Bytes of a receive buffer; what does not fit stays in the server."""


Stream = asyncio.StreamReader
Writer = asyncio.StreamWriter
Begun = Callable[[], None]
"""Called when the client has begun to hold its connection."""
Kind = Callable[[Stream, Writer, Begun], Awaitable[None]]


@dataclass(slots=True)
class Attack:
    """The number of attackers of each kind, and their figures."""

    heads: int
    bodies: int
    readers: int
    bytes: int = 0
    """Bytes that they have sent and read, one at a time."""
    held: int = 0
    """Connections that they held at the end."""
    ended: dict[str, int] = field(default_factory=dict)
    """Connections that the server has closed, by the status of its response."""

    @property
    def clients(self) -> int:
        return self.heads + self.bodies + self.readers


@contextmanager
def attacking(server: Server, path: str, attack: Attack) -> Iterator[Attack]:
    """Run the attack during the block; the figures are complete after it.

    Readers request ``path``.  A client that is disconnected connects again.
    """

    def complete(figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            setattr(attack, name, value)

    order = json.dumps(asdict(attack))
    with helper_process("bench.attackers", str(server.port), path, order, on_result=complete):
        yield attack


class _Attackers:
    def __init__(self, port: int, path: str, attack: Attack) -> None:
        self._port = port
        self._path = path
        self._attack = attack
        self._begun = 0
        self.all_have_begun = asyncio.Event()

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        kinds: list[Kind] = [self._send_head] * self._attack.heads
        kinds += [self._send_body] * self._attack.bodies
        kinds += [self._read] * self._attack.readers
        return [
            group.create_task(self._again_and_again(kind, number / RAMP))
            for number, kind in enumerate(kinds)
        ]

    async def _again_and_again(self, kind: Kind, delay: float) -> None:
        await asyncio.sleep(delay)
        first = True
        while True:
            stream, writer = await asyncio.open_connection(
                "127.0.0.1", self._port, limit=_SMALL, local_addr=(ADDRESS, 0)
            )
            self._attack.held += 1
            try:
                await kind(stream, writer, self._begin if first else lambda: None)
            except (OSError, EOFError):
                self._note("broken")
            finally:
                self._attack.held -= 1
                writer.transport.abort()
            first = False

    def _begin(self) -> None:
        self._begun += 1
        if self._begun == self._attack.clients:
            self.all_have_begun.set()

    async def _send_head(self, stream: Stream, writer: Writer, begun: Begun) -> None:
        begun()
        await self._send(stream, writer, _HEAD)

    async def _send_body(self, stream: Stream, writer: Writer, begun: Begun) -> None:
        begun()
        head = b"POST /attack HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        writer.write(head + b" " * 50_000)
        await self._send(stream, writer, b"")

    async def _send(self, stream: Stream, writer: Writer, data: bytes) -> None:
        """Send ``data`` and then more bytes without an end, until there is a response."""
        answered = asyncio.create_task(stream.read())
        try:
            while not (await asyncio.wait([answered], timeout=PAUSE))[0]:
                writer.write(data[:1] or b"x")
                data = data[1:]
                self._attack.bytes += 1
            answer = answered.result()
            self._note(answer[9:12].decode() if answer else "closed")
        finally:
            answered.cancel()

    async def _read(self, stream: Stream, writer: Writer, begun: Begun) -> None:
        writer.write(f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await stream.readexactly(1)
        begun()
        while await stream.read(1):
            self._attack.bytes += 1
            await asyncio.sleep(PAUSE)
        self._note("closed")

    def _note(self, how: str) -> None:
        self._attack.ended[how] = self._attack.ended.get(how, 0) + 1


async def _attack(port: int, path: str, attack: Attack) -> None:
    attackers = _Attackers(port, path, attack)
    async with asyncio.TaskGroup() as group:
        tasks = attackers.start(group)
        await attackers.all_have_begun.wait()
        print("attacking", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        figures = json.dumps(asdict(attack))
        for task in tasks:
            task.cancel()
    print(figures, flush=True)


def _main() -> None:
    """Attack from the first line of output until the end of input, then print the figures."""
    attack = Attack(**json.loads(sys.argv[3]))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()
    asyncio.run(_attack(int(sys.argv[1]), sys.argv[2], attack))
    print(f"attacked for {time.monotonic() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    _main()
