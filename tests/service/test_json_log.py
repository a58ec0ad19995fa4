"""The log as JSON: one object a line, whatever clients send; requests and carts are told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from cartd import logs
from cartd.auth import TokenFile
from cartd.model import Cart, CartStatus
from cartd.tracing import LogContext, current, current_cart
from tests.support.cart_site import CartSite, cart_site
from tests.support.cartd_with_archive import cartd_with_archive
from tests.support.running_cartd import command, entry, manifest, running_cartd, wait_for
from tests.support.wire import wire

JSON = "[log]\nformat = json\n"
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
HOSTILE = [*map(chr, [*range(32), 0x7F, 0x85, 0x9B, 0x2028, 0x2029, 0x1F600]), '"', "\\", "{x}"]
CART = Cart(12, "my-data", CartStatus.STAGING, 0.0, 0.0, 0.0, owner="alice")


# --- events -------------------------------------------------------------------------------------


@pytest.fixture
def json_format() -> Iterator[None]:
    logs.use_format("json")
    yield
    logs.use_format("text")


def event(**fields: Any) -> dict[str, Any]:
    return {
        "log_time": 1.5,
        "log_level": LogLevel.warn,
        "log_namespace": "a.b",
        "log_format": "{text}",
        **fields,
    }


def parsed(**fields: Any) -> dict[str, Any]:
    line = logs.json_line(event(**fields))
    assert line.isascii() and line.isprintable()
    found: dict[str, Any] = json.loads(line)
    return found


def test_event_is_one_object_with_message_and_template() -> None:
    assert parsed(text="data") == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "warn",
        "component": "a.b",
        "event": "data",
        "template": "{text}",
    }


def test_line_is_printable_ascii_that_keeps_the_text() -> None:
    text = "".join(HOSTILE)
    assert parsed(text=text)["event"] == text
    assert parsed(text="a\udcffb")["event"] == "a?b"


def test_long_text_is_cut() -> None:
    line = logs.json_line(event(text="\x00" * 100_000))
    assert len(line) < 48 * 1024
    assert json.loads(line)["event"] == "\x00" * logs.MAX_TEXT


def test_exception_with_traceback_is_one_field() -> None:
    try:
        raise ValueError("line\nforged")
    except ValueError:
        found = parsed(text="Failed", log_failure=Failure())["exception"]
    assert found.startswith("Traceback") and found.endswith("ValueError: line\nforged\n")


@pytest.mark.parametrize(
    "given", [{"log_format": "{missing}"}, {"log_format": None}, {"fields": {1: {2}}}]
)
def test_unformattable_event_is_logged_anyway(given: dict[str, Any]) -> None:
    assert json.loads(logs.json_line({**event(text=""), **given}))["level"] == "warn"


def test_event_names_the_cart_and_the_request_of_its_context() -> None:
    context = LogContext(request_id="from-context")
    context.user = "bob"
    reset = current.set(context.for_cart(CART))
    try:
        inside = parsed(text="x")
        other = parsed(text="x", cart=7)
        own = parsed(text="x", fields={"request_id": "own"})
        names = [str(current_cart(12)), str(current_cart(7))]
    finally:
        current.reset(reset)
    assert inside["request_id"] == "from-context" and inside["trace_id"] == context.trace.trace_id
    assert (inside["cart"], inside["uid"], inside["user"]) == (12, "my-data", "alice")
    assert (other["cart"], other["request_id"]) == (7, "from-context")
    assert not {"uid", "user"} & other.keys()
    assert own["request_id"] == "own" and not {"trace_id", "cart", "uid", "user"} & own.keys()
    assert names == ["Cart 12 (my-data, alice)", "Cart 7"]
    named = parsed(cart=CART, text="x")
    assert (named["cart"], named["uid"], named["user"]) == (12, "my-data", "alice")
    assert "request_id" not in named and "trace_id" not in named


def test_lines_of_the_access_log_are_written_as_they_are(json_format: None) -> None:
    assert logs.format_event(event(lines=['{"a":1}', '{"b":2}'])) == '{"a":1}\n{"b":2}\n'
    text = logs.format_event(event(text="x"))
    assert text is not None and json.loads(text)["event"] == "x" and text.endswith("\n")


def test_syslog_gets_one_message_per_event(
    json_format: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_twistd_options", {"syslog": True, "prefix": "cartd-test"})
    observer = logs.log_observer()
    assert isinstance(observer, logs.JsonSyslogObserver)
    sent: list[tuple[int, str]] = []
    observer = logs.JsonSyslogObserver(lambda *message: sent.append(message))
    globalLogPublisher.addObserver(observer)
    try:
        Logger(namespace="a.b").error("one\ntwo")
    finally:
        globalLogPublisher.removeObserver(observer)
    [(priority, line)] = sent
    assert priority == 3
    assert json.loads(line)["event"] == "one\ntwo"


# --- the service --------------------------------------------------------------------------------


def lines(site: CartSite) -> list[dict[str, Any]]:
    """Return all lines of the log; each must be an object."""
    found = []
    for line in site.cartd.log.removesuffix("\n").split("\n"):
        assert line.isascii() and line.isprintable(), line
        found.append(json.loads(line))
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", each["time"]) for each in found)
    return found


def lines_with(site: CartSite, number: int, **fields: Any) -> list[dict[str, Any]]:
    """Return the lines with these fields, once there are that many."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(site) if fields.items() <= line.items()]

    wait_for(lambda: len(found()) >= number)
    return found()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site"), ini=JSON) as running:
        yield running


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return TokenFile(tmp_path_factory.mktemp("tokens") / "tokens")


