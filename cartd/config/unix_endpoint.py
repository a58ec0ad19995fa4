"""Parses ``unix:`` endpoints; the syntax is Twisted's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cartd.config.endpoints import arguments, integer

_NAMES = ("address", "mode", "backlog", "lockfile")


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """Where to listen, and the mode of the socket, which decides who may connect."""

    path: Path
    mode: int | None
    """None: 660 less the bits of the umask."""
    backlog: int


def parse_unix_endpoint(description: str) -> UnixEndpoint:
    """Parse ``unix:PATH:mode=660...``; raise ValueError with the reason.

    ``lockfile`` is accepted and ignored: Twisted's lock file only has a process number.
    """
    given = arguments(description, _NAMES)
    path = given.get("address", "")
    if not path or "\0" in path:
        raise ValueError("it names no file")
    mode = given.get("mode")
    if mode is not None and not re.fullmatch(r"0?[0-7]{3}", mode):
        raise ValueError(f"mode {mode!r} is not an octal number from 000 to 777")
    backlog = integer("backlog", given.get("backlog", "50"), 2**31 - 1)
    return UnixEndpoint(Path(path), None if mode is None else int(mode, 8), backlog)
