"""Conditional requests for carts, and the headers of HEAD."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import Answer, manifest, wait_for
from tests.support.wire import assert_is_error, wire

FILES = {"a/one": b"first", "a/two": bytes(range(256)) * 40}
NAME = "/ready?filename=my.tar"
NOT_THERE = "The cart does not exist or has already been deleted"
NOT_READY = "The cart is not ready for download."
OTHER_TAG = '"0000"'
PROGRESS = {"x-pacifica-files-total", "x-pacifica-files-staged", "x-pacifica-bytes-total",
            "x-pacifica-bytes-staged"}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("ready", FILES)
        running.stage("bundled", FILES, bundle=True)
        yield running


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A site with one cart whose files are never recalled from tape."""
    with cart_site(tmp_path_factory.mktemp("tapes"), "--tape-delay=1e8") as running:
        assert running.cartd.post("taped", running.manifest(FILES)).status == 201
        yield running


@pytest.fixture(scope="module", params=[NAME, "/bundled?filename=my.tar"], ids=["tree", "bundle"])
def target(request: pytest.FixtureRequest) -> str:
    target: str = request.param
    return target


@pytest.fixture(scope="module")
def whole(site: CartSite, target: str) -> Answer:
    wait_for_the_second_to_end(site.cartd.get(target))
    return site.cartd.get(target)


def wait_for_the_second_to_end(answer: Answer) -> None:
    """Wait until the date is a strong validator."""
    modified = parsedate_to_datetime(answer.headers["last-modified"]).timestamp()
    wait_for(lambda: time.time() >= modified + 1)


def date(answer: Answer, seconds: int = 0) -> str:
    """Return its Last-Modified, plus ``seconds``."""
    modified = parsedate_to_datetime(answer.headers["last-modified"]).timestamp()
    return formatdate(modified + seconds, usegmt=True)


