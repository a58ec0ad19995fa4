"""The client's event streams: the same events however they are cut, as by the rules of HTML.

The first byte of an input is the size of the parts.
"""

from __future__ import annotations

import re

from cartd_client.errors import InvalidResponse
from cartd_client.model import Status
from cartd_client.transport import parse_json
from cartd_client.watch import Event, EventParser

WORDS = (
    b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"data", b"event: end\n", b"id: 3-7\n", b"id:\n",
    b":", b" ", b"retry: 3000\n", b'data: {"uid": "u", "status": "ready"}\n\n',
    b'"files": {"total": -1}', b"\0", b"\xff", b"\xef\xbb\xbf", b"9" * 400,
)  # fmt: skip


def check(data: bytes) -> None:
    size, text = max(1, data[0]) if data else 1, data[1:]
    parser = EventParser()
    found = [
        event
        for start in range(0, len(text), size)
        for event in parser.feed(text[start : start + size])
    ]
    assert found == expected(text), text
    for event in found:
        try:
            status = Status.from_document(parse_json(event.data, "event"))
        except InvalidResponse:
            continue
        assert isinstance(status.uid, str)
        assert status.files.total is None or status.files.total >= 0


def expected(text: bytes) -> list[Event]:
    """Parse the whole at once; a part without the empty line at its end is no event."""
    events: list[Event] = []
    name, data, last_id = b"", list[bytes](), None
    *lines, _ = re.split(rb"\r\n|\r|\n", text)
    for line in lines:
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                shown = name.decode(errors="replace") or "message"
                events.append(Event(shown, b"\n".join(data), last_id))
            name, data = b"", []
        elif key == b"data":
            data.append(value)
        elif key == b"event":
            name = value
        elif key == b"id" and re.fullmatch(rb"[!-~]{0,200}", value):
            last_id = value.decode() or None
    return events
