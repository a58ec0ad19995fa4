"""Background load during a measurement."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from bench.carts import delete, stage
from bench.data import CartData
from bench.peers import tool
from bench.processes import MeasurementFailed
from bench.server import Server


class Repeated(threading.Thread):
    """A thread that repeats one piece of work."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.times = 0
        self.failure = ""

    def once(self) -> None:
        """Do it once; ``MeasurementFailed`` if it fails."""
        raise NotImplementedError

    def run(self) -> None:
        try:
            while not self.stopped.is_set():
                self.once()
                self.times += 1
        except MeasurementFailed as error:
            self.failure = str(error)

    def stop(self) -> None:
        self.stopped.set()
        self.join()


class Staging(Repeated):
    """Stages a cart, deletes it, and stages it again."""

    def __init__(self, server: Server, data: CartData) -> None:
        super().__init__()
        self._server = server
        self._data = data

    def once(self) -> None:
        uid = f"load-{self.times}"
        stage(self._server, uid, self._data)
        delete(self._server, uid)


class Download(Repeated):
    """Downloads a cart with curl, discarding it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._command = [tool("curl"), "-sSf", "-o", "/dev/null", url]
        self._process: subprocess.Popen[bytes] | None = None

    def once(self) -> None:
        self._process = subprocess.Popen(self._command)
        if self._process.wait() != 0 and not self.stopped.is_set():
            raise MeasurementFailed(f"curl ended with {self._process.returncode}")

    def stop(self) -> None:
        self.stopped.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
        super().stop()


@contextmanager
def loaded(server: Server, *, staged: CartData, uid: str, downloads: int) -> Iterator[None]:
    """Stage one cart repeatedly, while so many downloads of the cart ``uid`` run."""
    works: list[Repeated] = [Staging(server, staged)]
    works += [Download(f"{server.url}{uid}?filename=load.tar") for _ in range(downloads)]
    with ExitStack() as stack:
        for work in works:
            work.start()
            stack.callback(work.stop)
        yield
    for work in works:
        if work.failure:
            raise MeasurementFailed(f"under load: {work.failure}")
