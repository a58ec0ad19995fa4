"""The pid file of ``twistd``."""

from __future__ import annotations

from twisted.python import usage

DEFAULT = "twistd.pid"


def disable_pidfile(twistd: usage.Options | None) -> None:
    """Make ``twistd -n`` write no ``twistd.pid`` unless ``--pidfile`` names a file.

    In the foreground it serves no purpose, and after a SIGKILL it prevents a start: in a container
    the new process has the same pid, 1.
    """
    if twistd is not None and twistd["nodaemon"] and twistd.get("pidfile") == DEFAULT:
        twistd["pidfile"] = ""
