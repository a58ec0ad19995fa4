"""The log of requests: one line for each, however its answer ended.

::

    192.0.2.7 - alice [30/Nov/2026:12:00:05 +0000] "GET /u HTTP/1.1" 200 512 "-" "curl/8" 9728 3.207

That is the Combined Log Format of Apache and nginx, whose third field is the user, and two fields
more: how many bytes the body was to have, and how many seconds passed from the request's first
line to the answer's end.  Where fewer bytes were sent, the download broke off.  499, as in nginx,
is what no answer was begun to, since the client had left.  ``-`` stands for what is not known.
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
from cartd.server.rejection_log import client_address

CLIENT_CLOSED_REQUEST = 499
"""The status where the client has gone before there was an answer."""
MAX_FIELD = 2000
"""Characters of what a client has sent, each.  The journal breaks a line of 48 KiB in two, and the
second would begin with whatever a client had chosen."""

_UNSAFE = re.compile(r"[^ !#-\[\]-~]")

log = Logger()


class AccessLog:
    """Writes the lines; those of one turn of the reactor together, where the log takes that.

    Their date, which is the machine's, is made once a second.
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
        """Write a line.  ``request`` is the first one of what a client has sent."""
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
        """Write what is left, and from now on each line at once; again does nothing."""
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
    """Printable ASCII without quotes, on one line."""
    text = sent.decode("latin-1")
    if len(text) > MAX_FIELD:
        text = f"{text[:MAX_FIELD]}..."
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text) or "-"
