"""Bags from the real service: valid, in any range, in both formats of a bundle, or refused."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bags import check_files, validate
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import Answer, entry, manifest

FILES = {
    "plain": b"1" * 700,
    "a b/c": b"2" * 100_000,
    "a b/empty": b"",
    "ü/two\nlines": b"3" * 511,
    "long" * 40: b"4",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = "[cartd]\norganization = Institute of Ü\n[archiveinterface]\nmax_attempts = 1\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        yield running


def unpacked(answer: Answer, directory: Path) -> Path:
    """Unpack a tar with the system's program; return its only folder."""
    directory.mkdir(exist_ok=True)
    (directory / "bag.tar").write_bytes(answer.body)
    subprocess.run(["tar", "-xf", directory / "bag.tar", "-C", directory], check=True)
    [top] = [path for path in directory.iterdir() if path.is_dir()]
    return top


def files_of(body: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        found = {}
        for info in tar:
            if info.isreg():
                content = tar.extractfile(info)
                assert content is not None
                found[info.name] = content.read()
    return found


def hashed(site: CartSite, files: dict[str, tuple[str, bytes]]) -> list[dict[str, object]]:
    """Put files with a hash type each into the archive; return their entries."""
    entries = []
    for path, (hash_type, data) in files.items():
        archive_id = f"bag-{hashlib.md5(path.encode() + data).hexdigest()}"
        site.archive.put(archive_id, data)
        sum_ = hashlib.new(hash_type, data).hexdigest()
        entries.append({**entry(archive_id, path, data), "hashtype": hash_type, "hashsum": sum_})
    return entries


def test_a_cart_is_sent_as_a_valid_bag(site: CartSite, tmp_path: Path) -> None:
    site.stage("bag", FILES, name="Measurements of May")
    answer = site.cartd.get("/bag?format=bag&filename=my-data.tar")
    assert answer.status == 200
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert 'filename="my-data.tar"' in answer.headers["content-disposition"]

    bag = unpacked(answer, tmp_path)

    assert bag.name == "my-data"
    info = validate(bag).info
    assert info["External-Identifier"] == "bag"
    assert info["Source-Organization"] == "Institute of Ü"
    assert info["External-Description"] == "Measurements of May"
    assert {path: (bag / "data" / path).read_bytes() for path in FILES} == FILES
    assert not (bag / "missing.json").exists()


def test_head_and_conditions_of_a_bag(site: CartSite) -> None:
    site.stage("headed", FILES)
    assert site.cartd.get("/-/carts/headed").json["download"]["bag"].keys() == {"url"}
    url = "/headed?format=bag&filename=x.tar"
    head = site.cartd.request("HEAD", url)
    bag, tar = site.cartd.get(url), site.cartd.get("/headed?format=tar&filename=x.tar")
    assert (head.status, head.body) == (200, b"")
    for name in ("etag", "last-modified", "content-length", "x-pacifica-tar-length"):
        assert head.headers[name] == bag.headers[name]
    assert bag.headers["etag"] != tar.headers["etag"]
    assert tar.headers["etag"] == site.cartd.get("/headed?filename=x.tar").headers["etag"]
    assert site.cartd.request("HEAD", "/headed?format=bag").status == 200
    assert site.cartd.request("HEAD", "/headed").status == 204
    etag, other = bag.headers["etag"], tar.headers["etag"]
    assert site.cartd.get(url, if_none_match=etag).status == 304
    assert site.cartd.get("/headed?filename=x.tar", if_none_match=etag).status == 200
    assert site.cartd.request("HEAD", url, if_none_match=etag).status == 304
    assert site.cartd.get(url, if_match=other).status == 412
    assert site.cartd.request("DELETE", url, if_match=other).status == 412
    document = site.cartd.get("/-/carts/headed").json["download"]
    assert (document["url"], document["formats"]) == ("/headed", ["tar", "bag"])
    default = site.cartd.request("HEAD", "/headed?format=bag")
    assert document["bag"] == {
        "url": "/headed?format=bag",
        "length": int(default.headers["content-length"]),
        "etag": default.headers["etag"],
    }


def ranges_are_slices(site: CartSite, url: str) -> bytes:
    """Check ranges of a tar, and If-Range; return the whole."""
    whole = site.cartd.get(url)
    etag, size = whole.headers["etag"], len(whole.body)
    chosen = random.Random(size)
    for _ in range(15):
        first = chosen.randrange(size)
        last = min(first + chosen.choice([0, 600, 5000, size]), size - 1)
        part = site.cartd.get(url, range=f"bytes={first}-{last}", if_range=etag)
        assert part.status == 206
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert part.body == whole.body[first : last + 1]
    other = site.cartd.get(url, range="bytes=1-2", if_range='"other"')
    assert (other.status, other.body) == (200, whole.body)
    assert site.cartd.get(url, range=f"bytes={size}-").status == 416
    return whole.body


def test_any_range_of_a_bag_is_a_slice_of_it(site: CartSite) -> None:
    site.stage("ranges", FILES)
    ranges_are_slices(site, "/ranges?format=bag")


@pytest.mark.parametrize("stored", ["tar", "bag"])
def test_a_bundle_is_sent_in_both_formats(site: CartSite, stored: str, tmp_path: Path) -> None:
    uid = f"bundle-{stored}"
    site.stage(uid, FILES, bundle=True, format=stored)
    [on_volume] = site.on_volume(uid)
    default = site.cartd.get(f"/{uid}")
    assert default.body == on_volume.read_bytes()
    assert site.cartd.get(f"/{uid}?format={stored}").body == default.body

    tar = ranges_are_slices(site, f"/{uid}?format=tar&filename={uid}")
    bag = ranges_are_slices(site, f"/{uid}?format=bag&filename={uid}")

    assert files_of(tar) == {f"{uid}/{path}": data for path, data in FILES.items()}
    (tmp_path / "bag.tar").write_bytes(bag)
    validate(unpacked(Answer(200, {}, bag), tmp_path))
    site.stage(f"tree-{stored}", FILES)
    # The folder of a tar is that of the request; only a stored one keeps its own.
    other = "bag" if stored == "tar" else "tar"
    named = site.cartd.get(f"/{uid}?format={other}&filename=named.tar")
    assert {name.partition("/")[0] for name in files_of(named.body)} == {"named"}


def test_a_cart_may_be_a_bag_by_default(site: CartSite) -> None:
    site.stage("default", FILES, format="bag")
    assert [path.name for path in site.on_volume("default")] == ["default"]
    default = site.cartd.get("/default?filename=d.tar")
    assert "d/bagit.txt" in files_of(default.body)
    assert site.cartd.get("/default?format=bag&filename=d.tar").body == default.body
    assert "d/plain" in files_of(site.cartd.get("/default?format=tar&filename=d.tar").body)
    head = site.cartd.request("HEAD", "/default")
    assert head.headers["etag"] == site.cartd.get("/default").headers["etag"]


def test_the_best_common_hash_is_used_or_none(site: CartSite) -> None:
    files = {"a": ("sha512", b"1"), "b": ("SHA512", b"2")}
    site.cartd.post("sha512", manifest(hashed(site, files)))
    site.cartd.wait_until("sha512", "ready")
    found = files_of(site.cartd.get("/sha512?format=bag&filename=b").body)
    check_files({name.removeprefix("b/"): data for name, data in found.items()}, "sha512")

    mixed = manifest(hashed(site, {"a": ("md5", b"1"), "b": ("sha1", b"2")}), format="bag")
    site.cartd.post("mixed", mixed)
    site.cartd.wait_until("mixed", "ready")
    for url in ("/mixed", "/mixed?format=bag"):
        refused = site.cartd.get(url, accept="application/problem+json")
        assert refused.status == 409
        assert refused.json["type"].endswith("/-/problems/no-common-hash")
    assert site.cartd.request("HEAD", "/mixed?format=bag").status == 409
    assert site.cartd.request("HEAD", "/mixed").status == 204  # it is ready
    assert site.cartd.get("/mixed?format=tar").status == 200


def test_a_bundled_bag_without_a_common_hash_is_in_error(site: CartSite) -> None:
    entries = hashed(site, {"a": ("md5", b"3"), "b": ("sha1", b"4")})
    site.cartd.post("unbagged", manifest(entries, format="bag", bundle=True))
    site.cartd.wait_until("unbagged", "error")
    document = json.loads(site.cartd.get("/-/carts/unbagged").body)
    assert document["problem"] == "no-common-hash"
    assert "hash" in document["message"]


def test_an_entry_without_a_hash_is_in_the_manifest(site: CartSite) -> None:
    site.archive.put("unhashed-bag", b"data")
    site.cartd.post("unhashed", manifest([{**entry("unhashed-bag", "a", b""), "hashsum": ""}]))
    site.cartd.wait_until("unhashed", "ready")
    found = files_of(site.cartd.get("/unhashed?format=bag&filename=b").body)
    check_files({name.removeprefix("b/"): data for name, data in found.items()}, "sha1")


def test_an_empty_cart_is_a_bag(site: CartSite, tmp_path: Path) -> None:
    site.stage("empty", {})
    validate(unpacked(site.cartd.get("/empty?format=bag"), tmp_path))


@pytest.mark.parametrize("value", ["zip", "", "TAR", "%FF"])
def test_another_format_is_an_error(site: CartSite, value: str) -> None:
    site.stage("any", {"a": b""})
    for method in ("GET", "HEAD"):
        assert site.cartd.request(method, f"/any?format={value}").status == 400


def test_bags_of_a_bundle_are_verified_and_staged_again(site: CartSite) -> None:
    site.stage("damaged", FILES, bundle=True, format="bag")
    before = site.cartd.get("/damaged")
    site.cartd.run("cartd-cmd", "verify")
    [tar] = site.on_volume("damaged")
    data = tar.read_bytes()
    at = data.rindex(b"2" * 100_000)
    tar.write_bytes(data[:at] + b"!" + data[at + 1 :])
    assert (
        "damaged: a b/c does not match its hash"
        in site.cartd.run("cartd-cmd", "verify", check=False).stdout
    )
    at = data.index(b"  data/a b/c")
    tar.write_bytes(data[: at - 1] + b"!" + data[at:])
    found = site.cartd.run("cartd-cmd", "verify", check=False).stdout
    assert "damaged: plain is in a bag whose own files are damaged" in found
    tar.unlink()
    assert site.cartd.get("/damaged").status == 202
    site.cartd.wait_until("damaged", "ready")
    after = site.cartd.get("/damaged")
    assert (after.headers["etag"], after.body) == (before.headers["etag"], before.body)
    assert after.headers["last-modified"] == before.headers["last-modified"]


@pytest.mark.parametrize("bundle", [False, True])
def test_a_partial_bag_is_valid_and_lists_what_is_missing(site: CartSite, bundle: bool) -> None:
    uid, late = f"partial-{bundle}", f"late-{bundle}"
    listed = hashed(site, {"a": ("sha256", b"1"), "100%\n": ("sha256", b"2")})
    listed.insert(1, {**entry(late, "late/file", b"3"), "hashtype": "sha256", "hashsum": ""})
    body = manifest(listed, on_error="partial", bundle=bundle, format="bag")
    site.cartd.post(uid, body)
    site.cartd.wait_until(uid, "ready")
    url = f"/{uid}?filename=x.tar"
    partial = site.cartd.get(url)

    found = {n.removeprefix("x/"): data for n, data in files_of(partial.body).items()}
    check_files(found, "sha256")
    missing = json.loads(found["missing.json"])
    failed = site.cartd.get(f"/-/carts/{uid}/files?status=failed").json["files"]
    assert missing["uid"] == uid
    assert [(file["position"], file["path"]) for file in missing["files"]] == [(1, "late/file")]
    for name in ("position", "id", "path", "hashtype", "problem", "error"):
        assert missing["files"][0][name] == failed[0][name]
    tar = files_of(site.cartd.get(f"{url}&format=tar").body)
    assert tar["x.missing.json"] == found["missing.json"]
    ranges_are_slices(site, f"{url}&format=bag")
    ranges_are_slices(site, f"{url}&format=tar")

    site.archive.put(late, b"3")
    assert site.cartd.request("POST", f"/-/carts/{uid}/retry").status == 202
    site.cartd.wait_until(uid, "ready")
    etag = partial.headers["etag"]
    whole = site.cartd.get(url, range="bytes=5-", if_range=etag)
    assert whole.status == 200
    found = {n.partition("/")[2]: data for n, data in files_of(whole.body).items()}
    check_files(found, "sha256")
    assert {"data/a", "data/late/file", "data/100%\n"} < set(found)
    assert "missing.json" not in found
    assert (site.on_volume(uid)[0].suffix == ".tar") == bundle


def test_another_organization_is_another_bag(tmp_path: Path) -> None:
    with cart_site(tmp_path, ini="[cartd]\norganization = one\n") as site:
        site.stage("tree", FILES)
        site.stage("bundle", FILES, bundle=True, format="bag")
        urls = ("/tree?format=bag&filename=x", "/bundle")
        before = [site.cartd.get(url) for url in urls]
        plain = site.cartd.get("/bundle?format=tar&filename=x").body
        assert site.cartd.terminate() == 0
        site.cartd.configure("[cartd]\norganization = two\n")
        site.cartd.start()
        tree, bundle = (site.cartd.get(url) for url in urls)
        assert tree.headers["etag"] != before[0].headers["etag"]
        assert b"Source-Organization: two\n" in tree.body
        assert (bundle.headers["etag"], bundle.body) == (before[1].headers["etag"], before[1].body)
        assert site.cartd.get("/bundle?format=tar&filename=x").body == plain
