"""HEAD requests at a steady rate, like those of clients that poll a cart's status.

Each request has a scheduled time and its wait counts from then, whether or not the one before it
was answered: a stall of the service for a second counts for all requests due in it.

They run in a process of their own: in the benchmark's process, starting a curl for the load would
stop all threads, for long on a busy machine.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException

from bench.helper_process import helper_process
from bench.processes import MeasurementFailed
from bench.server import Server

CLIENTS = 10
EACH = 10.0
"""Requests per second of one client, on a connection of its own."""
RATE = CLIENTS * EACH


class Waits:
    """The waits of the requests, complete when all have been made."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @property
    def milliseconds(self) -> list[float]:
        """Return the waits of all requests; ``MeasurementFailed`` if there was none."""
        if not self.seconds:
            raise MeasurementFailed("no HEAD request was made")
        return [wait * 1000 for wait in self.seconds]


@contextmanager
def probing(server: Server, uid: str, *, address: str = "127.0.0.1") -> Iterator[Waits]:
    """Poll one cart during the block; the waits are complete after it."""
    waits = Waits()

    def complete(seconds: list[float]) -> None:
        waits.seconds = seconds

    with helper_process("bench.prober", str(server.port), uid, address, on_result=complete):
        yield waits


class _Clients:
    """Clients that poll until they are stopped, or one of them fails."""

    def __init__(self, port: int, uid: str, address: str) -> None:
        self._port = port
        self._address = address
        self._uid = uid
        self._stopped = threading.Event()
        self.seconds: list[float] = []
        self.failure = ""
        began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._ask, args=[began + number / RATE], daemon=True)
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, due: float) -> None:
        connection = HTTPConnection(
            "127.0.0.1", self._port, timeout=120, source_address=(self._address, 0)
        )
        try:
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                connection.request("HEAD", f"/{self._uid}")
                answer = connection.getresponse()
                answer.read()
                self.seconds.append(time.monotonic() - due)
                if answer.status != 204:
                    raise MeasurementFailed(f"answered with {answer.status}")
                due += 1 / EACH
        except (OSError, HTTPException, MeasurementFailed) as error:
            self.failure = f"a HEAD request failed: {error}"
        finally:
            connection.close()


def _main() -> None:
    """Poll from the first line of output until the end of input, then print the waits."""
    clients = _Clients(int(sys.argv[1]), *sys.argv[2:4])
    print("asking", flush=True)
    sys.stdin.read()
    clients.stop()
    if clients.failure:
        sys.exit(clients.failure)
    print(json.dumps(clients.seconds))


if __name__ == "__main__":
    _main()
