"""Ports of 127.0.0.1 for servers that are told where to listen."""

from __future__ import annotations

import random
import socket

BELOW_THE_EPHEMERAL = range(10_000, 32_000)
"""Where no system takes ports for outgoing connections: those come and go in every test."""


def free_port() -> int:
    """A port on which nobody listens, drawn at random: tests at once draw different ones."""
    draw = random.SystemRandom()
    while True:
        port = draw.choice(BELOW_THE_EPHEMERAL)
        with socket.socket() as listening:
            try:
                listening.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
