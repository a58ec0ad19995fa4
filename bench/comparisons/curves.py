"""Speed and memory over the number of files in a cart, for the plots in the documentation.

Carts of up to 10,000 files are measured in each round, larger ones once: they take long enough for
variations to average out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from statistics import median

from bench import processes
from bench.bench import Bench
from bench.cartd import cartd
from bench.carts import stage
from bench.contest import Contest, Sample
from bench.data import MIB
from bench.figures import Row
from bench.peers import tool

OFTEN = 10_000
SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
STAGED = "files/s staged"
SENT = "files/s sent"
STAGING_PEAK = "MiB at peak, staging"
SENDING_PEAK = "MiB at peak, sending"
MEASURES = (STAGED, SENT, STAGING_PEAK, SENDING_PEAK)


def curves(bench: Bench) -> Iterator[Row]:
    """Stage and download carts of growing sizes; the points are kept for ``bench/draw.py``."""
    archive_url = bench.nginx().url
    points: list[dict[str, float]] = []
    for count in bench.sized(SIZES, SIZES[:4]):
        contest = Contest(bench.rounds if count <= OFTEN else 1)
        contest.side("cartd", partial(_sample, bench, archive_url, count))
        contest.run()
        mine = [contest.row(f"4 KiB × {count:,}", measure, cpu="") for measure in MEASURES]
        yield from mine
        points.append(
            {"files": count}
            | {row.measure: median(row.ours.values) for row in mine if row.ours is not None}
        )
        (bench.place / "curves.json").write_text(json.dumps(points, indent=1))


def _sample(bench: Bench, archive_url: str, count: int) -> Sample:
    with cartd(bench.fresh("cartd"), archive_url) as server:
        stage(server, "warm", bench.data.warm())
        server.forget_peak()
        processes.sync_disks()
        staging = stage(server, "cart", bench.data.small(count))
        staging_peak = server.peak()
        server.forget_peak()
        url = f"{server.url}cart?filename=cart.tar"
        sending = processes.finished([tool("curl"), "-sSf", "-o", "/dev/null", url]).seconds
        return {
            STAGED: count / staging,
            SENT: count / sending,
            STAGING_PEAK: staging_peak / MIB,
            SENDING_PEAK: server.peak() / MIB,
        }
