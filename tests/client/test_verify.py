"""Bags and partial carts from the real service, and the verification of what was saved."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cartd_client import Client, Directory, FileEntry, Options, TarFile, meter
from cartd_client import verify as verifying
from cartd_client.errors import ClientError, ExitStatus, UsageError, VerificationFailed
from cartd_client.model import Progress
from tests.client.test_download import tree
from tests.support.cart_site import CartSite
from tests.support.running_cartd import entry, manifest

FILES = {
    "a/large.bin": bytes(range(256)) * 3000,
    "a/empty": b"",
    "a/100%.dat": b"percent",
    "b/line\nfeed": b"line feed",
    **{f"c/{number}.dat": b"%d" % number for number in range(100)},
}
LOST = {"d/lost.dat": b"lost", "a/lost.dat": b"lost, too"}


@pytest.fixture(scope="module")
def whole(site: CartSite) -> str:
    site.stage("whole", FILES)
    return "whole"


@pytest.fixture(scope="module")
def partial(site: CartSite) -> str:
    """A cart that is ready without two of its files."""
    entries = []
    for number, (path, data) in enumerate({**LOST, **FILES}.items()):
        if path not in LOST:
            site.archive.put(f"partial-{number}", data)
        entries.append(entry(f"partial-{number}", path, data))
    body = manifest(sorted(entries, key=lambda one: str(one["path"])), on_error="partial")
    assert site.cartd.post("partial", body).status == 201
    site.cartd.wait_until("partial", "ready")
    return "partial"


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_bag_is_verified_by_its_own_sums_while_it_arrives(
    client: Client, whole: str, tmp_path: Path, jobs: int
) -> None:
    options = Options(jobs=jobs)
    report = client.download(whole, Directory(tmp_path), format="bag", options=options)
    assert report.exit_status == ExitStatus.OK
    assert (report.files, report.verified) == (len(FILES), {"sha1": len(FILES)})
    found = tree(tmp_path / "whole")
    payload = {path[5:]: data for path, data in found.items() if path.startswith("data/")}
    assert payload == FILES
    assert set(found) - {f"data/{path}" for path in FILES} == {
        *("bagit.txt", "bag-info.txt", "manifest-sha1.txt", "tagmanifest-sha1.txt"),
    }
    report = client.download(whole, TarFile(tmp_path / "my.tar"), format="bag", options=options)
    assert report.verified == {"sha1": len(FILES)}


def stop_at(count: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.bytes_done >= count:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize("format", ["bag", "tar"])
@pytest.mark.parametrize("to_file", [True, False])
def test_a_partial_cart_names_what_is_missing_also_when_it_is_resumed(
    client: Client,
    partial: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    to_file: bool,
) -> None:
    monkeypatch.setattr(meter, "INTERVAL", 0.0)
    target = TarFile(tmp_path / "my.tar") if to_file else Directory(tmp_path)
    # As a manifest lists them: without the fate of each.
    listed = [
        FileEntry(file.position, file.id, file.path, None, None, file.hash_type, file.hash_sum)
        for file in client.files(partial)
    ]
    assert len(listed) == len(FILES) + len(LOST)
    for count in (1, 300_000, 700_000):
        with pytest.raises(KeyboardInterrupt):
            client.download(
                partial, target, format=format, expected=listed, on_progress=stop_at(count)
            )
    for expected in (listed, None):
        report = client.download(partial, target, format=format, expected=expected)
        assert (report.exit_status, report.outcome) == (ExitStatus.PARTIAL, "partial")
        assert sorted(problem.path for problem in report.missing) == sorted(LOST)
        assert {problem.problem for problem in report.missing} == {"file-not-in-archive"}
        assert report.verified == {"sha1": len(FILES)}
        if to_file:
            (tmp_path / "my.tar").unlink()


@pytest.mark.parametrize("format", ["bag", "tar"])
def test_a_retried_cart_completes_what_is_there(
    site: CartSite, client: Client, tmp_path: Path, format: str
) -> None:
    uid = f"retried-{format}"
    site.archive.put(f"{uid}-1", b"first")
    entries = [entry(f"{uid}-1", "a", b"first"), entry(f"{uid}-2", "b", b"second")]
    assert site.cartd.post(uid, manifest(entries, on_error="partial")).status == 201
    client.wait(uid, timeout=60)
    report = client.download(uid, Directory(tmp_path), format=format)
    assert [problem.path for problem in report.missing] == ["b"]
    [listed] = [path for path in tree(tmp_path) if path.endswith("missing.json")]

    site.archive.put(f"{uid}-2", b"second")
    client.retry(uid)
    client.wait(uid, timeout=60)
    report = client.download(uid, Directory(tmp_path), format=format)
    assert (report.exit_status, report.verified) == (ExitStatus.OK, {"sha1": 2})
    assert listed not in tree(tmp_path)
    assert b"second" in tree(tmp_path).values()


def test_a_bag_whose_sums_contradict_each_other_is_rejected(
    client: Client, whole: str, tmp_path: Path
) -> None:
    client.download(whole, Directory(tmp_path), format="bag")
    bag = tmp_path / "whole"
    client.download(whole, TarFile(tmp_path / "bag.tar"), format="bag")
    tar = tmp_path / "bag.tar"
    for path in (bag, tar):
        assert verifying.verify(path).verified == {"sha1": len(FILES)}

    # One digit of a sum, in the tar and in the directory.
    manifest_of_bag = bag / "manifest-sha1.txt"
    line = manifest_of_bag.read_bytes().splitlines()[3]
    changed = line.replace(line[:1], b"0" if line[:1] != b"0" else b"1", 1)
    for path in (manifest_of_bag, tar):
        path.write_bytes(path.read_bytes().replace(line, changed, 1))
    for path in (bag, tar):
        with pytest.raises(VerificationFailed, match=r"manifest-sha1\.txt in the bag is wrong"):
            verifying.verify(path)


def test_wrong_missing_and_other_files_of_a_bag_are_named(
    client: Client, whole: str, tmp_path: Path
) -> None:
    client.download(whole, Directory(tmp_path), format="bag")
    data = tmp_path / "whole" / "data"
    (data / "a/empty").write_bytes(b"x")
    (data / "c/7.dat").unlink()
    (data / "more").touch()
    report = verifying.verify(tmp_path / "whole")
    assert report.exit_status == ExitStatus.VERIFICATION_FAILED
    assert {problem.path for problem in report.failed} == {"data/a/empty", "data/more"}
    assert [problem.path for problem in report.missing] == ["data/c/7.dat"]
    assert report.verified == {"sha1": len(FILES) - 2}


def test_a_directory_is_verified_against_the_list_of_a_cart(
    client: Client, whole: str, tmp_path: Path
) -> None:
    client.download(whole, Directory(tmp_path))
    folder = tmp_path / "whole"
    calls: list[Progress] = []
    report = verifying.verify(folder, client.files(whole), calls.append)
    assert (report.exit_status, report.verified) == (ExitStatus.OK, {"sha1": len(FILES)})
    assert calls[-1].bytes_done == report.bytes == sum(map(len, FILES.values()))

    (folder / "a/large.bin").write_bytes(FILES["a/large.bin"][:-1] + b"x")
    (folder / "a/100%.dat").write_bytes(b"longer than it was")
    (folder / "c/1.dat").unlink()
    shutil.move(folder / "c/2.dat", tmp_path / "2.dat")
    (folder / "c/2.dat").symlink_to(tmp_path / "2.dat")
    report = verifying.verify(folder, client.files(whole))
    assert sorted(problem.path for problem in report.failed) == [
        *("a/100%.dat", "a/large.bin", "c/2.dat"),
    ]
    assert [problem.path for problem in report.missing] == ["c/1.dat"]
    assert report.files == len(FILES) - 4

    with pytest.raises(UsageError, match="is not a bag"):
        verifying.verify(folder)
    with pytest.raises(ClientError, match="Cannot read"):
        verifying.verify(tmp_path / "not-there", client.files(whole))


@pytest.mark.parametrize("tar_format", ["cartd", "gnu", "pax"])
def test_a_tar_is_verified_against_the_list_of_a_cart(
    client: Client, whole: str, tmp_path: Path, tar_format: str
) -> None:
    tar = tmp_path / "whole.tar"
    if tar_format == "cartd":
        client.download(whole, TarFile(tar))
    else:
        # In the order of the directory, which is not that of the list.
        client.download(whole, Directory(tmp_path))
        command = ["tar", f"--format={tar_format}", "-C", str(tmp_path), "-cf", str(tar), "whole"]
        subprocess.run(command, check=True)
    report = verifying.verify(tar, client.files(whole))
    assert (report.exit_status, report.verified) == (ExitStatus.OK, {"sha1": len(FILES)})

    with pytest.raises(UsageError, match="is not a bag"):
        verifying.verify(tar)

    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"line feed", b"line FEED"))
    more = [*client.files(whole), FileEntry(999, "x", "more", 3, None, "md5", "0" * 32)]
    report = verifying.verify(tar, more)
    assert [problem.path for problem in report.failed] == ["b/line\nfeed"]
    assert [problem.path for problem in report.missing] == ["more"]

    tar.write_bytes(content[:700_000])
    with pytest.raises(VerificationFailed, match="before its end mark"):
        verifying.verify(tar, client.files(whole))
