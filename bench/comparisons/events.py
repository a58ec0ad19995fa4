"""Event streams of carts that change every second: memory, and what other clients notice."""

from __future__ import annotations

import time

from bench.bench import Bench
from bench.cartd import tape_archive
from bench.carts import post, stage, staged
from bench.contest import Contest, Sample
from bench.data import MIB, CartData
from bench.event_readers import reading_events, seconds_to_an_event
from bench.figures import Row, Target, percentile
from bench.prober import RATE, probing
from bench.processes import wait_for

CARTS = 10
TAPE_RATE = 50
"""Files a second from tape, of all carts: each changes a few times a second."""
DELETED = 5
"""Carts that are deleted in each run, one after the other, to time the event."""
_MORE = Target(100.0)
_P99 = Target(1.5, ratio=True)
_EVENT = Target(1.5)


def events(bench: Bench) -> list[Row]:
    """The same carts are staged slowly from tape, with the streams and without."""
    streams, each, seconds = bench.sized((1000, 2000, 10.0), (100, 200, 3.0))
    directory = bench.fresh("tape")
    archive = bench.started(tape_archive(directory, bench.data.archive, rate=TAPE_RATE))
    server = bench.cartd("cartd", archive)
    stage(server, "ready", bench.data.warm())
    entries = bench.data.small(CARTS * each).entries
    uids = [f"slow{number}" for number in range(CARTS)]
    for number, uid in enumerate(uids):
        part = entries[number * each : (number + 1) * each]
        post(server, uid, CartData(part, 0).manifest)
    waiting = CartData(entries[-1:], 0).manifest
    names = iter(f"gone{number}" for number in range(1_000_000))

    def heads() -> Sample:
        cpu, late = server.cpu(), []
        with probing(server, "ready") as prober:
            end = time.monotonic() + seconds
            for _ in range(DELETED):
                uid = next(names)
                post(server, uid, waiting)
                late.append(seconds_to_an_event(server, uid))
            time.sleep(max(0.0, end - time.monotonic()))
        return {
            "ms, p50": percentile(prober.milliseconds, 0.5),
            "ms, p99": percentile(prober.milliseconds, 0.99),
            "s from a change to its event, at most": max(late),
            "cpu": server.cpu() - cpu,
        }

    wait_for(lambda: any(staged(server, uid) for uid in uids), "the first file from tape")
    heads()  # what the first requests allocate is not the streams'
    before = server.resident()

    def streaming() -> Sample:
        server.forget_peak()
        with reading_events(server, uids, streams - 1) as read:
            began = time.monotonic()
            sample = heads()
            took = time.monotonic() - began
        return {
            **sample,
            "MiB more, at peak": (server.peak() - before) / MIB,
            "streams open": float(read.open + 1),  # and the one that is timed
            "events/s": read.events / took,
        }

    alone = "without streams"
    contest = Contest(bench.rounds)
    contest.side(alone, heads)
    contest.side("cartd", streaming)
    contest.run()
    work = f"{streams:,} event streams of {CARTS} carts that are staged from tape"
    head = f"HEAD, {RATE:.0f} a second, beside {work}"
    return [
        contest.row(work, "MiB more, at peak", target=_MORE),
        contest.row(work, "streams open", cpu=""),
        contest.row(work, "events/s", cpu=""),
        contest.row(work, "s from a change to its event, at most", target=_EVENT, cpu=""),
        contest.row(head, "ms, p50", alone),
        contest.row(head, "ms, p99", alone, _P99, cpu=""),
    ]
