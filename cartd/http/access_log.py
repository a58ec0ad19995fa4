"""The access log and the rejection log.

The access log has one line per request, also for aborted ones::

    192.0.2.7 - alice [30/Nov/2026:12:00:05 +0000] "GET /u HTTP/1.1" 200 512 "-" "c/8" 9 3.207 4f…e

This is the Combined Log Format of Apache and nginx, whose third field is the user, followed by the
declared length of the response body, the seconds from the request line to the end of the response,
and the request id.  If fewer bytes were sent than declared, the download was aborted.  499, as in
nginx: the client disconnected before a response was started.  ``-`` means unknown.

The rejection log has one line per rejected request, which clients cannot forge::

    Refused 404 192.0.2.7 "GET /guess" "The cart does not exist or has been deleted" 4f…e

Status, address of the peer (``-`` if it has none), two JSON strings (the request and the reason),
and the request id.

If the log is in JSON, both have these as fields, see :mod:`cartd.logs`.

The namespaces of both are fixed: the filters of ``contrib/fail2ban`` match them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.web.http import datetimeToLogString
from twisted.web.http_headers import Headers

from cartd import logs
from cartd.tracing import LogContext

CLIENT_CLOSED_REQUEST = 499
"""The client disconnected before a response was started."""
MAX_FIELD = 2000
"""Maximum characters of each text that the client sent.  The journal splits a line at 48 KiB, and
the second part would begin with text that the client chose."""

_UNSAFE = re.compile(r"[^ !#-\[\]-~]")

access_log = Logger(namespace="cartd.access_log")


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
        context: LogContext,
    ) -> None:
        """Write one line.  ``request`` is the request line."""
        referer, agent = _field(headers, b"referer"), _field(headers, b"user-agent")
        address, asked = client_address(peer), _escape(request)
        if logs.is_json():
            fields = {
                "client": address,
                "user": user,
                "request": asked,
                "status": status,
                "sent": sent,
                "length": "-" if length == b"-" else int(length),
                "referer": referer,
                "user_agent": agent,
                "seconds": round(seconds, 3),
                "request_id": context.request_id,
                "trace_id": context.trace.trace_id,
            }
            known = {name: value for name, value in fields.items() if value != "-"}
            self._write(f'"{asked}" {status}', known)
        else:
            self._write(
                f'{address} - {user} {self._now()} "{asked}" {status} {sent or "-"}'
                f' "{referer}" "{agent}" {length.decode("ascii")} {seconds:.3f}'
                f" {context.request_id}"
            )

    def _write(self, line: str, fields: Mapping[str, Any] | None = None) -> None:
        """Write a line of text, or the message and the fields of a line of JSON."""
        if self._closed or not logs.supports_multiline():
            access_log.info("{line}", line=line, **({} if fields is None else {"fields": fields}))
            return
        if fields is not None:
            line = logs.json_record("info", access_log.namespace, line, fields)
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
        access_log.info("{lines}", lines=lines)

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


REJECTED_STATUSES = frozenset({400, 401, 404, 405, 408, 413, 429, 431})
"""Statuses logged as rejections; 503 is, too, if it is caused by a limit."""
BROWSER_PROBES = frozenset(
    b"/" + name
    for name in (
        b"favicon.ico",
        b"robots.txt",
        b"apple-touch-icon.png",
        b"apple-touch-icon-precomposed.png",
    )
)
"""Paths that browsers request by themselves; a 404 for these is not counted as uid guessing."""
MAX_REJECTION_TEXT = 200
"""Maximum characters logged of the request and of the reason."""

rejection_log = Logger(namespace="cartd.rejection_log")


def log_rejection(
    code: int,
    message: str,
    limit: str | None,
    *,
    peer: Any,
    context: LogContext,
    method: bytes = b"",
    target: bytes = b"",
) -> None:
    """Log a response with status ``code`` if that counts as a rejection.

    ``peer`` is a Twisted address; ``method`` and ``target`` are as received.
    """
    if code == 404 and target.partition(b"?")[0] in BROWSER_PROBES:
        return
    if code in REJECTED_STATUSES or (code == 503 and limit is not None):
        request_line = b"%s %s" % (method, target) if method else b""
        # Text chosen by the client comes after its address, so that it cannot forge one.
        rejection_log.info(
            "Refused {code} {address} {request_line} {reason} {request_id}",
            code=code,
            address=client_address(peer),
            request_line=_quoted(request_line.decode("latin-1")),
            reason=_quoted(message),
            request_id=context.request_id,
            **(
                {"fields": _rejection_fields(code, message, limit, peer, context, request_line)}
                if logs.is_json()
                else {}
            ),
        )


def _rejection_fields(
    code: int, message: str, limit: str | None, peer: Any, context: LogContext, request_line: bytes
) -> dict[str, Any]:
    fields = {
        "client": client_address(peer),
        "user": context.user or "-",
        "request": _escape(request_line[:MAX_REJECTION_TEXT]),
        "status": code,
        "reason": message[:MAX_REJECTION_TEXT],
        "limit": limit or "-",
        "request_id": context.request_id,
        "trace_id": context.trace.trace_id,
    }
    return {name: value for name, value in fields.items() if value != "-"}


def client_address(peer: Any) -> str:
    """Return the IP address, or ``-``; with ``haproxy:``, a proxy may have sent any text for it."""
    return _canonical_address(getattr(peer, "host", ""))


@lru_cache(maxsize=1024)
def _canonical_address(host: str) -> str:
    host, _, _ = host.partition("%")
    try:
        address = ip_address(host)
    except ValueError:
        return "-"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _quoted(text: str) -> str:
    """Return a JSON string in printable ASCII."""
    if len(text) > MAX_REJECTION_TEXT:
        text = f"{text[:MAX_REJECTION_TEXT]}..."
    return json.dumps(text)
