"""Large manifests: duration of the POST, latency of other requests meanwhile, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.bench import Bench
from bench.cartd import cartd
from bench.carts import post, stage
from bench.contest import PEAK, Contest, Sample
from bench.data import MIB
from bench.figures import Row, Target, percentile
from bench.prober import RATE, probing
from bench.processes import sync_disks

STAGING_SECONDS = 20.0
"""Seconds of staging that are measured after the POST."""


def manifests(bench: Bench) -> Iterator[Row]:
    """100,000 and 1,000,000 entries: maximum seconds, and MiB."""
    full = {100_000: (3.0, 250.0), 1_000_000: (30.0, 1024.0)}
    quick = {1_000: (3.0, 250.0), 10_000: (30.0, 1024.0)}
    for count, (seconds, memory) in bench.sized(full, quick).items():
        yield from _of_entries(bench, count, seconds, memory)


def _of_entries(bench: Bench, count: int, seconds: float, memory: float) -> list[Row]:
    archive = bench.nginx()
    manifest = bench.data.small(count).manifest
    watch = bench.sized(STAGING_SECONDS, 2.0)

    def run() -> Sample:
        with cartd(bench.fresh("cartd"), archive.url) as server:
            stage(server, "other", bench.data.warm())
            server.forget_peak()
            sync_disks()
            before = server.cpu()
            with probing(server, "other") as posting:
                began = time.monotonic()
                post(server, "great", manifest)
                taken = time.monotonic() - began
            cpu = server.cpu() - before
            with probing(server, "other") as staging:
                time.sleep(watch)
            return {
                "s to the 201": taken,
                "ms, HEAD p99 until the 201": percentile(posting.milliseconds, 0.99),
                "ms, HEAD p99 while it is staged": percentile(staging.milliseconds, 0.99),
                PEAK: server.peak() / MIB,
                "cpu": cpu,
            }

    contest = Contest(bench.rounds)
    contest.side("cartd", run)
    contest.run()
    work = f"manifest, {count:,} entries, {len(manifest) // MIB:,} MiB"
    others = f"{work}, another cart asked for {RATE:.0f} times a second"
    return [
        contest.row(work, "s to the 201", target=Target(seconds)),
        contest.row(others, "ms, HEAD p99 until the 201", target=Target(100.0), cpu=""),
        contest.row(
            f"{others}, for {watch:g} s",
            "ms, HEAD p99 while it is staged",
            target=Target(100.0),
            cpu="",
        ),
        contest.row(work, PEAK, target=Target(memory), cpu=""),
    ]
