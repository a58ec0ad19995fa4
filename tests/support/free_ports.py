"""Free ports of 127.0.0.1 for servers."""

from __future__ import annotations

import random
import socket

BELOW_THE_EPHEMERAL = range(10_000, 32_000)
"""Outside of the range of outgoing connections, which come and go in every test."""


def free_port() -> int:
    """Return a free port, drawn at random so that concurrent tests draw different ones."""
    draw = random.SystemRandom()
    while True:
        port = draw.choice(BELOW_THE_EPHEMERAL)
        with socket.socket() as listening:
            try:
                listening.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
