"""The service's log as ``twistd`` writes it, but that one event may be many lines.

Twisted indents what follows the first line of an event, without date and namespace, and to write
each request as an event of its own takes a sixth of the time of telling a status.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    formatEventAsClassicLogText,
    formatTime,
)
from twisted.python import usage

LINES_KEY = "lines"
"""The key of an event whose lines each become one of the log."""

_supports_multiline = False
_options: dict[str, Any] = {}
"""Those of ``twistd``, which hands none of them to a logger."""


def supports_multiline() -> bool:
    """Whether the log of this process writes an event of many lines as such."""
    return _supports_multiline


def format_event(event: LogEvent) -> str | None:
    """Twisted's form of an event; one with :data:`LINES_KEY` is that many lines of that form."""
    lines = event.get(LINES_KEY)
    if lines is None:
        return formatEventAsClassicLogText(event)
    level = event["log_level"].name
    prefix = f"{formatTime(event['log_time'])} [{event['log_namespace']}#{level}] "
    return "".join(f"{prefix}{line}\n" for line in lines)


def install(twistd: usage.Options | None) -> None:
    """Have ``twistd`` write its log in this way, unless it was told another one."""
    if twistd is not None and not twistd.get("logger"):
        _options.update(twistd)
        twistd["logger"] = f"{__name__}.{observer.__name__}"


def observer() -> ILogObserver:
    """What ``twistd`` itself makes of its options: a file, standard output, or syslog."""
    global _supports_multiline
    made: ILogObserver = _logger()({**_options, "logger": None})._getLogObserver()
    if isinstance(made, FileLogObserver):
        made.formatEvent = format_event
        _supports_multiline = True
    return made


def _logger() -> Any:
    if sys.platform == "win32":
        from twisted.application.app import AppLogger

        return AppLogger
    from twisted.scripts._twistd_unix import UnixAppLogger

    return UnixAppLogger
