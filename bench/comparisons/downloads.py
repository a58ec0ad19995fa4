"""Downloads of a ready cart by curl: large files against nginx, small ones against tar."""

from __future__ import annotations

import hashlib
import tarfile
from functools import partial
from pathlib import Path
from typing import IO

from bench import processes
from bench.bench import Bench
from bench.carts import stage
from bench.contest import PEAK, Contest, Sample, Side, with_peak
from bench.data import MIB, CartData
from bench.figures import Row, Target
from bench.pacifica import pacifica_cartd
from bench.peers import tool
from bench.processes import MeasurementFailed
from bench.server import Server

PACIFICA = "pacifica-cartd 0.7.0"
_FORMAT = "%{size_download} %{time_total}"


def big(bench: Bench) -> list[Row]:
    """The same tar, made on the fly by cartd and served as a static file by nginx."""
    data = bench.data.big(bench.sized(256 * MIB, 16 * MIB))
    nginx = bench.nginx()
    cartd = bench.cartd("cartd", nginx)
    stage(cartd, "big", data)
    url = f"{cartd.url}big?filename=big.tar"
    tar = bench.files / "big.tar"
    fetch_checked(url, tar, data)
    size = tar.stat().st_size

    contest = Contest(bench.rounds)
    contest.side("cartd", with_peak(cartd, lambda: _downloaded(cartd, url, size)))
    peer = "nginx, sendfile"
    contest.peer(peer, lambda: lambda: _downloaded(nginx, f"{nginx.url}files/{tar.name}", size))
    contest.peer(PACIFICA, partial(_pacifica, bench, nginx, data))
    contest.run()
    work = f"download, {data.total_bytes // MIB:,} MiB in 4 files, curl"
    return [
        contest.row(work, "MB/s", peer, Target(1.0, at_least=True, ratio=True)),
        contest.row(work, "server's CPU s/GB", peer, Target(1.0, ratio=True)),
        contest.row(work, "MB/s", PACIFICA),
        contest.row(work, "server's CPU s/GB", PACIFICA),
        contest.row(work, PEAK, cpu=""),
    ]


def small(bench: Bench) -> list[Row]:
    """Many small files, against ``tar`` over the tree that cartd itself sends."""
    count = bench.sized(10_000, 1_000)
    data = bench.data.small(count)
    cartd = bench.cartd("cartd", bench.nginx())
    stage(cartd, "small", data)
    url = f"{cartd.url}small?filename=small.tar"
    tar = bench.files / "small.tar"
    fetch_checked(url, tar, data)
    size = tar.stat().st_size
    [tree] = (bench.directory("cartd") / "volume").glob("[0-9]*/small")

    contest = Contest(bench.rounds)
    contest.side("cartd", with_peak(cartd, lambda: _downloaded(cartd, url, size)))
    peer = "tar cf - DIR | cat"
    contest.peer(peer, lambda: _tarred(tree))
    contest.run()
    work = f"download, {count:,} × 4 KiB"
    return [
        contest.row(work, "s", peer, Target(2.0, ratio=True, aim=1.0)),
        contest.row(work, PEAK, cpu=""),
    ]


def fetch_checked(url: str, tar: Path, data: CartData) -> None:
    """Download to ``tar``, and check that it contains the cart's files, each with its hash."""
    processes.finished([tool("curl"), "-sSf", "-o", tar, url])
    wanted = {entry.path: entry.sha1 for entry in data.entries}
    with tarfile.open(tar) as opened:
        found = {
            member.name.partition("/")[2]: _sha1(content)
            for member in opened
            if (content := opened.extractfile(member)) is not None
        }
    if found != wanted:
        raise MeasurementFailed(f"the tar of {url} does not hold what its manifest says")


def _sha1(content: IO[bytes]) -> str:
    digest = hashlib.sha1()
    while block := content.read(MIB):
        digest.update(block)
    return digest.hexdigest()


def _pacifica(bench: Bench, archive: Server, data: CartData) -> Side:
    server = bench.started(pacifica_cartd(bench.fresh("pacifica"), bench.peers(), archive.url))
    stage(server, "big", data)
    url = f"{server.url}big?filename=big.tar"
    tar = bench.files / "pacifica.tar"
    fetch_checked(url, tar, data)
    size = tar.stat().st_size
    tar.unlink()
    return lambda: _downloaded(server, url, size)


def _downloaded(server: Server, url: str, size: int) -> Sample:
    """Download and discard; ``cpu`` is that of the server and of curl."""
    processes.sync_disks()
    before = server.cpu()
    run = processes.finished([tool("curl"), "-sSf", "-o", "/dev/null", "-w", _FORMAT, url])
    cpu = server.cpu() - before
    received, seconds = run.output.split()
    if int(received) != size:
        raise MeasurementFailed(f"{url} gave {received} bytes, not {size}")
    return {
        "s": run.seconds,
        "MB/s": size / 1e6 / float(seconds),
        "server's CPU s/GB": cpu / size * 1e9,
        "cpu": cpu + run.cpu,
    }


def _tarred(tree: Path) -> Side:
    def run() -> Sample:
        processes.sync_disks()
        command = f"tar cf - {tree.name} | cat >/dev/null"
        done = processes.finished(["/bin/sh", "-c", command], directory=tree.parent)
        return {"s": done.seconds, "cpu": done.cpu}

    return run
