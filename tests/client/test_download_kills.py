"""Downloads over the death of the client and of the service, at random bytes.

``CARTD_CLIENT_KILLS=1000`` kills that many clients instead of a few; ``CARTD_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests.client.test_download import tree
from tests.support import preloaded
from tests.support.cart_site import CartSite, cart_site
from tests.support.download_proxy import Answer, DownloadProxy

KILLS = int(os.environ.get("CARTD_CLIENT_KILLS", "40"))
KILLS_OF_SERVICE = max(3, KILLS // 40)
SEED = int(os.environ.get("CARTD_SEED", random.randrange(2**32)))
MODES = ("directory", "directory-4", "file", "file-4", "keep")

CLIENT = """
import json, socket, sys
from dataclasses import asdict
from pathlib import Path
from cartd_client import Client, Directory, Options, TarFile, transport
from urllib3.connection import HTTPConnection
# As in a network that is slower than the client: little is on its way when the client is killed.
HTTPConnection.default_socket_options += [(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)]
transport.FIRST_DELAY, transport.MAX_DELAY = 0.02, 0.1
url, mode, place = sys.argv[1:]
target = TarFile(Path(place) / "cart.tar") if mode.startswith("file") else Directory(Path(place))
options = Options(jobs=4 if mode.endswith("4") else 1, keep_tar=mode == "keep")
with Client(url) as client:
    report = client.download("cart", target, options=options)
print(json.dumps(asdict(report)))
"""


class Chaos:
    """Kills the client, or the service, when a chosen byte passes the proxy."""

    def __init__(self, site: CartSite, seed: int) -> None:
        self.random = random.Random(seed)
        self.site = site
        self.client: preloaded.Process | None = None
        self.kill_at: int | None = None
        self.kills_service = False
        self._lock = threading.Lock()

    def fault(self, answer: Answer) -> None:
        answer.paced = self.passed

    def passed(self, at: int) -> None:
        with self._lock:
            if self.kill_at is None or at < self.kill_at:
                return
            self.kill_at = None
            if self.kills_service:
                self.site.cartd.kill()
            elif self.client is not None:
                self.client.kill()
        if self.kills_service:
            self.site.cartd.start()


@pytest.fixture(scope="module")
def killed_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("kills")) as running:
        yield running


def run(chaos: Chaos, url: str, mode: str, place: Path) -> str | None:
    """Run one client; return its report, or None if it was killed."""
    with TemporaryFile() as output:
        command = [sys.executable, "-c", CLIENT, url, mode, str(place)]
        chaos.client = preloaded.start(command, cwd=place, env=dict(os.environ), output=output)
        status = chaos.client.wait(60)
        output.seek(0)
        said = output.read().decode()
    assert status in (0, -9), said
    return said if status == 0 else None


def test_a_download_survives_kills_of_client_and_service_at_any_byte(
    killed_site: CartSite, tmp_path: Path
) -> None:
    print(f"CARTD_SEED={SEED}")
    chaos = Chaos(killed_site, SEED)
    draw = chaos.random
    sizes = [draw.randrange(6_000_000, 10_000_000) for _ in range(5)] + [
        draw.randrange(9000) for _ in range(500)
    ]
    draw.shuffle(sizes)
    files = {
        f"{number % 7}/{number}.dat": draw.randbytes(size) for number, size in enumerate(sizes)
    }
    killed_site.stage("cart", files)
    tar = killed_site.cartd.get("/cart?filename=cart.tar").body
    unpacked = {f"cart/{path}": data for path, data in files.items()}

    kills = services = downloads = twice = 0
    with DownloadProxy(killed_site.port) as proxy:
        proxy.fault = chaos.fault
        while kills < KILLS or services < KILLS_OF_SERVICE:
            mode = MODES[downloads % len(MODES)]
            place = tmp_path / str(downloads)
            place.mkdir()
            at, said = 0, None
            # Some runs are killed early, others late, and the last of each download never.
            in_this = draw.randrange(1, 16)
            while said is None:
                chaos.kills_service = services < KILLS_OF_SERVICE and draw.random() < 0.06
                ends = in_this <= 0 or (kills >= KILLS and services >= KILLS_OF_SERVICE)
                at = draw.randrange(at, max(at + 1, min(len(tar), at + len(tar) // 6)))
                chaos.kill_at = None if ends else at
                proxy.sent.clear()
                said = run(chaos, proxy.url, mode, place)
                in_this -= 1
                if said is None:
                    kills += 1
                elif chaos.kills_service and not ends:
                    services += chaos.kill_at is None
                twice += sum(end - start for start, end in proxy.sent)
            twice -= len(tar)
            downloads += 1
            report = json.loads(said)
            assert (report["files"], report["verified"]) == (len(files), {"sha1": len(files)})
            assert (report["failed"], report["missing"]) == ([], [])
            found = tree(place)
            if mode.startswith("file"):
                assert found == {"cart.tar": tar}
            elif mode == "keep":
                assert found == {"cart.tar": tar, **unpacked}
            else:
                assert found == unpacked
    share = twice / (kills + services) / len(tar)
    print(
        f"{kills} kills of clients and {services} of the service in {downloads} downloads of"
        f" {len(tar):,} bytes: {share:.3%} of the download fetched twice per kill"
    )
    assert share <= 0.01
