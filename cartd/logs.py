"""The log: as text, as Twisted writes it, or one JSON object a line; what ``twistd`` logs to.

Lines of JSON are ASCII without control characters, whatever text they quote::

    {"time":"2026-11-30T12:00:05.123Z","level":"info","component":"cartd.staging.stager",
     "event":"Cart 12 (my-data, alice) is ready","template":"{cart} is ready","cart":12,
     "uid":"my-data","user":"alice","request_id":"9f86d081884c7d659a2f","trace_id":"4bf9…"}
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatEventAsClassicLogText,
    formatTime,
)
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.tracing import log_fields

FORMATS = ("text", "json")
LINES_KEY = "lines"
"""Key of the list of lines in an event; each becomes a line of the log."""
FIELDS_KEY = "fields"
"""Key of further fields of an event, which a line of JSON has in addition to the text."""
MAX_TEXT = 6000
"""Maximum characters of a message, and of a traceback, in JSON.

The journal splits a line at 48 KiB, and a character may take six bytes."""

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_format = "text"
_supports_multiline = False
_twistd_options: dict[str, Any] | None = None
"""The options of ``twistd``, which does not pass them to a logger; None if it has another one."""


def use_format(name: str) -> None:
    """Write the log in one of :data:`FORMATS`.  Call it before ``twistd`` starts the log."""
    global _format
    _format = name


def is_json() -> bool:
    """Whether lines are JSON."""
    return _format == "json"


def is_installed() -> bool:
    """Whether ``twistd`` logs to :func:`log_observer`, and so in the format that is set."""
    return _twistd_options is not None


def supports_multiline() -> bool:
    """Whether the log of this process can write events of several lines."""
    return _supports_multiline


def format_event(event: LogEvent) -> str | None:
    """Format an event as text, or as JSON; each of its :data:`LINES_KEY` becomes such a line.

    Lines of an event are JSON already if the log is.
    """
    lines = event.get(LINES_KEY)
    if is_json():
        return f"{json_line(event)}\n" if lines is None else "".join(f"{line}\n" for line in lines)
    if lines is None:
        return formatEventAsClassicLogText(event)
    level = event["log_level"].name
    prefix = f"{formatTime(event['log_time'])} [{event['log_namespace']}#{level}] "
    return "".join(f"{prefix}{line}\n" for line in lines)


def json_line(event: LogEvent) -> str:
    """Return an event as JSON, with the request and the cart of the context it was logged in.

    If it has :data:`FIELDS_KEY`, it names these itself: it may be logged in another context.
    """
    own = event.get(FIELDS_KEY)
    level = event.get("log_level", LogLevel.info)
    fields: dict[str, Any] = {
        "time": format_time(event.get("log_time", 0.0)),
        "level": getattr(level, "name", str(level)),
        "component": str(event.get("log_namespace", "-")),
        "event": formatEvent(event)[:MAX_TEXT],
    }
    if template := event.get("log_format"):
        fields["template"] = str(template)
    fields.update(log_fields(event.get("cart")) if own is None else own)
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        fields["exception"] = failure.getTraceback()[-MAX_TEXT:]  # the end says most
    return dump(fields)


def json_record(level: str, component: str, event: str, fields: Mapping[str, Any]) -> str:
    """Return a line of JSON for something that happens now, of the same form as an event."""
    return dump(
        {
            "time": format_time(time.time()),
            "level": level,
            "component": component,
            "event": event,
            **fields,
        }
    )


def dump(fields: Mapping[str, Any]) -> str:
    """Return one line of JSON in printable ASCII.  Lone surrogates are replaced."""
    try:
        text = _encode(fields)
    except (TypeError, ValueError):  # keys that are no strings, recursion
        text = json.dumps({"event": repr(fields)})
    if "\\ud" in text:
        text = _encode(_without_surrogates(json.loads(text)))
    return text


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(each) for key, each in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def format_time(seconds: float) -> str:
    """Return a Unix time as RFC 3339 in UTC, with milliseconds."""
    found = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return f"{found.removesuffix('+00:00')}Z"


def install_observer(twistd: usage.Options | None) -> None:
    """Make ``twistd`` use :func:`log_observer` as its logger, unless another one was chosen.

    It writes one event as several lines, for the access log: Twisted writes date and namespace only
    before the first line of an event, and one event per request would take a sixth of the time of a
    HEAD request.
    """
    global _twistd_options
    if twistd is not None and not twistd.get("logger"):
        _twistd_options = dict(twistd)
        twistd["logger"] = f"{__name__}.{log_observer.__name__}"


def log_observer() -> ILogObserver:
    """Return the observer that ``twistd`` would create: for a file, standard output or syslog."""
    global _supports_multiline
    made: Any = _twistd_logger()({**(_twistd_options or {}), "logger": None})._getLogObserver()
    if isinstance(made, FileLogObserver):
        made.formatEvent = format_event
        _supports_multiline = True
    elif is_json():
        # The method of Twisted's observer for syslog, which has opened the connection to it.
        return JsonSyslogObserver(made.__self__.syslog)
    found: ILogObserver = made
    return found


def _twistd_logger() -> Any:
    if sys.platform == "win32":
        from twisted.application.app import AppLogger

        return AppLogger
    from twisted.scripts._twistd_unix import UnixAppLogger

    return UnixAppLogger


_SYSLOG_PRIORITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}


@implementer(ILogObserver)
class JsonSyslogObserver:
    """Writes each event to syslog as one message, a line of JSON."""

    def __init__(self, send: Any) -> None:
        """``send`` is :func:`syslog.syslog`."""
        self._send = send

    def __call__(self, event: LogEvent) -> None:
        level = getattr(event.get("log_level"), "name", "info")
        self._send(_SYSLOG_PRIORITIES.get(level, 6), json_line(event))
