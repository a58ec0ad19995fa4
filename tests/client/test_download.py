"""Downloads from the real service: unpacked, saved, resumed and verified."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cartd_client import Client, Directory, Options, TarFile
from cartd_client import transport as transports
from cartd_client.errors import (
    ExitStatus,
)
from tests.support.cart_site import CartSite
from tests.support.download_proxy import DownloadProxy

LARGE = random.Random(7).randbytes(3 << 20)
FILES = {
    "large.bin": LARGE,
    **{f"small/{number}/ä{number}.dat": b"%d" % number * number for number in range(300)},
    "empty": b"",
    "n" * 150: b"a long name",
    "last.bin": LARGE[: 1 << 20],
}


@pytest.fixture(scope="module")
def cart(site: CartSite) -> str:
    site.stage("cart", FILES)
    return "cart"


@pytest.fixture
def proxy(site: CartSite) -> Iterator[DownloadProxy]:
    with DownloadProxy(site.port) as running:
        yield running


@pytest.fixture
def through(proxy: DownloadProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client behind the proxy."""
    monkeypatch.setattr(transports, "FIRST_DELAY", 0.01)
    with Client(proxy.url, retries=5) as made:
        yield made


def tree(directory: Path) -> dict[str, bytes]:
    """Return all files below a directory, which must be regular."""
    found = {}
    for above, directories, names in os.walk(directory):
        for name in names:
            path = Path(above) / name
            assert not path.is_symlink()
            found[str(path.relative_to(directory))] = path.read_bytes()
        assert not any(Path(above, name).is_symlink() for name in directories)
    return found


def expected(files: Mapping[str, bytes] = FILES, top: str = "cart") -> dict[str, bytes]:
    return {f"{top}/{path}": data for path, data in files.items()}


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_cart_is_unpacked_and_verified(
    site: CartSite, client: Client, cart: str, tmp_path: Path, jobs: int
) -> None:
    report = client.download(cart, Directory(tmp_path), options=Options(jobs=jobs))
    assert report.summary().endswith("all verified (sha1)")
    assert report.exit_status == ExitStatus.OK
    assert (report.files, report.bytes) == (len(FILES), sum(map(len, FILES.values())))
    assert tree(tmp_path) == expected()
    [on_volume] = site.on_volume(cart)
    for path in FILES:
        there, here = (on_volume / path).stat(), (tmp_path / "cart" / path).stat()
        assert int(here.st_mtime) == int(there.st_mtime)
        assert here.st_mode & 0o7777 == 0o644
    # Everything is there: it is read, and nothing is downloaded.
    again = client.download(cart, Directory(tmp_path))
    assert (again.files, again.verified) == (report.files, report.verified)


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_tar_is_saved_and_verified(
    site: CartSite, client: Client, cart: str, tmp_path: Path, jobs: int
) -> None:
    file = tmp_path / "new" / "my.tar"
    report = client.download(cart, TarFile(file), options=Options(jobs=jobs))
    assert report.verified == {"sha1": len(FILES)}
    assert file.read_bytes() == site.cartd.get(f"/{cart}?filename=cart.tar").body
    assert list(file.parent.iterdir()) == [file]


def test_the_tar_is_kept_beside_the_folder(
    site: CartSite, client: Client, cart: str, tmp_path: Path
) -> None:
    report = client.download(cart, Directory(tmp_path), options=Options(keep_tar=True))
    assert report.exit_status == ExitStatus.OK
    tar = site.cartd.get(f"/{cart}?filename=cart.tar").body
    assert tree(tmp_path) == {**expected(), "cart.tar": tar}
