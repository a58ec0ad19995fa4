"""Tools that have a part, or an older copy, of a tar: what they make of the service's answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import DEADLINE, manifest, wait_for

PART = bytes(range(256)) * 20
"""What is there of a tar, before a tool asks for the rest."""
NOT_READY, READY = "taped?filename=my.tar", "ready?filename=my.tar"
RESUMING = {
    "curl": ("curl", "-sS", "-C", "-", "-o", "part", "{url}"),
    "curl -f": ("curl", "-sSf", "-C", "-", "-o", "part", "{url}"),
    "wget": ("wget", "-q", "--tries=1", "-c", "-O", "part", "{url}"),
    "busybox wget": ("busybox", "wget", "-q", "-c", "-O", "part", "{url}"),
    "lftp": ("lftp", "-c", "set net:max-retries 1; get -c {url} -o part"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """One cart is ready, and the files of the other never come back from tape."""
    with cart_site(tmp_path_factory.mktemp("site"), "--tape-delay=1e8") as running:
        assert running.cartd.post("taped", running.manifest({"a": b"never"})).status == 201
        assert running.cartd.post("ready", manifest([])).status == 201
        running.cartd.wait_until("ready", "ready")
        yield running


def run(directory: Path, *arguments: str) -> int:
    assert shutil.which(arguments[0]), f"{arguments[0]} is not installed"
    environment = {**os.environ, "no_proxy": "127.0.0.1", "HOME": str(directory)}
    done = subprocess.run(
        arguments, cwd=directory, env=environment, capture_output=True, timeout=DEADLINE
    )
    return done.returncode


@pytest.mark.parametrize("tool", RESUMING.values(), ids=RESUMING.keys())
def test_resuming_a_cart_that_is_not_ready_fails_harmlessly(
    site: CartSite, tool: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(PART)
    url = f"{site.cartd.url}/{NOT_READY}"
    assert run(tmp_path, *(argument.format(url=url) for argument in tool)) != 0
    assert (tmp_path / "part").read_bytes() == PART


@pytest.mark.parametrize("tool", ["wget", "wget2"])
def test_a_tar_that_is_there_already_is_not_fetched_again(
    site: CartSite, tool: str, tmp_path: Path
) -> None:
    url = f"{site.cartd.url}/{READY}&by={tool}"
    for _ in range(2):
        assert run(tmp_path, tool, "-q", "-N", url) == 0
    [saved] = [path for path in tmp_path.iterdir() if path.name.startswith("ready")]
    assert saved.read_bytes() == site.cartd.get(f"/{READY}").body

    def statuses() -> list[str]:
        lines = [line for line in site.cartd.log.splitlines() if f"&by={tool} HTTP" in line]
        return [line.split('HTTP/1.1" ')[1].split()[0] for line in lines if '"GET ' in line]

    wait_for(lambda: len(statuses()) == 2)
    assert statuses() == ["200", "304"]


def test_wget2_splits_a_tar_by_the_length_from_head(site: CartSite, tmp_path: Path) -> None:
    url = f"{site.cartd.url}/{READY}&by=chunks"
    assert run(tmp_path, "wget2", "-q", "--chunk-size=4k", "-O", "whole", url) == 0
    assert (tmp_path / "whole").read_bytes() == site.cartd.get(f"/{READY}").body
    wait_for(lambda: site.cartd.log.count('&by=chunks HTTP/1.1" 206 ') == 3)
