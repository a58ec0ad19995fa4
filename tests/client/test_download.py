"""Downloads from the real service: unpacked, saved, resumed and verified."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import resource
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from cartd_client import (
    Client,
    Directory,
    FileEntry,
    Options,
    TarFile,
    download,
    meter,
    tar_file,
    unpack,
)
from cartd_client import transport as transports
from cartd_client.contents import Item
from cartd_client.errors import (
    CartChanged,
    ClientError,
    ExitStatus,
    InvalidResponse,
    NoSpace,
    UsageError,
    VerificationFailed,
)
from cartd_client.model import Progress, Source
from cartd_client.names import NameRules
from tests.support.cart_site import CartSite
from tests.support.download_proxy import Answer, DownloadProxy
from tests.support.scripted_server import ScriptedServer, answer

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


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
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


# Faults between client and service


def length_of(proxy: DownloadProxy) -> int:
    """Return the length of the tar, from the largest offset that was sent."""
    return max(end for _, end in proxy.sent)


def cuts(*lengths: int) -> object:
    """Return a fault that cuts the first answers after so many bytes."""
    remaining = list(lengths)

    def fault(answer: Answer) -> None:
        if remaining:
            answer.cut_after = remaining.pop(0)

    return fault


@pytest.mark.parametrize("jobs", [1, 3])
def test_cut_connections_are_continued_where_they_broke(
    proxy: DownloadProxy, through: Client, cart: str, tmp_path: Path, jobs: int
) -> None:
    draw = random.Random(jobs)
    proxy.fault = cuts(*(draw.choice([0, 1, 300, 100_000, 7_777]) for _ in range(30)))  # type: ignore[assignment]
    report = through.download(cart, Directory(tmp_path), options=Options(jobs=jobs))
    assert report.exit_status == ExitStatus.OK
    assert tree(tmp_path) == expected()
    assert proxy.fetched() <= length_of(proxy) * 1.01
    downloads = [head for head in proxy.requests if "filename=" in head]
    assert len(downloads) > 30
    for head in downloads[1:]:
        assert "If-Range: " in head or jobs > 1
        assert "Range: bytes=" in head


def test_a_silent_connection_is_replaced(
    proxy: DownloadProxy,
    through: Client,
    cart: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transports, "READ_TIMEOUT", 0.5)
    stall = threading.Event()
    stalls = iter([True])

    def fault(answer: Answer) -> None:
        if next(stalls, False):
            answer.cut_after, answer.stall = 500_000, stall

    proxy.fault = fault
    report = through.download(cart, Directory(tmp_path))
    stall.set()
    assert report.exit_status == ExitStatus.OK
    assert tree(tmp_path) == expected()


def then(*changes: Callable[[Answer], None]) -> Callable[[Answer], None]:
    """Return a fault: the first answer is cut, the next ones are changed, the last change stays."""
    remaining = list(changes)

    def fault(answer: Answer) -> None:
        change = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        change(answer)

    return fault


def cut(answer: Answer) -> None:
    answer.cut_after = 1_000_000


def intact(answer: Answer) -> None:
    """Change nothing."""


def other_etag(answer: Answer) -> None:
    answer.replace("ETag", '"another"')


def longer(answer: Answer) -> None:
    answer.replace("Content-Length", str(10**9))


def shifted(answer: Answer) -> None:
    answer.head = re.sub(
        r"bytes (\d+)-", lambda found: f"bytes {int(found[1]) + 512}-", answer.head
    )


def another_length(answer: Answer) -> None:
    answer.head = re.sub(r"/(\d+)\r", "/123456789\r", answer.head)


def no_content_range(answer: Answer) -> None:
    answer.replace("Content-Range", "")


def part_called_whole(answer: Answer) -> None:
    answer.head = answer.head.replace("206 Partial Content", "200 OK")


def compressed(answer: Answer) -> None:
    answer.replace("Content-Encoding", "gzip")


@pytest.mark.parametrize("to_file", [True, False])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (other_etag, CartChanged),
        (longer, InvalidResponse),
        (shifted, InvalidResponse),
        (another_length, InvalidResponse),
        (no_content_range, InvalidResponse),
        (part_called_whole, InvalidResponse),
        (compressed, InvalidResponse),
    ],
)
def test_an_answer_that_does_not_fit_is_an_error_and_nothing_of_it_is_kept(
    proxy: DownloadProxy,
    through: Client,
    cart: str,
    tmp_path: Path,
    change: Callable[[Answer], None],
    error: type[ClientError],
    to_file: bool,
) -> None:
    target = TarFile(tmp_path / "my.tar") if to_file else Directory(tmp_path)
    proxy.fault = then(cut, change)
    with pytest.raises(error):
        through.download(cart, target)
    # When the answers fit again, the download goes on.
    proxy.fault = None
    proxy.sent.clear()
    assert through.download(cart, target).exit_status == ExitStatus.OK
    assert proxy.fetched() < len(LARGE) * 1.4
    if to_file:
        assert len(list(tmp_path.iterdir())) == 1
    else:
        assert tree(tmp_path) == expected()


@pytest.mark.parametrize("to_file", [True, False])
def test_a_changed_cart_is_fetched_anew_only_if_asked_for(
    proxy: DownloadProxy, through: Client, cart: str, tmp_path: Path, to_file: bool
) -> None:
    target = TarFile(tmp_path / "my.tar") if to_file else Directory(tmp_path)
    proxy.fault = then(cut, other_etag)
    for _ in range(2):
        with pytest.raises(CartChanged, match="has changed since the download began"):
            through.download(cart, target)
    report = through.download(cart, target, options=Options(restart=True))
    assert report.exit_status == ExitStatus.OK
    assert (tree(tmp_path) == expected()) != to_file


def test_a_cart_that_changes_all_the_time_is_given_up(
    proxy: DownloadProxy, through: Client, cart: str, tmp_path: Path
) -> None:
    def fault(answer: Answer) -> None:
        answer.replace("ETag", f'"{len(proxy.requests)}"')
        cut(answer)

    proxy.fault = fault
    with pytest.raises(CartChanged):
        through.download(cart, Directory(tmp_path), options=Options(restart=True))
    assert len(proxy.sent) == 2 * (1 + download.MAX_RESTARTS)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_proxy_that_drops_ranges_costs_time_but_no_file(
    proxy: DownloadProxy, through: Client, cart: str, tmp_path: Path, jobs: int
) -> None:
    proxy.drops_ranges = True
    proxy.fault = then(cut, intact)
    report = through.download(cart, Directory(tmp_path), options=Options(jobs=jobs))
    assert report.exit_status == ExitStatus.OK
    assert tree(tmp_path) == expected()


def without_ranges(answer: Answer) -> None:
    for name in ("ETag", "Accept-Ranges", "Content-Length"):
        answer.replace(name, "")


@pytest.mark.parametrize("to_file", [True, False])
def test_a_service_without_ranges_is_asked_for_the_whole_again(
    proxy: DownloadProxy, through: Client, cart: str, tmp_path: Path, to_file: bool
) -> None:
    def cut_without_ranges(answer: Answer) -> None:
        without_ranges(answer)
        cut(answer)

    reasons: list[str] = []
    through.transport.on_retry = lambda retry: reasons.append(str(retry.error))
    proxy.drops_ranges = True
    proxy.fault = then(cut_without_ranges, cut_without_ranges, without_ranges)
    target = TarFile(tmp_path / "my.tar") if to_file else Directory(tmp_path)
    report = through.download(cart, target)
    assert report.exit_status == ExitStatus.OK
    assert ["start over" in reason for reason in reasons] == [True, True]
    assert (tree(tmp_path) == expected()) != to_file


def damage_of(offset: int) -> Callable[[Answer], None]:
    """Return a change of the byte at an offset."""

    def change(at: int, data: bytes) -> bytes:
        if at <= offset < at + len(data):
            changed = bytearray(data)
            changed[offset - at] ^= 1
            return bytes(changed)
        return data

    def fault(answer: Answer) -> None:
        answer.change = change

    return fault


@pytest.mark.parametrize("to_file", [True, False])
def test_a_wrong_file_is_fetched_once_more_and_never_gets_its_name(
    site: CartSite,
    proxy: DownloadProxy,
    through: Client,
    cart: str,
    tmp_path: Path,
    to_file: bool,
) -> None:
    target = TarFile(tmp_path / "a" / "my.tar") if to_file else Directory(tmp_path / "a")
    proxy.fault = then(damage_of(1_000_000), intact)
    report = through.download(cart, target)
    assert report.exit_status == ExitStatus.OK
    assert report.verified == {"sha1": len(FILES)}
    assert proxy.fetched() == length_of(proxy) + len(LARGE)

    target = TarFile(tmp_path / "b" / "my.tar") if to_file else Directory(tmp_path / "b")
    proxy.fault = damage_of(1_000_000)
    report = through.download(cart, target)
    assert report.exit_status == ExitStatus.VERIFICATION_FAILED
    assert [problem.path for problem in report.failed] == ["large.bin"]
    assert "sha1" in report.failed[0].error
    assert report.verified == {"sha1": len(FILES) - 1}
    right = {path: data for path, data in expected().items() if path != "cart/large.bin"}
    found = tree(tmp_path / "b")
    if to_file:
        assert "my.tar" not in found
    else:
        assert {path: data for path, data in found.items() if path[0] != "."} == right

    # The next run fetches that file alone.
    proxy.fault = None
    proxy.sent.clear()
    assert through.download(cart, target).exit_status == ExitStatus.OK
    assert proxy.fetched() == len(LARGE)
    tar = site.cartd.get(f"/{cart}?filename=cart.tar").body
    assert tree(tmp_path / "b") == ({"my.tar": tar} if to_file else expected())


# The end of a run


class Stop(Exception):
    """Ends a download in the middle."""


def stop_at(count: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.bytes_done >= count:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize("target_type", ["directory", "file", "kept"])
@pytest.mark.parametrize("other_boot", [False, True])
def test_an_interrupted_download_goes_on_and_reads_no_verified_file_again(
    proxy: DownloadProxy,
    through: Client,
    cart: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target_type: str,
    other_boot: bool,
) -> None:
    monkeypatch.setattr(meter, "INTERVAL", 0.0)
    hashed: list[str] = []
    original = unpack._hash

    def hashing(fd: int, count: int, item: Item) -> None:
        hashed.append(item.member.name)
        original(fd, count, item)

    monkeypatch.setattr(unpack, "_hash", hashing)
    target = TarFile(tmp_path / "my.tar") if target_type == "file" else Directory(tmp_path)
    options = Options(keep_tar=target_type == "kept")
    # In the middle of the last file: before it there are many that are right.
    total = sum(map(len, FILES.values()))
    with pytest.raises(KeyboardInterrupt):
        through.download(cart, target, options=options, on_progress=stop_at(total))
    assert not (tmp_path / "my.tar").exists()
    proxy.sent.clear()
    hashed.clear()
    if other_boot:
        monkeypatch.setattr(download, "boot_id", lambda: "another")
    progress: list[Progress] = []
    report = through.download(cart, target, options=options, on_progress=progress.append)
    assert report.verified == {"sha1": len(FILES)}
    assert progress[-1].files_done == progress[-1].files_total == len(FILES)
    assert progress[-1].bytes_done == progress[-1].bytes_total == length_of(proxy)
    if target_type != "file":
        kept = tree(tmp_path)
        kept.pop("cart.tar", None)
        assert kept == expected()
    if not other_boot:
        assert proxy.fetched() < total * 0.4
        assert hashed == [] if target_type == "file" else hashed == ["cart/last.bin"]


def test_what_a_crash_of_the_system_damages_is_fetched_again(
    proxy: DownloadProxy,
    through: Client,
    cart: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter, "INTERVAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        through.download(cart, Directory(tmp_path), on_progress=stop_at(len(LARGE) // 2))
    [part] = (tmp_path / ".cart.tar.part").glob("1")
    size = part.stat().st_size
    part.write_bytes(bytes(size))
    monkeypatch.setattr(download, "boot_id", lambda: "another")
    report = through.download(cart, Directory(tmp_path))
    assert report.verified == {"sha1": len(FILES)}
    assert tree(tmp_path) == expected()


def test_a_full_disk_is_told_and_the_download_goes_on_when_there_is_space(
    proxy: DownloadProxy, through: Client, cart: str, tmp_path: Path
) -> None:
    for target in (Directory(tmp_path), TarFile(tmp_path / "my.tar")):
        proxy.sent.clear()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            for _ in range(2):
                with pytest.raises(NoSpace, match="what was received is kept") as full:
                    through.download(cart, target)
                assert full.value.exit_status == 10
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert through.download(cart, target).exit_status == ExitStatus.OK
        assert {path for path in tree(tmp_path) if path[0] == "."} == set()


def test_space_is_checked_before_anything_is_fetched(
    proxy: DownloadProxy,
    through: Client,
    cart: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage._replace(free=download.RESERVE + len(LARGE))
    )
    with pytest.raises(NoSpace, match=r"has 19\.9 MB free, and the download needs"):
        through.download(cart, Directory(tmp_path))
    assert proxy.fetched() <= 1 << 20  # what the system had taken before the answer was closed


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_that_fills_up_meanwhile_is_told(
    through: Client, cart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a file system")
    try:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))
        for _ in range(2):
            with pytest.raises(NoSpace, match="No space for"):
                through.download(cart, Directory(tmp_path))
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path)], check=True)
        assert through.download(cart, Directory(tmp_path)).exit_status == ExitStatus.OK
        assert tree(tmp_path) == expected()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_directory_that_cannot_be_written_is_told(
    client: Client, cart: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "below", Path("/proc/cart")):
        with pytest.raises(ClientError, match="Cannot write to") as error:
            client.download(cart, Directory(place))
        assert error.value.exit_status == ExitStatus.ERROR


# What is in the directory already


def test_other_files_are_not_replaced(client: Client, cart: str, tmp_path: Path) -> None:
    (tmp_path / "cart").mkdir()
    (tmp_path / "cart" / "empty").write_bytes(b"mine")
    (tmp_path / "cart" / "other").write_bytes(b"not of the cart")
    (tmp_path / "cart" / "last.bin").write_bytes(FILES["last.bin"])
    before = tree(tmp_path)
    with pytest.raises(ClientError, match=r"other files under names of the cart.*: cart/empty;"):
        client.download(cart, Directory(tmp_path))
    assert {path: data for path, data in tree(tmp_path).items() if path[0] != "."} == before
    (tmp_path / "cart" / "empty").unlink()
    assert client.download(cart, Directory(tmp_path)).exit_status == ExitStatus.OK
    assert tree(tmp_path) == {**expected(), "cart/other": b"not of the cart"}


@pytest.mark.parametrize("filename", ["", ".tar", "..", "...tar", "../x.tar", "a/b", "a\\b"])
def test_a_download_has_the_name_of_a_file(client: Client, tmp_path: Path, filename: str) -> None:
    source = Source(f"{client.transport.url}cart", filename)
    with pytest.raises(UsageError, match="cannot have the name"):
        download.download(client.transport, source, Directory(tmp_path / "in"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cart", "cart/small", "cart/small/7"])
def test_links_in_the_directory_are_not_followed(
    client: Client, cart: str, tmp_path: Path, name: str
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    (inside / name).parent.mkdir(parents=True)
    (inside / name).symlink_to(outside)
    with pytest.raises(VerificationFailed, match=f"{name} is a link"):
        client.download(cart, Directory(inside))
    assert list(outside.iterdir()) == []


def test_one_client_at_a_time_writes_to_a_target(client: Client, cart: str, tmp_path: Path) -> None:
    for target in (Directory(tmp_path), TarFile(tmp_path / "my.tar")):
        holder = (
            unpack.Staging(tmp_path, "cart.tar")
            if isinstance(target, Directory)
            else tar_file.PartFile(target.path)
        )
        with pytest.raises(ClientError, match="Another process downloads to"):
            client.download(cart, target)
        holder.close()
        assert client.download(cart, target).exit_status == ExitStatus.OK


def test_a_part_of_another_download_is_not_continued(
    site: CartSite, client: Client, cart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.stage("other", {"other.dat": b"other"})
    monkeypatch.setattr(meter, "INTERVAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        client.download(cart, TarFile(tmp_path / "my.tar"), on_progress=stop_at(1))
    with pytest.raises(ClientError, match="has a part of another download"):
        client.download("other", TarFile(tmp_path / "my.tar"))
    restart = Options(restart=True)
    assert client.download("other", TarFile(tmp_path / "my.tar"), options=restart).files == 1


def test_names_that_collide_here_are_told_before_anything_is_fetched(
    site: CartSite,
    proxy: DownloadProxy,
    through: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.stage("collide", {"a/b": b"1", "A/B": b"2", "c": b"3", "CON": b"4"})
    assert through.download("collide", Directory(tmp_path / "here")).files == 4
    for rules, names in (
        (NameRules(ignores_case=True), "'a/b': another.*; 'A/B': another"),
        (NameRules(windows=True), "'CON': 'CON' is a device on Windows"),
    ):
        monkeypatch.setattr(download, "probe_rules", lambda _, rules=rules: rules)
        proxy.requests.clear()
        with pytest.raises(VerificationFailed, match=names):
            through.download("collide", Directory(tmp_path / "there"))
        assert [head for head in proxy.requests if "filename=" in head] == []


# Hostile tars


def tar_of(*members: tuple[str, bytes, bytes]) -> bytes:
    """Return a tar of members (name, type, content)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            member.mode = 0o7777
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", tarfile.REGTYPE, b"evil")],
        [("cart/../../evil", tarfile.REGTYPE, b"evil")],
        [("/tmp/evil", tarfile.REGTYPE, b"evil")],
        [("cart/..", tarfile.DIRTYPE, b"")],
        [(".ssh/authorized_keys", tarfile.REGTYPE, b"a key")],
        [(".ssh", tarfile.DIRTYPE, b"")],
        [("file", tarfile.REGTYPE, b"beside the folder")],
        [("other.missing.json", tarfile.REGTYPE, b'{"files": []}')],
        [("cart.missing.json", tarfile.REGTYPE, b"no JSON")],
        [("cart/link", tarfile.SYMTYPE, b"")],
        [("cart/link", tarfile.LNKTYPE, b"")],
        [("cart/device", tarfile.CHRTYPE, b"")],
        [("cart/a", tarfile.REGTYPE, b"a"), ("cart/a/b", tarfile.REGTYPE, b"b")],
        [("cart/a/b", tarfile.REGTYPE, b"b"), ("cart/a", tarfile.REGTYPE, b"a")],
    ],
)
@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_hostile_tar_leaves_nothing_outside(
    scripted: Callable[..., ScriptedServer],
    tmp_path: Path,
    members: list[tuple[str, bytes, bytes]],
    has_ranges: bool,
) -> None:
    body = tar_of(("cart/right", tarfile.REGTYPE, b"right"), *members)
    etag, ranges = ('"a"', "bytes") if has_ranges else ("", "")
    server = scripted(answer(200, body, etag=etag, accept_ranges=ranges))
    inside = tmp_path / "inside"
    with Client(server.url, retries=0) as client, pytest.raises(VerificationFailed):
        download.download(
            client.transport, Source(f"{server.url}cart", "cart.tar"), Directory(inside)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    for path in tree(inside):
        assert path.split("/")[0] in (".cart.tar.part", "cart")


def test_files_that_the_cart_does_not_list_get_no_name(
    scripted: Callable[..., ScriptedServer], tmp_path: Path
) -> None:
    listed = [
        FileEntry(0, "1", "a", 1, None, "md5", hashlib.md5(b"a").hexdigest()),
        FileEntry(1, "2", "b", 1, None, "unknown-algorithm", "00"),
        FileEntry(2, "3", "never", 1, None, "md5", "00" * 16),
        FileEntry(3, "4", "lost", None, None, "md5", "00" * 16, status="error", error="gone"),
        FileEntry(4, "5", "short", 9, None, "md5", "00" * 16),
    ]
    body = tar_of(
        ("cart/b", tarfile.REGTYPE, b"b"),
        ("cart/a", tarfile.REGTYPE, b"a"),
        ("cart/a", tarfile.REGTYPE, b"a second time"),
        ("cart/more", tarfile.REGTYPE, b"more"),
        ("cart/short", tarfile.REGTYPE, b"short"),
    )
    server = scripted(answer(200, body, etag='"a"', accept_ranges="bytes"))
    source = Source(f"{server.url}cart", "cart.tar")
    with Client(server.url, retries=0) as client:
        report = download.download(client.transport, source, Directory(tmp_path), listed)
    found = {path: data for path, data in tree(tmp_path).items() if path[0] != "."}
    assert found == {"cart/a": b"a", "cart/b": b"b"}
    assert (report.verified, report.unverified) == ({"md5": 1}, 1)
    assert sorted(problem.path for problem in report.failed) == [
        *("a", "more", "never", "short"),
    ]
    assert [problem.path for problem in report.missing] == ["lost"]
    assert report.exit_status == ExitStatus.VERIFICATION_FAILED
