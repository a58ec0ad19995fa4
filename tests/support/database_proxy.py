"""A proxy to a database that a test can block, close and disconnect.

::

    with DatabaseProxy.to(url) as proxy:
        ... proxy.url ...
        proxy.block()           # drops all data, without closing connections
        proxy.unblock()
        proxy.disconnect_all()  # closes all connections
        proxy.close()           # refuses new connections
        proxy.open()
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from sqlalchemy import make_url

from tests.support.free_ports import free_port


class DatabaseProxy:
    """Threads that copy bytes between a local port and a PostgreSQL server's socket."""

    def __init__(self, directory: str, user: str, name: str) -> None:
        self._server = f"{directory}/.s.PGSQL.5432"
        self._port = free_port()
        self.opened = 0
        """Number of connections so far."""
        self._passes = Event()
        self._passes.set()
        self._listening: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self.url = f"postgresql+psycopg://{user}@127.0.0.1:{self._port}/{name}?connect_timeout=2"

    def behind(self, first: DatabaseProxy) -> str:
        """Return a libpq URL that names the proxy ``first`` before this one."""
        both = f"127.0.0.1:{first._port},127.0.0.1:{self._port}"
        url = self.url.replace("+psycopg", "").replace(f"127.0.0.1:{self._port}", both)
        return f"{url}&target_session_attrs=read-write"

    @classmethod
    @contextmanager
    def to(cls, url: str) -> Iterator[DatabaseProxy]:
        """Open a proxy to the database of that URL, which names its server's directory."""
        parsed = make_url(url)
        proxy = cls(str(parsed.query["host"]), parsed.username or "", parsed.database or "")
        proxy.open()
        try:
            yield proxy
        finally:
            proxy.unblock()
            proxy.close()
            proxy.disconnect_all()

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self._port))
        Thread(target=self._accept, args=[self._listening], daemon=True).start()

    def close(self) -> None:
        if self._listening is not None:
            with suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()

    def connected(self) -> int:
        """Return the number of connections, including those that are blocked."""
        return (len(self._ends) + 1) // 2

    def block(self) -> None:
        self._passes.clear()

    def unblock(self) -> None:
        self._passes.set()

    def disconnect_all(self) -> None:
        for end in tuple(self._ends):
            self._end(end)

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                self.opened += 1
                Thread(target=self._connect, args=[client], daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._ends.add(client)
        self._passes.wait()
        server = socket.socket(socket.AF_UNIX)
        self._ends.add(server)
        try:
            server.connect(self._server)
        except OSError:
            self._end(client)
            self._end(server)
            return
        Thread(target=self._carry, args=[server, client], daemon=True).start()
        self._carry(client, server)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._passes.wait()
                target.sendall(data)
        self._end(source)
        self._end(target)

    def _end(self, end: socket.socket) -> None:
        self._ends.discard(end)
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
