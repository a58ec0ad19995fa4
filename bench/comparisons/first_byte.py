"""Time to the first byte of a download: at the start of the tar and at its end."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from bench.bench import Bench
from bench.cartd import cartd
from bench.carts import stage
from bench.contest import Contest, Sample, Side
from bench.figures import Row, Target
from bench.processes import MeasurementFailed
from bench.server import Server

_AS_QUICK = Target(1.25, ratio=True)
"""Two times of some milliseconds always differ."""


def first_byte(bench: Bench) -> Iterator[Row]:
    """Of a cart that was not requested since cartd's start, and then again."""
    for count, limit in bench.sized(
        {10_000: 50.0, 100_000: 300.0}, {500: 50.0, 2_000: 300.0}
    ).items():
        yield from _of_a_cart(bench, count, Target(limit))


def _of_a_cart(bench: Bench, count: int, target: Target) -> list[Row]:
    archive = bench.nginx()
    directory = bench.fresh("cartd")
    with cartd(directory, archive.url) as server:
        stage(server, "warm", bench.data.warm())
        stage(server, "cart", bench.data.small(count))

    def asked(headers: str) -> Side:
        def run() -> Sample:
            with cartd(directory, archive.url) as server:
                wait_for_first_byte(server, "warm", headers)
                before = server.cpu()
                first = wait_for_first_byte(server, "cart", headers)
                cpu = server.cpu() - before
                again = wait_for_first_byte(server, "cart", headers)
            return {"ms": first * 1000, "ms, asked again": again * 1000, "cpu": cpu}

        return run

    contest = Contest(bench.rounds)
    contest.side("the start", asked(""))
    contest.side("the end", asked("Range: bytes=-1024\r\n"))
    contest.run()
    work = f"first byte, {count:,} files"
    return [
        contest.row(f"{work}, the start", "ms", target=target, side="the start"),
        contest.row(f"{work}, the last KiB", "ms", target=target, side="the end"),
        contest.row(f"{work}, the last KiB", "ms", "the start", _AS_QUICK, side="the end"),
        contest.row(f"{work}, the start", "ms, asked again", side="the start", cpu=""),
        contest.row(f"{work}, the last KiB", "ms, asked again", side="the end", cpu=""),
    ]


def wait_for_first_byte(server: Server, uid: str, headers: str = "") -> float:
    """Return the seconds from connecting to the first byte of the body; the rest is not read."""
    request = f"GET /{uid}?filename=a.tar HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while not answer.partition(b"\r\n\r\n")[2]:
            received = connection.recv(65536)
            if not received:
                raise MeasurementFailed(
                    f"the download of {uid} ended before its first byte: {answer!r}"
                )
            answer += received
        waited = time.monotonic() - began
    if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")):
        raise MeasurementFailed(f"the download of {uid} was answered with {answer[:200]!r}")
    return waited
