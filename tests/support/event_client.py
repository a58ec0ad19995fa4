"""A client of event streams that parses them as the HTML standard says, comments included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from tests.support.running_cartd import DEADLINE


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    name: str
    id: str
    """The last id that the stream has set, empty before the first."""
    json: Any


class Parser:
    """Parses a stream line by line."""

    def __init__(self) -> None:
        self.retry = ""
        self.comments: list[str] = []
        self._id = ""
        self._fields: dict[str, str] = {}

    def line(self, line: str) -> Event | None:
        """Take a line without its end; return the event that it completes."""
        if not line:
            fields, self._fields = self._fields, {}
            return Event(fields["event"], self._id, json.loads(fields["data"])) if fields else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments.append(value)
        elif name == "retry":
            self.retry = value
        elif name == "id":
            self._id = value
        else:
            assert name in ("event", "data") and name not in self._fields, line
            self._fields[name] = value
        return None


def parsed(data: bytes) -> list[Event]:
    """Return the events of a whole stream."""
    parser = Parser()
    found = [parser.line(line) for line in data.decode().split("\n")]
    return [event for event in found if event is not None]


class EventClient:
    """One open stream."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.parser = Parser()
        self._response = response

    def next(self) -> Event | None:
        """Wait for the next event; None at the end of the stream, which must be complete."""
        while line := self._response.readline():
            if (event := self.parser.line(line.decode().removesuffix("\n"))) is not None:
                return event
        return None

    def next_comment(self) -> str | None:
        """Wait for the next comment, and skip events; None at the end of the stream."""
        known = len(self.parser.comments)
        while line := self._response.readline():
            self.parser.line(line.decode().removesuffix("\n"))
            if len(self.parser.comments) > known:
                return self.parser.comments[-1]
        return None

    def events(self) -> list[Event]:
        """Wait for the end; return the events up to it."""
        return list(iter(self.next, None))

    def rest(self) -> bytes:
        """Return the body of a response that is no stream."""
        return self._response.read()


@contextmanager
def following(port: int, uid: str, **headers: str) -> Iterator[EventClient]:
    """Open a stream, for as long as the block runs."""
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        spelt = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", f"/-/carts/{uid}/events", None, spelt)
        yield EventClient(connection.getresponse())
    finally:
        connection.close()
