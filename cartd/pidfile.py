"""The file in which ``twistd`` keeps the number of its process."""

from __future__ import annotations

from twisted.python import usage

DEFAULT = "twistd.pid"


def disable_pidfile(twistd: usage.Options | None) -> None:
    """Have ``twistd -n`` write no ``twistd.pid``; a file that was named is written.

    Whoever starts it knows the process already, and after a SIGKILL the file only keeps it from
    starting again: in a container the number in it, 1, is that of the new process.
    """
    if twistd is not None and twistd["nodaemon"] and twistd.get("pidfile") == DEFAULT:
        twistd["pidfile"] = ""