def test_each_line_is_json_under_hostile_requests(site: CartSite) -> None:
    for sign in HOSTILE:
        raw = sign.encode()
        field = raw if raw[0] >= 32 and raw != b"\x7f" else b"\t"
        quoted = "".join(f"%{byte:02x}" for byte in raw)
        with wire(site.port) as connection:
            connection.send(
                f"GET /u{quoted} HTTP/1.1\r\nHost: localhost\r\n".encode()
                + b"User-Agent: a" + field + b"b\r\nReferer: " + field * 3000
                + b"\r\nX-Request-ID: a" + field + b"\r\ntraceparent: " + field
                + b"\r\n\r\nGET /" + raw + b" HTTP/1.1\r\n\r\n"
            )  # fmt: skip
            assert connection.answer().status in (400, 404)
        # Paths may contain anything but NUL.
        path = f"a{sign}b" if sign not in "\0" else "a"
        site.cartd.post("hostile", manifest([entry("none", path, b"")]))
    wait_for(lambda: site.cartd.status("hostile")[0] == "error")
    components = {line["component"] for line in lines(site)}
    assert {"cartd.access_log", "cartd.rejection_log", "cartd.staging.stager"} <= components


def test_access_and_rejection_have_fields(site: CartSite) -> None:
    answer = site.cartd.get(
        "/unknown?x", user_agent="agent/1", referer='a"b', traceparent=TRACEPARENT
    )
    rejection, access = lines_with(site, 2, request_id=answer.headers["x-request-id"])
    shared = {"client": "127.0.0.1", "status": 404, "trace_id": TRACE_ID, "level": "info"}
    assert shared.items() <= rejection.items() and shared.items() <= access.items()
    assert (rejection["component"], access["component"]) == (
        "cartd.rejection_log",
        "cartd.access_log",
    )
    assert rejection["request"] == "GET /unknown?x"
    assert rejection["reason"] == answer.json["message"]
    assert rejection["event"].startswith('Refused 404 127.0.0.1 "GET /unknown?x" "')
    assert access["request"] == "GET /unknown?x HTTP/1.1"
    assert (access["user_agent"], access["referer"]) == ("agent/1", r"a\x22b")
    assert access["length"] == access["sent"] == len(answer.body)
    assert "user" not in access and access["seconds"] >= 0


def test_lines_of_staging_name_the_request_that_posted(site: CartSite) -> None:
    body = site.manifest({"a": b"data"})
    answer = site.cartd.request("POST", "/traced", body, traceparent=TRACEPARENT)
    site.cartd.wait_until("traced", "ready")
    other = site.cartd.request("POST", "/other", site.manifest({"a": b"data"}))
    site.cartd.wait_until("other", "ready")
    request_id = answer.headers["x-request-id"]
    found = lines_with(site, 3, request_id=request_id)
    of_cart = [line for line in found if line["component"] == "cartd.staging.stager"]
    assert [line["event"].partition(") ")[2] or line["event"] for line in of_cart][-1] == "is ready"
    assert of_cart[0]["event"].startswith(f"Cart {of_cart[0]['cart']} (traced): staging begins")
    assert {(line["uid"], line["trace_id"]) for line in of_cart} == {("traced", TRACE_ID)}
    theirs = lines_with(site, 3, request_id=other.headers["x-request-id"])
    assert all(line["trace_id"] != TRACE_ID for line in theirs)
    assert all(line.get("uid", "other") == "other" for line in theirs)


