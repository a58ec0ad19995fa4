"""The socket of a service manager, as systemd's: receives the messages of sd_notify(3)."""

from __future__ import annotations

import socket
from pathlib import Path

DEADLINE = 60.0
"""Seconds after which a wait for a message fails."""


class NotifySocket:
    """``address`` is the value of ``NOTIFY_SOCKET``; one that begins with ``@`` is abstract."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)

    def __enter__(self) -> NotifySocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def arrived(self) -> list[str]:
        """Return the messages that have arrived."""
        self._socket.setblocking(False)
        messages = []
        try:
            while True:
                messages.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return messages

    def until(self, wanted: str) -> list[str]:
        """Wait for a message that begins with ``wanted``; return it and all before it."""
        self._socket.settimeout(DEADLINE)
        messages = [""]
        while not messages[-1].startswith(wanted):
            messages.append(self._socket.recv(4096).decode())
        return messages[1:]
