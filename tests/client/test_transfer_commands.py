"""``fetch`` and ``get`` as a user types them: folders, tars, standard output, JSON, deletion."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.support.cart_command import CartCommand, validator
from tests.support.cart_site import CartSite

FILES = {"run/a.dat": b"first", "b.dat": b"second" * 1000}
DONE = "2 files, 6 kB, all verified (sha1)\n"


@pytest.fixture
def cart(site: CartSite, tmp_path: Path) -> CartCommand:
    made = CartCommand(tmp_path, site.cartd.url)
    (tmp_path / "my-data.json").write_bytes(site.manifest(FILES))
    return made


@pytest.fixture(scope="module")
def ready(site: CartSite) -> str:
    site.stage("ready", FILES)
    return "ready"


def files_in(directory: Path) -> dict[str, bytes]:
    """Return all files below a directory."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def test_a_fetch_has_one_document_and_lines_of_progress(cart: CartCommand) -> None:
    ended = cart("fetch", "my-data.json", "-d", "new/place", "--json", "--progress", "json")
    document = ended.conforming("fetch")

    assert ended.status == 0
    assert document["directory"] == str(Path("new/place/my-data"))
    assert (document["verified"], document["outcome"]) == ({"sha1": 2}, "complete")
    assert files_in(cart.directory / "new") == {
        f"place/my-data/{name}": FILES[name] for name in FILES
    }
    lines = [json.loads(line) for line in ended.err.splitlines()]
    for line in lines:
        validator("progressLine").validate(line)
    assert lines[-1]["stage"] == "downloading"


def test_a_fetch_that_has_ended_says_the_same_again(cart: CartCommand) -> None:
    first, again = (cart("fetch", "my-data.json", "--name", "x y") for _ in range(2))

    assert first.out == DONE
    assert (again.status, again.out) == (0, DONE)
    assert files_in(cart.directory / "x y") == FILES


def test_files_without_a_sum_are_verified_with_that_of_the_service(
    cart: CartCommand, site: CartSite
) -> None:
    body = json.loads(site.manifest(FILES))
    body["fileids"][0]["hashsum"] = ""
    (cart.directory / "my-data.json").write_text(json.dumps(body))

    assert cart("fetch", "my-data.json").out == cart("fetch", "my-data.json").out == DONE


def test_a_fetch_never_writes_over_its_manifest(cart: CartCommand) -> None:
    (cart.directory / "my-data.json").rename(cart.directory / "my-data")
    ended = cart("fetch", "my-data")

    assert ended.status == 2
    assert "give --name" in ended.err
    assert cart("fetch", "my-data", "--name", "a/b").status == 2
    assert cart("fetch", "my-data", "--name", "..").status == 2
    assert cart("fetch", "my-data", "--name", "files").out == DONE


def test_a_manifest_may_come_from_standard_input(cart: CartCommand) -> None:
    text = (cart.directory / "my-data.json").read_bytes()
    ended = cart("fetch", "-", "--uid", "from-stdin", "-q", stdin=text)

    assert (ended.status, ended.out, ended.err) == (0, "", "")
    assert files_in(cart.directory / "from-stdin") == FILES


def test_a_tar_is_saved_under_the_name_of_the_cart_or_another(
    cart: CartCommand, ready: str
) -> None:
    assert cart("get", ready).out == cart("get", ready, "-o", "my.tar").out == DONE

    for name, top in (("ready.tar", "ready"), ("my.tar", "my")):
        with tarfile.open(cart.directory / name) as tar:
            assert tar.getnames()[0] == top
    document = cart("get", ready, "-o", "more.tar", "--json").conforming("get")
    assert document["file"] == "more.tar"


def test_standard_output_gets_the_tar_and_nothing_else(cart: CartCommand, ready: str) -> None:
    running = cart.start("get", ready, "-o", "-")
    ended = running.ended()

    with tarfile.open(fileobj=io.BytesIO(ended.out.encode())) as tar:
        assert tar.getnames()[-1] == "ready/b.dat"
    assert ended.err.endswith(DONE)
    for more in (["--json"], ["-j", "2"], ["-x", "."], ["--keep-tar"]):
        assert cart("get", ready, "-o", "-", *more).status == 2


def test_a_bag_is_fetched_and_verified_by_its_own_sums(cart: CartCommand, ready: str) -> None:
    assert cart("get", ready, "--bag", "-x", ".", "--name", "my-bag").status == 0

    assert (cart.directory / "my-bag" / "bagit.txt").is_file()
    assert files_in(cart.directory / "my-bag" / "data") == FILES
    assert cart("verify", "my-bag").out == DONE


def test_the_tar_is_kept_beside_the_files_if_that_is_asked_for(
    cart: CartCommand, ready: str
) -> None:
    assert cart("get", ready, "-x", "here", "--keep-tar").out == DONE

    assert {"ready/run/a.dat", "ready/b.dat", "ready.tar"} == set(files_in(cart.directory / "here"))


def test_a_cart_is_deleted_after_it_is_whole_and_verified(
    cart: CartCommand, site: CartSite
) -> None:
    site.stage("goes", FILES)
    ended = cart("get", "goes", "-x", ".", "--delete-after", "--json")

    assert ended.conforming("get")["deleted"] is True
    assert cart("status", "goes").status == 3
