"""The access log: one line per request, whatever became of its response.

::

    192.0.2.7 - alice [30/Nov/2026:12:00:05 +0000] "GET /u HTTP/1.1" 200 512 "-" "curl/8" 9728 3.207

This is the Combined Log Format of Apache and nginx, whose third field is the user, followed by the
declared length of the response body and the seconds from the request line to the end of the
response.  If fewer bytes were sent than declared, the download was aborted.  499, as in nginx: the
client disconnected before a response was started.  ``-`` means unknown.
"""

from __future__ import annotations

import re
import time
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.web.http import datetimeToLogString
from twisted.web.http_headers import Headers

from cartd import log_file
from cartd.http.rejection_log import client_address

CLIENT_CLOSED_REQUEST = 499
"""The client disconnected before a response was started."""
MAX_FIELD = 2000
"""Maximum characters of each text that the client sent.  The journal splits a line at 48 KiB, and
the second part would begin with text that the client chose."""

_UNSAFE = re.compile(r"[^ !#-\[\]-~]")

log = Logger(namespace="cartd.access_log")


class AccessLog:
    """Writes the lines; batches those of one reactor iteration if the log supports that.

    The date, in local time, is formatted once a second.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._second = 0
        self._date = ""
        self._lines: list[str] = []
        self._flush_call: IDelayedCall | None = None
        self._closed = False

    def log_request(
        self,
        peer: Any,
        user: str,
        request: bytes,
        status: int,
        *,
        sent: int,
        length: bytes,
        headers: Headers,
        seconds: float,
    ) -> None:
        """Write one line.  ``request`` is the request line."""
        line = (
            f'{client_address(peer)} - {user} {self._now()} "{_escape(request)}"'
            f" {status} {sent or '-'}"
            f' "{_field(headers, b"referer")}" "{_field(headers, b"user-agent")}"'
            f" {length.decode('ascii')} {seconds:.3f}"
        )
        if self._closed or not log_file.supports_multiline():
            log.info("{line}", line=line)
            return
        self._lines.append(line)
        if self._flush_call is None:
            self._flush_call = self._clock.callLater(0, self._flush)

    def close(self) -> None:
        """Write the pending lines, and from now on each line at once.  Idempotent."""
        self._closed = True
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush()

    def _flush(self) -> None:
        self._flush_call = None
        lines, self._lines = self._lines, []
        log.info("{lines}", lines=lines)

    def _now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, datetimeToLogString()
        return self._date


def _field(headers: Headers, name: bytes) -> str:
    values = headers.getRawHeaders(name)
    return _escape(values[0]) if values else "-"


def _escape(sent: bytes) -> str:
    """Return ``sent`` as printable ASCII without quotes, on one line."""
    text = sent.decode("latin-1")
    if len(text) > MAX_FIELD:
        text = f"{text[:MAX_FIELD]}..."
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text) or "-"
