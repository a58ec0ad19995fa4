"""Staging, from the POST to ready: against Pacifica Cartd, and against aria2c (same URLs)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench import processes
from bench.bench import Bench
from bench.cartd import cartd
from bench.carts import stage
from bench.contest import PEAK, Contest, Sample, Side, with_peak
from bench.data import MIB, CartData
from bench.figures import Row, Target
from bench.pacifica import pacifica_cartd
from bench.peers import PeerUnavailable, tool
from bench.server import Server

PACIFICA = "pacifica-cartd 0.7.0, 4 workers"
ARIA2_BIG = "aria2c -j4, then sha1sum -c"
ARIA2_SMALL = "aria2c -j16"
NGINX = "nginx archive"
REAL = "real archive"
_FASTER = Target(1.0, ratio=True)
_HALF = Target(0.5, at_least=True, ratio=True, aim=1.0)
_THIRTY = Target(30.0, at_least=True, ratio=True)
_FLAT = Target(0.9, at_least=True, ratio=True)


def big(bench: Bench) -> Iterator[Row]:
    """Four big files with sha1, from the nginx archive and from the real one."""
    data = bench.data.big(bench.sized(256 * MIB, 16 * MIB))
    work = f"staging 4 × {data.total_bytes // MIB // 4} MiB, sha1"
    compare = partial(_big_from, bench, data)
    yield from _from(bench.nginx, f"{work}, {NGINX}", compare)
    yield from _from(bench.pacifica_archive, f"{work}, {REAL}", compare)


def small(bench: Bench) -> Iterator[Row]:
    """Files of 4 KiB, all of them different, in carts of four sizes."""
    with_pacifica = bench.sized(1_000, 100)
    for count in bench.sized((100, 1_000, 10_000, 100_000), (100, 300)):
        data = bench.data.small(count)
        compare = partial(
            _small_from, bench, data, target=_HALF, with_pacifica=count == with_pacifica
        )
        yield from _from(bench.nginx, f"staging {count:,} × 4 KiB, {NGINX}", compare)
    for count in bench.sized((1_000, 10_000), (300,)):
        compare = partial(_small_from, bench, bench.data.small(count))
        yield from _from(bench.pacifica_archive, f"staging {count:,} × 4 KiB, {REAL}", compare)


def flat(bench: Bench) -> list[Row]:
    """Whether a file of a large cart costs as much as a file of a small one."""
    few, many = bench.sized((1_000, 100_000), (100, 1_000))
    archive = bench.nginx()
    contest = Contest(bench.rounds)
    names = {count: f"cartd, {count:,} files" for count in (few, many)}
    for count, name in names.items():
        contest.side(name, staged_by_cartd(bench, archive, bench.data.small(count)))
    contest.run()
    work = f"staging {many:,} × 4 KiB, {NGINX}"
    return [contest.row(work, "files/s", names[few], _FLAT, side=names[many])]


def staged_by_cartd(bench: Bench, archive: Server, data: CartData) -> Side:
    """Stage the cart with a warmed-up cartd that has an empty volume."""

    def run() -> Sample:
        with cartd(bench.fresh("cartd"), archive.url) as server:
            stage(server, "warm", bench.data.warm())
            return with_peak(server, lambda: _staged(server, data))()

    return run


def _from(
    start: Callable[[], Server], work: str, compare: Callable[[Server, str], list[Row]]
) -> list[Row]:
    """Return the rows of ``compare``, or one that says that the archive was not available."""
    try:
        archive = start()
    except PeerUnavailable as error:
        return [Row(work, "s", None, absent=str(error))]
    return compare(archive, work)


def _big_from(bench: Bench, data: CartData, archive: Server, work: str) -> list[Row]:
    contest = Contest(bench.rounds)
    contest.side("cartd", staged_by_cartd(bench, archive, data))
    contest.peer(PACIFICA, partial(_staged_by_pacifica, bench, archive, data))
    contest.peer(ARIA2_BIG, partial(_fetched_by_aria2c, bench, archive, data, 4, checked=True))
    contest.run()
    return [
        contest.row(work, "s", PACIFICA, _FASTER),
        contest.row(work, "s", ARIA2_BIG, _FASTER),
        contest.row(work, PEAK, cpu=""),
    ]


def _small_from(
    bench: Bench,
    data: CartData,
    archive: Server,
    work: str,
    *,
    target: Target | None = None,
    with_pacifica: bool = False,
) -> list[Row]:
    contest = Contest(bench.rounds)
    contest.side("cartd", staged_by_cartd(bench, archive, data))
    contest.peer(ARIA2_SMALL, partial(_fetched_by_aria2c, bench, archive, data, 16))
    if with_pacifica:
        contest.peer(PACIFICA, partial(_staged_by_pacifica, bench, archive, data))
    contest.run()
    rows = [contest.row(work, "files/s", ARIA2_SMALL, target)]
    if with_pacifica:
        rows.append(contest.row(work, "files/s", PACIFICA, _THIRTY))
    return [*rows, contest.row(work, PEAK, cpu="")]


def _staged(server: Server, data: CartData) -> Sample:
    processes.sync_disks()
    before = server.cpu()
    seconds = stage(server, "cart", data)
    return {
        "s": seconds,
        "files/s": len(data.entries) / seconds,
        "cpu": server.cpu() - before,
    }


def _staged_by_pacifica(bench: Bench, archive: Server, data: CartData) -> Side:
    commands = bench.peers()
    tool("redis-server")

    def run() -> Sample:
        with pacifica_cartd(bench.fresh("pacifica"), commands, archive.url) as server:
            stage(server, "warm", bench.data.warm())
            return _staged(server, data)

    return run


def _fetched_by_aria2c(
    bench: Bench, archive: Server, data: CartData, at_once: int, *, checked: bool = False
) -> Side:
    """Fetch into the tree that the manifest describes, with aria2c at its fastest.

    It preallocates no space, and writes no control file beside each file.
    """
    aria2c = tool("aria2c")
    entries = data.entries

    def run() -> Sample:
        directory = bench.fresh("aria2c")
        directory.mkdir()
        (directory / "urls").write_text(
            "".join(f"{archive.url}{entry.id}\n out={entry.path}\n" for entry in entries)
        )
        (directory / "sums").write_text(
            "".join(f"{entry.sha1}  {entry.path}\n" for entry in entries)
        )
        command = f"{aria2c} -q -j{at_once} --file-allocation=none --auto-save-interval=0 -i urls"
        if checked:
            command += " && sha1sum --quiet -c sums"
        processes.sync_disks()
        done = processes.finished(["/bin/sh", "-c", command], directory=directory)
        return {"s": done.seconds, "files/s": len(entries) / done.seconds, "cpu": done.cpu}

    return run