def test_error_names_the_cart_and_the_request_that_posted_it(site: CartSite) -> None:
    answer = site.cartd.post("missing", manifest([entry("none", "a", b"")]))
    site.cartd.wait_until("missing", "error")
    found = lines_with(site, 3, request_id=answer.headers["x-request-id"])
    [error] = [line for line in found if "is in error" in line["event"]]
    assert error["event"].startswith(f"Cart {error['cart']} (missing) is in error: ")
    assert (error["uid"], error["level"]) == ("missing", "warn")


def test_lines_name_the_user(tmp_path: Path, tokens: TokenFile) -> None:
    alice = f"Bearer {tokens.add('alice', admin=False)}"
    root = f"Bearer {tokens.add('root', admin=True)}"
    ini = f"{JSON}[auth]\ntoken_file = {tokens.path}\n"
    with cart_site(tmp_path, ini=ini) as site:
        body = site.manifest({"a": b"data"})
        ask = site.cartd.request
        posted = ask("POST", "/mine", body, authorization=alice)
        assert posted.status == 201
        wait_for(lambda: ask("HEAD", "/mine", authorization=alice).status == 204)
        wait_for(lambda: ask("GET", "/mine", authorization=alice).status == 200)
        deleted = ask("DELETE", "/mine", authorization=root)
        assert deleted.status == 200
        staging = lines_with(site, 3, request_id=posted.headers["x-request-id"])
        assert {line["user"] for line in staging} == {"alice"}
        assert any(
            re.fullmatch(r"Cart \d+ \(mine, alice\) is ready", line["event"]) for line in staging
        )
        deletion = lines_with(site, 2, request_id=deleted.headers["x-request-id"])
        [named] = [line for line in deletion if "cart" in line]
        assert re.fullmatch(r"Cart \d+ \(mine, alice\) is deleted by root", named["event"])
        assert (named["uid"], named["user"]) == ("mine", "root")


def test_stop_and_logfile_of_twistd_are_json(tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive="http://127.0.0.1:9/", ini=JSON, started=False) as cartd:
        cartd.program = (command("twistd"), "-n", "--logfile=named.log", "cartd")
        cartd.start()
        cartd.get("/?mark")
        assert cartd.terminate() == 0
    found = [json.loads(line) for line in (tmp_path / "named.log").read_text().splitlines()]
    assert any(line.get("request") == "GET /?mark HTTP/1.1" for line in found)
    assert found[-1]["event"] == "Server Shut Down."


def test_another_logger_of_twistd_is_kept_with_a_warning(tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive="http://127.0.0.1:9/", ini=JSON, started=False) as cartd:
        tac = Path(__file__).parents[2] / "cartd.tac"
        cartd.program = (command("twistd"), "--pidfile=", "-ny", str(tac))
        cartd.start()
        assert cartd.terminate() == 0
        assert "[log] format = json has no effect" in cartd.log


# --- traces -------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_trace_of_a_post_is_passed_on_to_the_archive(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        for number in "1234":
            archive.put(number, b"data" + number.encode(), tape_heads=1 if number == "2" else None)
        bodies = {
            "traced": manifest([entry(n, n, b"data" + n.encode()) for n in "12"]),
            "other": manifest([entry("3", "a", b"data3")]),
        }
        headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
        await deferToThread(cartd.request, "POST", "/traced", bodies["traced"], **headers)
        await deferToThread(cartd.request, "POST", "/other", bodies["other"])
        for uid in bodies:
            await deferToThread(cartd.wait_until, uid, "ready")
        traced = [seen for seen in archive.requests if seen.target in ("/1", "/2")]
        assert {seen.method for seen in traced} == {"HEAD", "POST", "GET"}
        parents = [seen.header("traceparent") for seen in traced]
        form = re.compile(rf"00-{TRACE_ID}-([0-9a-f]{{16}})-01")
        assert all(len(sent) == 1 and form.fullmatch(sent[0]) for sent in parents)
        assert len({sent[0] for sent in parents}) == len(parents)
        assert all(seen.header("tracestate") == ["vendor=1"] for seen in traced)
        others = [seen.header("traceparent") for seen in archive.requests if seen.target == "/3"]
        ids = {re.fullmatch("00-([0-9a-f]{32})-[0-9a-f]{16}-00", sent)[1] for [sent] in others}  # type: ignore[index]
        assert len(ids) == 1 and TRACE_ID not in ids
