"""HEAD requests at a steady rate, as clients that ask for a cart's status make them.

Each is due at its own time, and its wait counts from then, whether or not the one before it has
been answered: a service that stands still for a second is charged for all who ask meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException

from bench.processes import Broken
from bench.server import Server

CLIENTS = 10
EACH = 10.0
"""Requests a second of one client, on a connection of its own."""
RATE = CLIENTS * EACH


class Waits:
    """What the requests waited, filled while they are made."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.failure = ""

    @property
    def milliseconds(self) -> list[float]:
        """Of all requests; ``Broken`` if one failed."""
        if self.failure or not self.seconds:
            raise Broken(self.failure or "no HEAD request was made")
        return [wait * 1000 for wait in self.seconds]


@contextmanager
def probing(server: Server, uid: str) -> Iterator[Waits]:
    """Ask for one cart meanwhile; the waits are complete when the block has ended."""
    waits = Waits()
    stopped = threading.Event()
    began = time.monotonic()
    clients = [
        threading.Thread(
            target=_ask, args=(server, uid, began + number / RATE, stopped, waits), daemon=True
        )
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        yield waits
    finally:
        stopped.set()
        for client in clients:
            client.join()


def _ask(server: Server, uid: str, due: float, stopped: threading.Event, waits: Waits) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        while not stopped.wait(max(0.0, due - time.monotonic())):
            connection.request("HEAD", f"/{uid}")
            answer = connection.getresponse()
            answer.read()
            waits.seconds.append(time.monotonic() - due)
            if answer.status != 204:
                raise Broken(f"answered with {answer.status}")
            due += 1 / EACH
    except (OSError, HTTPException, Broken) as error:
        waits.failure = f"a HEAD request failed: {error}"
    finally:
        connection.close()
