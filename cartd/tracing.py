"""Request ids, W3C trace context, and what log lines name: the request, the cart and the user.

A request id names one request in the response, in the logs of proxies and in those of cartd.  A
trace id names an operation over several services: cartd takes it from the header ``traceparent``
(https://www.w3.org/TR/trace-context/) and passes it on to the archive.

``current`` holds the context of the request or the cart that runs.  Coroutines keep the context in
which they were created; a plain callback of a Deferred, a delayed call and a thread do not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from cartd.model import Cart

P = ParamSpec("P")
T = TypeVar("T")

BATCH = 256
"""Random ids per system call."""
MAX_TRACESTATE = 512
"""Characters of ``tracestate`` that are passed on; a longer one is dropped."""

_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?"
)
_TRACESTATE = re.compile(rb"[!-~](?:[ -~]*[!-~])?")
_SAMPLED = 0x01
_REQUEST_ID = re.compile(rb"[0-9A-Za-z._:=+/-]{8,128}")


class RandomIds:
    """Returns random ids in hex, which are read from the system in batches."""

    def __init__(self, size: int) -> None:
        """``size``: bytes of each id."""
        self._size = size
        self._ids: list[str] = []

    def new(self) -> str:
        if not self._ids:
            digits = os.urandom(self._size * BATCH).hex()
            step = 2 * self._size
            self._ids = [digits[at : at + step] for at in range(0, len(digits), step)]
        return self._ids.pop()


_request_ids, _trace_ids, _parent_ids = RandomIds(10), RandomIds(16), RandomIds(8)


def parse_request_id(values: Sequence[bytes]) -> str | None:
    """Return the request id in the values of ``X-Request-ID``; None unless one is valid.

    Valid are 8 to 128 letters, digits and ``. _ : = + / -``, which need no escaping anywhere.
    """
    if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]):
        return values[0].decode("ascii")
    return None


class RawHeaders(Protocol):
    """Headers of a request, such as :class:`twisted.web.http_headers.Headers`."""

    def getRawHeaders(self, name: bytes) -> Sequence[bytes] | None: ...


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace, without the id of the parent, which differs for each request."""

    trace_id: str
    flags: int = 0
    state: bytes = b""
    """The value of ``tracestate``; empty if there is none."""

    @classmethod
    def of(cls, headers: RawHeaders) -> Trace:
        """Return the trace of a request; a new one if it has none, or an invalid one."""
        parents = headers.getRawHeaders(b"traceparent") or ()
        found = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
        if found is None or (found[3] is not None and parents[0][:2] == b"00"):
            return cls.new()
        state = b",".join(headers.getRawHeaders(b"tracestate") or ())
        if len(state) > MAX_TRACESTATE or not _TRACESTATE.fullmatch(state):
            state = b""
        return cls(found[1].decode("ascii"), int(found[2], 16) & _SAMPLED, state)

    @classmethod
    def new(cls) -> Trace:
        """Return a new trace, which is not marked as sampled."""
        return cls(_trace_ids.new())

    def fields(self) -> bytes:
        """Return the lines of the head of a request to another service, with a new parent id."""
        parent = f"traceparent: 00-{self.trace_id}-{_parent_ids.new()}-{self.flags:02x}\r\n"
        lines = parent.encode("ascii")
        return lines + b"tracestate: %b\r\n" % self.state if self.state else lines


class LogContext:
    """What belongs to a request, or to the staging of a cart, and is named in its log lines."""

    __slots__ = ("_headers", "_trace", "cart", "request_id", "user")

    def __init__(self, headers: RawHeaders | None = None, *, request_id: str | None = None) -> None:
        """``headers`` of the request; they are read when the trace is first needed."""
        self.request_id = _request_ids.new() if request_id is None else request_id
        self.user: str | None = None
        self.cart: Cart | None = None
        self._headers = headers
        self._trace: Trace | None = None

    @property
    def trace(self) -> Trace:
        if self._trace is None:
            self._trace = Trace.new() if self._headers is None else Trace.of(self._headers)
            self._headers = None
        return self._trace

    def for_cart(self, cart: Cart) -> LogContext:
        """Return the context of staging a cart: with the request and the trace of this one."""
        context = LogContext(request_id=self.request_id)
        context._trace = self.trace
        context.cart = cart
        return context


current: ContextVar[LogContext | None] = ContextVar("cartd_log_context", default=None)


def trace_fields() -> bytes:
    """Return :meth:`Trace.fields` of the request or the cart that runs; nothing without one."""
    context = current.get()
    return b"" if context is None else context.trace.fields()


class CartNumber(int):
    """A cart of which only the id is known, in log lines."""

    def __str__(self) -> str:
        return f"Cart {int(self)}"

    def __format__(self, spec: str) -> str:
        return str(self)


def log_fields(cart: object = None) -> dict[str, Any]:
    """Return the fields of a line of JSON that name the cart, the user, the request and its trace.

    ``cart``: the one that the line is about, a :class:`Cart` or its id, if it is not that of the
    context.  The user is who sent the request or, apart from requests, the owner of the cart.
    """
    context = current.get()
    if cart is None and context is not None:
        cart = context.cart
    found: dict[str, Any] = {}
    if isinstance(cart, Cart):
        found = {"cart": cart.id, "uid": cart.display_uid, "user": cart.owner}
    elif isinstance(cart, int):
        found = {"cart": int(cart)}
    if context is not None:
        if context.cart is None and context.user is not None:
            found["user"] = context.user
        found["request_id"] = context.request_id
        found["trace_id"] = context.trace.trace_id
    return {name: value for name, value in found.items() if value}


def current_cart(cart_id: int) -> Cart | CartNumber:
    """Return the cart for log lines: with uid and owner, if it is that of the context."""
    context = current.get()
    cart = None if context is None else context.cart
    return CartNumber(cart_id) if cart is None or cart.id != cart_id else cart


def without_context(call: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> T:
    """Call something whose log lines must not name the current request or cart.

    For what one caller starts and others use as well.
    """
    reset = current.set(None)
    try:
        return call(*arguments, **more)
    finally:
        current.reset(reset)


def staging_context(cart: Cart) -> LogContext:
    """Return the context of staging a cart: that of the request that posted it, or a new one."""
    return (current.get() or LogContext(request_id="")).for_cart(cart)
