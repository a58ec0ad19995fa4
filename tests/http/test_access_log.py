"""The access log: one line per request, whatever became of its response."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Thread
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.web.http_headers import Headers

from cartd.auth import TokenFile
from cartd.http.access_log import MAX_FIELD, AccessLog
from cartd.http.server import SENDER_TIMEOUT
from cartd.tracing import LogContext
from tests.support.cart_site import CartSite, cart_site
from tests.support.channel_client import GET, Body, Connected
from tests.support.running_cartd import wait_for
from tests.support.wire import wire

FORM = re.compile(
    r"(?P<address>\S+) - (?P<user>\S+) \[(?P<date>[^\]]+)\] \"(?P<request>[^\"]*)\""
    r" (?P<status>\d{3}) (?P<sent>\d+|-) \"(?P<referer>[^\"]*)\" \"(?P<agent>[^\"]*)\""
    r" (?P<length>\d+|-) (?P<seconds>\d+\.\d{3}) (?P<request_id>\S+)"
)
PREFIX = r"\S+ \[cartd\.access_log#info\] "
LARGE = Random(7).randbytes(24 * 2**20)
"""More than all buffers between the service and a stalled client hold."""


def lines(site: CartSite, text: str) -> list[dict[str, str]]:
    """Return the lines whose request contains ``text``."""
    found = []
    for line in site.cartd.log.splitlines():
        if "access_log" in line and text in line:
            matched = re.fullmatch(PREFIX + FORM.pattern, line)
            assert matched, line
            found.append(matched.groupdict())
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(
        tmp_path_factory.mktemp("site"), ini="[server]\nheader_timeout = 1\n"
    ) as running:
        running.stage("small", {"a": b"data"})
        running.stage("large", {"a": LARGE})
        yield running


def test_complete_response_is_logged(site: CartSite) -> None:
    answer = site.cartd.get("/small?whole", referer="https://a.example/", user_agent='a "b"\\c')
    wait_for(lambda: lines(site, "/small?whole"))
    [line] = lines(site, "/small?whole")
    assert line["request"] == "GET /small?whole HTTP/1.1"
    assert (line["address"], line["user"], line["status"]) == ("127.0.0.1", "-", "200")
    assert line["sent"] == line["length"] == str(len(answer.body))
    assert (line["referer"], line["agent"]) == ("https://a.example/", r"a \x22b\x22\x5cc")
    logged = datetime.strptime(line["date"], "%d/%b/%Y:%H:%M:%S %z")
    assert abs(datetime.now(UTC) - logged) < timedelta(hours=1)


def test_response_without_body_is_logged(site: CartSite) -> None:
    site.cartd.request("HEAD", "/small?logged")
    wait_for(lambda: lines(site, "/small?logged"))
    [line] = lines(site, "/small?logged")
    assert (line["status"], line["sent"], line["length"]) == ("204", "-", "-")


def test_aborted_download_is_logged(site: CartSite) -> None:
    with wire(site.port, receive_buffer=4096) as connection:
        connection.get("/large?broken")
        head = connection.head()
        connection.read(100_000)
        reset = struct.pack("ii", 1, 0)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    wait_for(lambda: lines(site, "/large?broken"))
    [line] = lines(site, "/large?broken")
    assert (line["status"], line["address"]) == ("200", "127.0.0.1")
    assert line["length"] == head.headers["content-length"]
    assert 100_000 <= int(line["sent"]) < int(line["length"])


def test_disconnect_during_request_body_is_logged_as_499(site: CartSite) -> None:
    with wire(site.port) as connection:
        head = b"POST /left?early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        connection.send(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.head().status == 100
    wait_for(lambda: lines(site, "/left?early"))
    [line] = lines(site, "/left?early")
    assert (line["status"], line["sent"], line["length"]) == ("499", "-", "-")


REFUSED = {
    "PUT /refused?method": 405,
    "POST /.refused?uid": 400,
    "POST /refused?coding": 415,
}


@pytest.mark.parametrize(("start", "status"), REFUSED.items(), ids=REFUSED)
def test_request_rejected_by_its_head_is_logged_once(
    site: CartSite, start: str, status: int
) -> None:
    with wire(site.port) as connection:
        fields = "Host: localhost\r\nContent-Length: 9\r\nContent-Encoding: br\r\nUser-Agent: me"
        connection.send(f"{start} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        answer = connection.answer()
        connection.rest()
    wait_for(lambda: lines(site, start.partition(" ")[2]))
    [line] = lines(site, start.partition(" ")[2])
    assert (line["request"], line["status"]) == (f"{start} HTTP/1.1", str(answer.status))
    assert answer.status == status and line["agent"] == "me"
    assert line["sent"] == line["length"] == str(len(answer.body))


def test_malformed_request_is_logged_silent_connection_is_not(site: CartSite) -> None:
    before = len(lines(site, ""))
    with wire(site.port) as connection:
        connection.send(b"GARBAGE\r\n\r\n")
        assert connection.answer().status == 400
    with wire(site.port) as connection:
        connection.send(b"GET /late?head HTTP/1.1\r\nHost: localhost\r\n")
        assert connection.answer().status == 408
    with wire(site.port) as connection:
        assert connection.rest() == b""  # the service has closed it
    wait_for(lambda: len(lines(site, "")) >= before + 2)
    new = lines(site, "")[before:]
    assert [(line["request"], line["status"]) for line in new] == [
        ("-", "400"),
        ("GET /late?head HTTP/1.1", "408"),
    ]


def test_under_load_each_request_has_a_line_with_date_and_prefix(site: CartSite) -> None:
    def ask() -> None:
        with wire(site.port) as connection:
            for _ in range(30):
                connection.send(b"HEAD /small?load HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.answer(to_head=True)

    threads = [Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: len(lines(site, "/small?load")) == 300)
    assert not [line for line in site.cartd.log.splitlines() if line.startswith("\t")]


def test_authenticated_user_is_logged(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("auth_site")
    file = TokenFile(directory / "tokens")
    bearer = f"Bearer {file.add('alice', admin=False)}"
    with cart_site(directory, ini=f"[auth]\ntoken_file = {file.path}\n") as auth_site:
        for given in ({"authorization": bearer}, {}, {"authorization": "Bearer alice.wrong"}):
            auth_site.cartd.get("/her?cart", **given)
            auth_site.cartd.request("POST", "/her?cart", b"{", **given)
        wait_for(lambda: len(lines(auth_site, "/her?cart")) == 6)
        found = [(line["user"], line["status"]) for line in lines(auth_site, "/her?cart")]
        assert found == [("alice", "404"), ("alice", "400"), *[("-", "401")] * 4]


def test_duration_runs_from_request_line_to_response_end() -> None:
    client = Connected()
    with capturedLogs() as entries:
        client.send(GET[:20])
        client.clock.advance(1)
        client.send(GET[20:])
        client.clock.advance(2.5)
        client.download.end()
        client.channel.connectionLost()
    [line] = [formatEvent(entry) for entry in entries if "line" in entry]
    matched = FORM.fullmatch(line)
    assert matched and (matched["seconds"], matched["sent"], matched["length"]) == (
        "3.500",
        "4",
        "4",
    )


class Hanging(Body):
    """A producer whose thread hangs after some bytes."""

    bytes_sent = 3

    def wait_idle(self) -> Deferred[None]:
        return Deferred()


def test_log_line_waits_for_a_hanging_thread_with_timeout() -> None:
    client = Connected()
    client.ask()
    request: Any = client.download.request
    request.unregisterProducer()
    request.registerProducer(Hanging(), True)
    with capturedLogs() as entries:
        client.channel.connectionLost()
        client.clock.advance(SENDER_TIMEOUT - 0.1)
        assert not entries
        client.clock.advance(0.1)
    [line] = [formatEvent(entry) for entry in entries]
    matched = FORM.fullmatch(line)
    assert matched and (matched["sent"], matched["length"]) == ("3", "4")
    client.site.close_log()
    assert not client.clock.getDelayedCalls()


def test_disconnect_after_close_log_is_logged_at_once() -> None:
    client = Connected()
    client.ask()
    client.download.request.unregisterProducer()
    client.download.request.registerProducer(Hanging(), True)
    client.site.close_log()
    with capturedLogs() as entries:
        client.channel.connectionLost()
    assert [FORM.fullmatch(formatEvent(entry)) is not None for entry in entries] == [True]


def test_log_line_is_short_and_printable() -> None:
    sent = bytes(range(256)) * 100
    with capturedLogs() as entries:
        AccessLog(Clock()).log_request(
            IPv4Address("TCP", "192.0.2.7", 1), "alice", sent, 200, sent=1, length=b"2",
            headers=Headers({b"Referer": [sent[14:]], b"User-Agent": [sent[14:]]}), seconds=0.5,
            context=LogContext(),
        )  # fmt: skip
    [line] = map(formatEvent, entries)
    assert line.isascii() and line.isprintable()
    assert len(line) < 3 * 4 * MAX_FIELD + 200 < 48 * 1024
    matched = FORM.fullmatch(line)
    assert matched and (matched["user"], matched["length"], matched["seconds"]) == (
        "alice",
        "2",
        "0.500",
    )
