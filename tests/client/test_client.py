"""The requests of a client to a real service, with and without authentication."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cartd_client import Client, ExitStatus, FileEntry, Manifest, TarFile, default_uid, transport
from cartd_client.errors import (
    CartFailed,
    InvalidManifest,
    NoSuchCart,
    NotAllowed,
    PartialCart,
    RequestRejected,
    UsageError,
)
from cartd_client.watch import head
from tests.support.cart_site import CartSite
from tests.support.running_cartd import entry, manifest
from tests.support.scripted_server import REFUSE, ScriptedServer, answer

FILES = {"run/a.dat": b"first", "run/b.dat": b"second"}


def test_a_cart_is_posted_once_and_waited_for(site: CartSite, client: Client) -> None:
    body = Manifest(site.manifest(FILES, labels=["new"]))
    uid = client.submit(body)
    assert client.submit(body) == uid, "the same manifest is the same cart"
    seen: list[str] = []
    ready = client.wait(uid, timeout=60, on_status=lambda status: seen.append(status.status))
    assert ready.is_ready
    assert not ready.is_partial
    assert ready.outcome == "complete"
    assert ready.files.total == ready.files.staged == 2
    assert ready.bytes.total == len(b"first" + b"second")
    assert seen[-1] == "ready"
    assert client.status(uid).document["uid"] == uid
    assert [cart.uid for cart in client.carts(label="new")] == [uid]


def test_the_files_of_a_cart_are_listed_in_the_order_of_the_manifest(
    site: CartSite, client: Client
) -> None:
    many = {f"{number}.dat": b"%d" % number for number in range(30)}
    body = Manifest(site.manifest(many))
    uid = client.submit(body)
    client.wait(uid, timeout=60)
    listed = list(client.files(uid))
    assert [file.path for file in listed] == list(many)
    assert [
        (file.position, file.id, file.path, file.hash_type, file.hash_sum) for file in listed
    ] == [
        (file.position, file.id, file.path, file.hash_type, file.hash_sum) for file in body.files()
    ]
    assert {file.status for file in listed} == {"staged"}
    assert sum(file.size or 0 for file in listed) == sum(map(len, many.values()))


def test_a_cart_is_fetched_and_verified(site: CartSite, client: Client, tmp_path: Path) -> None:
    body = Manifest(site.manifest(FILES))
    report = client.fetch(body, tmp_path, timeout=60, filename="data.tar")
    assert report.summary() == "2 files, 11 B, all verified (sha1)"
    found = tmp_path / "data"
    assert {path: (found / path).read_bytes() for path in FILES} == FILES
    uid = default_uid(body, client.user)
    tar = client.download(uid, TarFile(tmp_path / "data.tar"))
    assert tar.verified == {"sha1": 2}, "against the files that the service lists"
    assert tar.exit_status == ExitStatus.OK


def test_a_cart_in_error_names_its_failed_files_and_can_be_retried(
    site: CartSite, client: Client
) -> None:
    lost = entry("not-there", "lost.dat", b"lost")
    uid = client.submit(Manifest(manifest([lost])), "in-error")
    with pytest.raises(CartFailed, match=r"in-error is in error: .*lost\.dat"):
        client.wait(uid, timeout=60)
    [failed] = client.files(uid, failed=True)
    assert (failed.path, failed.problem) == ("lost.dat", "file-not-in-archive")
    site.archive.put("not-there", b"lost")
    assert client.retry(uid).status == "staging"
    assert client.wait(uid, timeout=60).is_ready
    with pytest.raises(RequestRejected) as conflict:
        client.retry(uid)
    assert conflict.value.problem["type"].endswith("/conflict")


def test_a_partial_cart_is_ready_and_says_so(
    site: CartSite, client: Client, tmp_path: Path
) -> None:
    here, late = b"here", entry("late", "late.dat", b"late")
    site.archive.put("here", here)
    entries = [entry("here", "here.dat", here), late]
    body = Manifest(manifest(entries, on_error="partial"))
    uid = client.submit(body)
    ready = client.wait(uid, timeout=60)
    assert (ready.is_ready, ready.is_partial, ready.outcome) == (True, True, "partial")
    by_head = head(client.transport, uid)
    for status in (ready, by_head):
        assert (status.outcome, status.files.failed) == ("partial", 1)
    assert [file.path for file in client.files(uid, failed=True)] == ["late.dat"]
    with pytest.raises(PartialCart, match="1 of 2 files"):
        client.fetch(body, tmp_path, allow_partial=False)
    report = client.fetch(body, tmp_path, filename="data.tar")
    assert report.exit_status == ExitStatus.PARTIAL
    assert [(file.path, file.problem) for file in report.missing] == [
        ("late.dat", "file-not-in-archive")
    ]
    site.archive.put("late", b"late")
    client.retry(uid)
    assert not client.wait(uid, timeout=60).is_partial


def test_labels_plan_and_deletion(site: CartSite, client: Client) -> None:
    body = Manifest(site.manifest(FILES))
    uid = client.submit(body, "to-delete")
    client.wait(uid, timeout=60)
    assert client.set_labels(uid, ["run 7", "raw", "raw"]) == ("run 7", "raw")
    assert client.plan(body)["files"]["total"] == 2
    client.delete(uid)
    for request in (client.status, client.delete, lambda uid: list(client.files(uid))):
        with pytest.raises(NoSuchCart):
            request(uid)
    with pytest.raises(NoSuchCart):
        next(client.watch(uid))


def test_a_change_whose_answer_was_lost_is_done(
    scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_sleep", lambda seconds: None)
    gone, conflict = answer(404, b"{}"), answer(409, b"{}")
    staging = answer(200, b'{"uid": "u", "status": "staging"}')
    Client(scripted(REFUSE, gone).url).delete("u")
    assert Client(scripted(REFUSE, conflict, staging).url).retry("u").status == "staging"
    with pytest.raises(NoSuchCart):
        Client(scripted(gone).url).delete("u")
    with pytest.raises(RequestRejected):
        Client(scripted(conflict).url).retry("u")


def test_a_rejected_manifest_has_the_service_s_problem(client: Client) -> None:
    wrong = Manifest.make([FileEntry(0, "1", "a", hash_type="crc32")])
    with pytest.raises(RequestRejected, match="crc32") as rejected:
        client.submit(wrong)
    assert rejected.value.problem["errors"][0]["pointer"] == "#/fileids/0/hashtype"
    with pytest.raises(InvalidManifest):
        Manifest.read("no-such-manifest.json")


def test_a_token_is_needed_and_belongs_to_a_user(
    auth_site: CartSite, tokens: tuple[Path, dict[str, str]]
) -> None:
    url = auth_site.cartd.url
    alice, admin = (Client(url, token=tokens[1][name]) for name in ("alice", "root"))
    uid = alice.submit(Manifest(auth_site.manifest(FILES)))
    assert alice.wait(uid, timeout=60).is_ready
    assert alice.user == "alice"
    assert [cart.uid for cart in alice.carts()] == [uid]
    assert [cart.uid for cart in admin.carts()] == [uid]
    for wrong in (Client(url), Client(url, token="cartd_alice." + "x" * 43)):
        with pytest.raises(NotAllowed) as refused:
            wrong.status(uid)
        assert refused.value.problem["type"].endswith("/unauthenticated")
        with pytest.raises(NotAllowed):
            next(wrong.watch(uid))
    with_login = f"http://alice:{tokens[1]['alice']}@127.0.0.1:{auth_site.port}"
    assert Client(with_login).status(uid).is_ready
    with pytest.raises(UsageError):
        Client(url, token="with a space")


def test_a_uid_depends_on_manifest_and_user(client: Client) -> None:
    one, other = Manifest(b"{}"), Manifest(b"{} ")
    assert default_uid(one, "a") == default_uid(Manifest(b"{}"), "a")
    assert len({default_uid(one, "a"), default_uid(one, "b"), default_uid(other, "a")}) == 3
    assert client.page("a/b").endswith("/-/carts/a%2Fb")
