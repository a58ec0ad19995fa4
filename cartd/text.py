"""Makes untrusted text safe for logs, headers and terminals."""

from __future__ import annotations

MAX_LINE = 200


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return ``text`` on one line, without control or formatting characters, cut to ``limit``."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    return " ".join(printable.split())[:limit].rstrip()


def escape(name: str) -> str:
    """Return ``name`` with unprintable characters escaped as in Python."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
