"""Text of strangers, as it may stand in a message: a line of a log, a header, a terminal."""

from __future__ import annotations

MAX_LINE = 200


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Prose: ``text`` on one line, without control or formatting characters, cut to ``limit``."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    return " ".join(printable.split())[:limit].rstrip()


def escape(name: str) -> str:
    """A name as it is, but for characters that cannot be seen: these are escaped as Python does."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
