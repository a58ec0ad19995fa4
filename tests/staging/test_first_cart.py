"""The main path: a posted cart of real files is downloaded as a tar."""

from __future__ import annotations

from pathlib import Path

from tests.support.real_archive import real_archive
from tests.support.running_cartd import entry, manifest, running_cartd

FILES = {"a/one": b"first", "a/b/two": b"second" * 1000, "empty": b""}


def test_a_cart_from_the_real_archive_to_a_tar(tmp_path: Path) -> None:
    with (
        real_archive(tmp_path / "archive") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, fresh=True) as cartd,
    ):
        for number, data in enumerate(FILES.values()):
            archive.put(str(number), data)
        entries = [entry(n, path, data) for n, (path, data) in enumerate(FILES.items())]
        posted = cartd.post("first", manifest(entries))
        assert (posted.status, posted.json) == (201, {"message": "Cart Processing has begun"})
        cartd.wait_until("first", "ready")
        assert cartd.download("first") == FILES
        deleted = cartd.delete("first")
        assert (deleted.status, deleted.json) == (200, {"message": "Cart Deleted Successfully"})
        assert cartd.get("/first").status == 404
        assert not list(cartd.volume.glob("[0-9]*"))
        assert cartd.terminate() == 0
