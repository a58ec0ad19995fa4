"""The private names of Twisted that the server uses, which any release of it may change."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import StringTransport
from twisted.internet.unix import Port
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

import cartd.http
from cartd.http import twisted_web

ATTRIBUTES = {
    "_buffer": b"Partial",
    "_command": b"GET",
    "_path": b"/cart",
    "_version": b"HTTP/1.1",
    "_receivedHeaderCount": 1,
    "_receivedHeaderSize": len(b"GET /cart HTTP/1.1" + b"Host: localhost" + b"Next: 1"),
}
METHODS = {
    HTTPChannel: ["_maybeChooseTransferDecoder", "_respondToBadRequestAndDisconnect"],
    Request: ["_handleStar"],
}
NAMES = {*ATTRIBUTES, "_networkProducer", *(name for names in METHODS.values() for name in names)}


@pytest.fixture
def channel() -> HTTPChannel:
    """A channel of Twisted itself, within a head."""
    channel: Any = HTTPChannel()
    channel.site, channel.requestFactory = Site(Resource()), Request
    channel.makeConnection(StringTransport())
    channel.dataReceived(b"GET /cart HTTP/1.1\r\nHost: localhost\r\nNext: 1\r\nPartial")
    made: HTTPChannel = channel
    return made


@pytest.mark.parametrize(("name", "value"), ATTRIBUTES.items(), ids=ATTRIBUTES)
def test_twisted_has_attribute(channel: HTTPChannel, name: str, value: object) -> None:
    assert getattr(channel, name) == value


def test_twisted_registers_the_channel_as_producer(channel: HTTPChannel) -> None:
    transport = channel.transport
    assert isinstance(transport, StringTransport) and transport.producer is channel
    channel._networkProducer.unregisterProducer()
    assert transport.producer is None


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, names in METHODS.items() for name in names]
)
def test_twisted_calls_method(base: type, name: str) -> None:
    assert inspect.isfunction(vars(base)[name])
    assert f"self.{name}(" in inspect.getsource(base)


def test_list_is_complete() -> None:
    """No module but one uses a private name of a base class, and that one uses these."""
    private = {
        name
        for base in (HTTPChannel, Request, Site, Resource, Port)
        for parent in base.__mro__[:-1]
        for name in re.findall(r"\bself\.(_[a-z]\w*)|\bdef (_[a-z]\w*)", inspect.getsource(parent))
        for name in name
        if name
    }
    used = {
        path.name: found
        for path in Path(cartd.http.__path__[0]).glob("*.py")
        if (found := private & set(re.findall(r"\b_[a-z]\w*", path.read_text("utf-8"))))
    }
    assert used == {Path(twisted_web.__file__).name: NAMES}
