"""The client with the real Pacifica Cartd 0.7.0."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cartd_client import Client, ExitStatus, FileEntry, Manifest, TarFile, watch
from cartd_client.errors import CartFailed, NoSuchCart, NotSupported
from tests.support.cart_command import CartCommand
from tests.support.download_proxy import Answer, DownloadProxy
from tests.support.served_directory import ServedDirectory

Pacifica = tuple[str, ServedDirectory]
FILES = {"7": ("run/a.dat", b"first"), "8": ("run/b.dat", b"second")}


def made(**sums: bytes) -> Manifest:
    """Return the manifest of ``FILES``; the hash sums are those of other contents if given."""
    return Manifest.make(
        FileEntry(
            position,
            archive_id,
            path,
            hash_type="sha1",
            hash_sum=hashlib.sha1(sums.get(f"of_{archive_id}", data)).hexdigest(),
        )
        for position, (archive_id, (path, data)) in enumerate(FILES.items())
    )


@pytest.fixture
def client(pacifica: Pacifica) -> Client:
    url, archive = pacifica
    for archive_id, (_, data) in FILES.items():
        archive.put(archive_id, data)
    return Client(url, retries=3)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_INTERVAL", 0.3)
    monkeypatch.setattr(watch, "MIN_INTERVAL", 0.3)


def test_a_cart_is_posted_once_and_waited_for(client: Client) -> None:
    uid = client.submit(made())
    seen = [status.status for status in client.watch(uid)]
    assert seen in (["staging", "ready"], ["ready"])
    assert client.submit(made()) == uid
    assert client.status(uid).is_ready, "it was not posted again, which would stage it again"
    client.delete(uid)
    for request in (client.wait, client.status, client.delete):
        with pytest.raises(NoSuchCart):
            request(uid)


def test_a_cart_is_fetched_and_verified(client: Client, tmp_path: Path) -> None:
    report = client.fetch(made(), tmp_path, timeout=60, filename="data.tar")
    assert report.verified == {"sha1": len(FILES)}
    assert report.exit_status == ExitStatus.OK
    assert {path: (tmp_path / "data" / path).read_bytes() for path, _ in FILES.values()} == dict(
        FILES.values()
    )
    unknown = client.download(client.submit(made()), TarFile(tmp_path / "data.tar"))
    assert (unknown.files, unknown.unverified) == (2, 2), "it lists no files"


def test_a_cart_in_error_says_why(client: Client) -> None:
    wrong = made(of_8=b"another")
    uid = client.submit(wrong, "wrong")
    with pytest.raises(CartFailed, match="Failed to pull"):
        client.wait(uid, timeout=60)
    assert client.status(uid).outcome == "failed"


def test_what_it_does_not_have_is_said(client: Client) -> None:
    uid = client.submit(made())
    for request in (
        lambda: list(client.files(uid)),
        lambda: list(client.carts()),
        lambda: client.set_labels(uid, ["a"]),
        lambda: client.retry(uid),
        lambda: client.plan(made()),
    ):
        with pytest.raises(NotSupported) as raised:
            request()
        assert raised.value.problem["type"] == "urn:cartd-client:not-supported"


def test_the_command_says_that_a_download_starts_over(
    client: Client, pacifica: Pacifica, tmp_path: Path
) -> None:
    faults = [1000]

    def cut_once(answer: Answer) -> None:
        if faults:
            answer.cut_after = faults.pop()

    (tmp_path / "my-data.json").write_bytes(made().open().read())
    with DownloadProxy(int(pacifica[0].rstrip("/").rpartition(":")[2])) as proxy:
        proxy.fault = cut_once
        ended = CartCommand(tmp_path, f"http://127.0.0.1:{proxy.port}")("fetch", "my-data.json")

    assert (ended.status, ended.out) == (0, "2 files, 11 B, all verified (sha1)\n")
    assert "this service cannot continue one: it has to start over" in ended.err
    assert (tmp_path / "my-data" / "run" / "a.dat").read_bytes() == b"first"