FALSE = {
    "another tag": {"if_match": OTHER_TAG},
    "a weak tag": {"if_match": "W/{etag}"},
    "a date before": {"if_unmodified_since": "{before}"},
    "a tag before all else": {"if_match": OTHER_TAG, "if_none_match": "{etag}"},
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("condition", FALSE.values(), ids=FALSE.keys())
@pytest.mark.parametrize("more", [{}, {"range": "bytes=5-"}, {"range": "bytes=99999999-"}])
def test_if_match_of_another_tar_is_412(
    site: CartSite,
    target: str,
    whole: Answer,
    method: str,
    condition: dict[str, str],
    more: dict[str, str],
) -> None:
    known = {"etag": whole.headers["etag"], "before": date(whole, -1)}
    headers = {name: value.format(**known) for name, value in condition.items()}
    answer = site.cartd.request(method, target, None, **headers, **more)
    assert answer.status == 412
    assert answer.headers["x-pacifica-status"] == "ready"
    assert answer.headers["cache-control"] == "no-store"
    assert not {"content-disposition", "etag", "content-range"} & answer.headers.keys()
    if method == "GET":
        assert_is_error(answer, 412, answer.json["message"])


HELD = {
    "its tag": {"if_none_match": "{etag}"},
    "its tag, weakly": {"if_none_match": "W/{etag}"},
    "any": {"if_none_match": "*"},
    "its date": {"if_modified_since": "{same}"},
    "a later date": {"if_modified_since": "{after}"},
    "its date and a range": {"if_modified_since": "{same}", "range": "bytes=5-"},
    "its date in the oldest form": {"if_modified_since": "{asctime}"},
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("condition", HELD.values(), ids=HELD.keys())
def test_an_unmodified_file_is_answered_with_304(
    site: CartSite, target: str, whole: Answer, method: str, condition: dict[str, str]
) -> None:
    modified = parsedate_to_datetime(whole.headers["last-modified"])
    known = {
        "etag": whole.headers["etag"],
        "same": date(whole),
        "after": date(whole, 10),
        "asctime": time.asctime(modified.timetuple()),
    }
    headers = {name: value.format(**known) for name, value in condition.items()}
    answer = site.cartd.request(method, target, None, **headers)
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["etag"] == whole.headers["etag"]
    assert answer.headers["x-pacifica-status"] == "ready"
    assert not {"content-type", "content-length", "last-modified"} & answer.headers.keys()


TRUE = {
    "its tag": {"if_match": "{etag}"},
    "any": {"if_match": "*"},
    "its date": {"if_unmodified_since": "{same}"},
    "a date that is none": {"if_unmodified_since": "yesterday"},
    "an earlier date": {"if_modified_since": "{before}"},
    "another tag, and its date": {"if_none_match": OTHER_TAG, "if_modified_since": "{same}"},
}


@pytest.mark.parametrize("condition", TRUE.values(), ids=TRUE.keys())
def test_what_the_client_does_not_have_is_sent(
    site: CartSite, target: str, whole: Answer, condition: dict[str, str]
) -> None:
    known = {"etag": whole.headers["etag"], "same": date(whole), "before": date(whole, -1)}
    headers = {name: value.format(**known) for name, value in condition.items()}
    assert site.cartd.get(target, **headers).body == whole.body
    part = site.cartd.get(target, **headers, range="bytes=5-9")
    assert (part.status, part.body) == (206, whole.body[5:10])
    assert site.cartd.request("HEAD", target, None, **headers).status == 200


def test_values_of_a_field_that_comes_twice_count_together(site: CartSite) -> None:
    etag = site.cartd.get(NAME).headers["etag"]
    with wire(site.port) as connection:
        connection.get(NAME, f"If-None-Match: {etag}", f"If-None-Match: {OTHER_TAG}")
        assert connection.answer().status == 304
        connection.get(NAME, f"If-Match: {OTHER_TAG}", f"If-Match: {etag}")
        assert connection.answer().status == 200
        connection.get(NAME, "Range: bytes=0-1", "Range: bytes=5-6")
        assert connection.answer().status == 200


@pytest.mark.parametrize("path", ["/nobody", "/nobody?filename=x"])
def test_a_condition_does_not_hide_that_there_is_no_cart(site: CartSite, path: str) -> None:
    for headers in ({"if_match": OTHER_TAG}, {"if_none_match": "*"}, {"range": "bytes=5-"}):
        assert_is_error(site.cartd.get(path, **headers), 404, NOT_THERE)
        assert site.cartd.request("HEAD", path, None, **headers).status == 404
        assert_is_error(site.cartd.request("DELETE", path, None, **headers), 404, "Not Found")


@pytest.mark.parametrize("path", ["/", "/-/openapi.json"])
def test_conditions_apply_to_static_responses(site: CartSite, path: str) -> None:
    etag = site.cartd.get(path).headers.get("etag")
    assert site.cartd.get(path, if_match=OTHER_TAG).status == 412
    assert site.cartd.get(path, if_none_match=etag or "*").status == 304
    assert site.cartd.get(path, if_none_match=OTHER_TAG).status == 200
    assert site.cartd.get(path, range="bytes=0-1").status == 200
    assert (etag is None) is (path == "/")


# Changes


def test_conditional_delete(site: CartSite) -> None:
    site.stage("mine", FILES)
    named = "/mine?filename=my.tar"
    etag = site.cartd.get(named).headers["etag"]
    for headers in ({"if_match": OTHER_TAG}, {"if_match": f"W/{etag}"}, {"if_none_match": "*"},
                    {"if_unmodified_since": "Thu, 01 Jan 1970 00:00:00 GMT"}):  # fmt: skip
        answer = site.cartd.request("DELETE", named, None, **headers)
        assert_is_error(answer, 412, answer.json["message"])
    assert site.cartd.status("mine") == ("ready", "")
    assert site.cartd.request("DELETE", named, None, if_match=etag).status == 200
    assert site.cartd.request("HEAD", "/mine").status == 404


def test_etag_without_filename_is_that_of_the_default_name(site: CartSite) -> None:
    site.stage("unnamed", FILES)
    etag = site.cartd.get("/unnamed").headers["etag"]
    assert site.cartd.request("HEAD", "/unnamed").headers["etag"] == etag
    assert site.cartd.request("DELETE", "/unnamed?filename=x", None, if_match=etag).status == 412
    assert site.cartd.request("DELETE", "/unnamed", None, if_match=etag).status == 200


def test_conditional_post(site: CartSite) -> None:
    body = site.manifest({"a": b"mine"})
    assert site.cartd.request("POST", "/fresh", body, if_match="*").status == 412
    assert site.cartd.request("HEAD", "/fresh").status == 404
    assert site.cartd.request("POST", "/fresh", body, if_none_match="*").status == 201
    other = site.manifest({"a": b"another"})
    assert site.cartd.request("POST", "/fresh", other, if_none_match="*").status == 412
    assert site.cartd.request("POST", "/fresh", b"{", if_none_match="*").status == 400
    site.cartd.wait_until("fresh", "ready")
    assert site.cartd.download("fresh") == {"a": b"mine"}


def test_a_cart_that_is_not_ready_is_there_but_has_no_tag(tapes: CartSite) -> None:
    body = manifest([])
    assert tapes.cartd.request("POST", "/taped", body, if_none_match="*").status == 412
    assert tapes.cartd.request("DELETE", "/taped", None, if_match=OTHER_TAG).status == 412
    assert tapes.cartd.status("taped")[0] == "staging"


# Carts that are not ready


@pytest.mark.parametrize(
    "headers",
    [{"range": "bytes=5-"}, {"range": "nonsense"}, {"if_match": OTHER_TAG}, {"if_none_match": "*"},
     {"if_modified_since": "Thu, 01 Jan 1970 00:00:00 GMT"},
     {"range": "bytes=5-", "if_range": OTHER_TAG}],
    ids=str,
)  # fmt: skip
def test_resume_of_a_cart_not_ready_is_503(tapes: CartSite, headers: dict[str, str]) -> None:
    answer = tapes.cartd.get("/taped?filename=x", **headers)
    assert_is_error(answer, 503, NOT_READY)
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-pacifica-status"] == "staging"
    plain = tapes.cartd.get("/taped?filename=x")
    assert (plain.status, plain.body) == (202, NOT_READY.encode())
    assert plain.headers["x-pacifica-status"] == "staging"


def test_conditions_are_ignored_for_status_of_cart_not_ready(
    tapes: CartSite,
) -> None:
    for headers in ({"if_match": OTHER_TAG}, {"if_none_match": "*"}, {"range": "bytes=5-"}):
        for path in ("/taped", "/taped?filename=x"):
            answer = tapes.cartd.request("HEAD", path, None, **headers)
            assert (answer.status, answer.headers["x-pacifica-status"]) == (204, "staging")
            assert not {"etag", "last-modified", "accept-ranges"} & answer.headers.keys()


# HEAD of a ready cart


def test_a_head_with_a_name_has_what_a_get_has(site: CartSite, target: str, whole: Answer) -> None:
    head = site.cartd.request("HEAD", target)
    assert (head.status, head.body) == (200, b"")
    of_each = {"date": "", "x-request-id": ""}
    assert {**head.headers, **of_each} == {**whole.headers, **of_each}
    assert head.headers["content-length"] == str(len(whole.body))
    assert head.headers["x-pacifica-tar-length"] == str(len(whole.body))
    assert head.headers.keys() >= PROGRESS
    assert (
        site.cartd.request("HEAD", target, None, range="bytes=5-9").headers["content-length"]
        == (head.headers["content-length"])
    )


@pytest.mark.parametrize("uid", ["ready", "bundled"])
def test_head_without_filename_has_the_validators_of_a_get(site: CartSite, uid: str) -> None:
    head, get = site.cartd.request("HEAD", f"/{uid}"), site.cartd.get(f"/{uid}")
    assert (head.status, head.headers["x-pacifica-status"]) == (204, "ready")
    for name in ("etag", "last-modified", "accept-ranges", "x-pacifica-tar-length"):
        assert head.headers[name] == get.headers[name]
    assert head.headers["x-pacifica-tar-length"] == str(len(get.body))
    assert head.headers["cache-control"] == "no-store"
    assert not {"content-length", "content-type", "content-disposition"} & head.headers.keys()


def test_head_with_invalid_filename_is_rejected(site: CartSite) -> None:
    head = site.cartd.request("HEAD", "/ready?filename=a%2Fb")
    assert (head.status, head.headers["x-pacifica-status"]) == (400, "error")
    assert head.headers["x-pacifica-message"].startswith("filename: ")


# Dates


def test_a_date_gives_a_range_once_its_second_is_over(site: CartSite) -> None:
    site.stage("dated", FILES)
    first = site.cartd.get("/dated?filename=x")
    wait_for_the_second_to_end(first)
    for validator in (date(first), first.headers["etag"]):
        part = site.cartd.get("/dated?filename=x", range="bytes=5-", if_range=validator)
        assert (part.status, part.body) == (206, first.body[5:])
    for validator in (date(first, -1), date(first, 1)):
        answer = site.cartd.get("/dated?filename=x", range="bytes=5-", if_range=validator)
        assert (answer.status, answer.body) == (200, first.body)


def test_shared_date_of_two_carts_gives_no_range(site: CartSite) -> None:
    bodies = [site.manifest({"a": letter * 5000}) for letter in (b"a", b"b")]
    for attempt in range(20):
        uid, answers = f"twice-{attempt}", []
        for body in bodies:
            assert site.cartd.post(uid, body).status == 201
            site.cartd.wait_until(uid, "ready")
            answers.append(site.cartd.get(f"/{uid}?filename=x"))
            if len(answers) == 1 and attempt % 2:
                site.cartd.delete(uid)
        first, second = answers
        if date(first) == date(second):
            break
    else:
        raise AssertionError("no two carts of one second were made")
    wait_for_the_second_to_end(second)
    answer = site.cartd.get(f"/{uid}?filename=x", range="bytes=700-", if_range=date(first))
    assert (answer.status, answer.body) == (200, second.body)
    etag = second.headers["etag"]
    assert site.cartd.get(f"/{uid}?filename=x", range="bytes=700-", if_range=etag).status == 206
