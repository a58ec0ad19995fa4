"""Lets the log of ``twistd`` write one event as several lines, for the access log.

Twisted writes date and namespace only before the first line of an event, and one event per request
would take a sixth of the time of a HEAD request.
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
"""Key of the list of lines in an event; each becomes a line of the log."""

_supports_multiline = False
_options: dict[str, Any] = {}
"""The options of ``twistd``, which does not pass them to a logger."""


def supports_multiline() -> bool:
    """Whether the log of this process can write events of several lines."""
    return _supports_multiline


def format_event(event: LogEvent) -> str | None:
    """Format an event as Twisted does; each of its :data:`LINES_KEY` becomes such a line."""
    lines = event.get(LINES_KEY)
    if lines is None:
        return formatEventAsClassicLogText(event)
    level = event["log_level"].name
    prefix = f"{formatTime(event['log_time'])} [{event['log_namespace']}#{level}] "
    return "".join(f"{prefix}{line}\n" for line in lines)


def install(twistd: usage.Options | None) -> None:
    """Make ``twistd`` use :func:`observer` as its logger, unless another one was chosen."""
    if twistd is not None and not twistd.get("logger"):
        _options.update(twistd)
        twistd["logger"] = f"{__name__}.{observer.__name__}"


def observer() -> ILogObserver:
    """Return the observer that ``twistd`` would create: for a file, standard output or syslog."""
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
