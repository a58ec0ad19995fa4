"""The pages in a real browser, with the real service and an archive with tapes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.json import encode
from msgspec.structs import replace
from selenium.webdriver.common.keys import Keys

from cartd.auth import TokenFile
from cartd.page.cart import segments
from cartd.page.units import size, span
from tests.page.test_cart import FAILED, PARTIAL, READY, STAGING
from tests.support.browser import DARK, NARROW, Browser, browser
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry, manifest

pytest_plugins = ("tests.support.database_fixtures",)

FILES = {f"scan/{number}.tif": bytes([number]) * 50_000 for number in range(8)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("downloads")) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(page: Browser) -> None:
    page.open("about:blank")
    page.emulate()
    page.origins()
    page.errors()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """Files arrive from tape one after the other."""
    with cart_site(
        tmp_path_factory.mktemp("site"),
        "--tape-delay=2",
        "--tape-rate=2",
        ini="[page]\nlist = on\n",
    ) as running:
        yield running


def assert_all_is_well(page: Browser, site: CartSite) -> None:
    """Nothing was loaded from elsewhere, and nothing was blocked or failed."""
    assert page.origins() - {"data://"} <= {site.cartd.url}
    assert page.errors() == []


def show_unauthenticated(page: Browser, path: str) -> None:
    """Show the page of a 401, for which chromium would ask for a token in a dialog."""
    page.driver.execute_async_script(
        "const [path, done] = arguments;"
        "const parsed = (text) => new DOMParser().parseFromString(text, 'text/html');"
        "fetch(path, {credentials: 'omit', headers: {Accept: 'text/html'}})"
        ".then((answer) => answer.text())"
        ".then((text) => document.documentElement.replaceWith(parsed(text).documentElement))"
        ".then(done)",
        path,
    )
    loaded = "return document.styleSheets.length == 2"
    page.wait_for("the styles", lambda: page.driver.execute_script(loaded))


def test_a_cart_is_followed_until_its_tar_is_downloaded_and_unpacked(
    page: Browser, site: CartSite
) -> None:
    site.cartd.post("tapes", site.manifest(FILES, name="Tomography", labels=["night-2"]))
    page.open(f"{site.cartd.url}/tapes")
    page.driver.execute_script("window.notReloaded = true")
    assert page.attribute("button.download", "disabled") == ""
    assert "You may close this page" in page.text()

    def part() -> int:
        return int(page.attribute("svg.bar", "aria-valuenow") or "0")

    first = part()
    page.wait_for("the bar moves", lambda: first < part() < 100)
    assert page.text("[data-field=percent]").endswith("%")
    page.review("staging")
    page.wait_for("the cart is ready", lambda: page.all("a.download"))
    assert page.driver.execute_script("return window.notReloaded")
    assert page.driver.title.startswith("Ready \u00b7 Tomography")
    assert "100 %" in page.text("[data-field=percent]")
    page.review("ready")

    page.one("a.download").click()
    tar = page.downloads / "Tomography.tar"
    page.wait_for("the download", tar.exists)
    with tarfile.open(tar) as opened:
        members = {m.name: opened.extractfile(m) for m in opened.getmembers() if m.isfile()}
        found = {name: file.read() for name, file in members.items() if file is not None}
    assert found == {f"Tomography/{path}": data for path, data in FILES.items()}
    assert_all_is_well(page, site)


def test_a_failed_file_is_shown_and_retried(page: Browser, database: str, tmp_path: Path) -> None:
    data = b"came later"
    with cart_site(tmp_path / "site", database=database) as site:
        site.cartd.post("failed", manifest([entry("later", "a/later.txt", data)]))
        site.cartd.wait_until("failed", "error")
        page.open(f"{site.cartd.url}/failed")
        assert page.driver.title.startswith("Failed \u00b7 failed")
        assert "1 file failed" in page.text() and "a/later.txt" in page.text("table")
        page.review("failed")

        site.archive.put("later", data)
        page.one("form button:not(.danger)").click()
        page.wait_for("the cart is ready", lambda: page.all("a.download"))
        assert_all_is_well(page, site)


def test_a_partial_cart_is_offered_and_completed(page: Browser, site: CartSite) -> None:
    data = b"came later"
    body = json.loads(site.manifest({"a/here.txt": b"x"}, on_error="partial"))
    body["fileids"].append(entry("lost", "a/lost.txt", data))
    site.cartd.post("partial", json.dumps(body).encode())
    page.open(f"{site.cartd.url}/-/carts/partial")
    page.driver.execute_script("window.notReloaded = true")
    page.wait_for("the cart is ready", lambda: page.all("a.download"))
    assert page.driver.execute_script("return window.notReloaded")
    assert page.driver.title.startswith("Partial \u00b7 partial")
    assert page.text(".state") == "partial" and page.text("[data-field=percent]") == "50 %"
    assert "1 of 2 files is missing" in page.text() and "a/lost.txt" in page.text("table")
    assert page.all("a.bag")
    page.review("partial")
    page.open(f"{site.cartd.url}/-/carts?status=partial")
    assert "1 missing" in page.text("table") and len(page.all("tbody tr")) == 1

    site.archive.put("lost", data)
    page.open(f"{site.cartd.url}/-/carts/partial")
    page.one("form button:not(.danger)").click()
    page.wait_for("the cart is whole", lambda: page.text(".state") == "ready")
    assert page.all("a.download") and "missing" not in page.text()
    assert_all_is_well(page, site)


def test_a_cart_is_found_and_deleted_with_the_keyboard_only(page: Browser, site: CartSite) -> None:
    site.stage("typed", {"a": b"x"})
    page.open(site.cartd.url)
    page.tab_to("")
    while page.driver.switch_to.active_element.get_attribute("id") != "uid":
        page.press(Keys.TAB)
    page.press("typed", Keys.ENTER)
    page.wait_for_text("typed", "h1")
    assert page.driver.current_url == f"{site.cartd.url}/-/carts/typed"
    page.tab_to("Delete this cart\u2026")
    page.press(Keys.ENTER)
    page.tab_to("Yes, delete it")
    page.press(Keys.ENTER)
    page.wait_for_text("Not here", "h1")
    page.review("gone")
    assert_all_is_well(page, site)


def test_start_page_list_service_and_problems_are_readable(page: Browser, site: CartSite) -> None:
    site.stage("listed", {"a": b"x"}, labels=["night-2"])
    for path, name in (
        ("/", "start"),
        ("/-/carts", "list"),
        ("/-/admin", "service"),
        ("/-/problems", "problems"),
        ("/-/problems/hash-mismatch", "problem"),
    ):
        page.open(site.cartd.url + path)
        page.review(name)
    page.open(f"{site.cartd.url}/-/carts?label=night-2")
    assert "listed" in page.text("table")
    assert_all_is_well(page, site)


@pytest.fixture(scope="module")
def without_events(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory, ini = tmp_path_factory.mktemp("polled"), "[server]\nmax_event_streams = 0\n"
    with cart_site(directory, "--tape-delay=2", ini=ini) as running:
        yield running


def test_without_script_the_page_is_complete_and_loads_itself_again(
    page: Browser, without_events: CartSite
) -> None:
    site = without_events
    page.emulate(NARROW, DARK, script=False)
    site.cartd.post("plain", site.manifest(FILES))
    page.open(f"{site.cartd.url}/plain")
    assert page.one("h1").text == "plain" and not page.all("a.download")
    page.screenshot("without-script")
    page.wait_for("the cart is ready", lambda: page.all("a.download"))
    # Its address is no longer that of the tar, which a browser would download.
    assert page.driver.current_url == f"{site.cartd.url}/-/carts/plain"


def test_where_there_are_no_events_the_page_polls(page: Browser, without_events: CartSite) -> None:
    site = without_events
    site.cartd.post("polled", site.manifest(FILES))
    page.open(f"{site.cartd.url}/polled")
    page.driver.execute_script("window.notReloaded = true")
    page.wait_for("the cart is ready", lambda: page.all("a.download"))
    assert page.driver.execute_script("return window.notReloaded")
    assert_all_is_well(page, site)


def test_a_user_signs_in_with_a_token_and_sees_own_carts_only(
    page: Browser, tmp_path: Path
) -> None:
    tokens = TokenFile(tmp_path / "tokens")
    alice, bob = (tokens.add(name, admin=False) for name in ("alice", "bob"))
    with cart_site(tmp_path / "site", ini=f"[auth]\ntoken_file = {tokens.path}\n") as site:
        for user, token in (("alice", alice), ("bob", bob)):
            posted = site.cartd.request(
                "POST",
                f"/of-{user}",
                site.manifest({"a": b"x"}),
                Authorization=f"Bearer {token}",
            )
            assert posted.status == 201
        page.open(f"{site.cartd.url}/")
        assert "Sign in" in page.text("nav")
        show_unauthenticated(page, "/-/carts")
        assert page.text("h1") == "Sign in"
        page.review("sign-in")
        url = site.cartd.url.replace("://", f"://alice:{alice}@")
        page.open(f"{url}/-/carts/of-alice")
        page.wait_for("the cart is ready", lambda: page.all("a.download"))
        assert "alice" in page.text("nav")
        page.open(f"{site.cartd.url}/-/carts/of-bob")
        page.wait_for_text("Not here", "h1")
        page.open(f"{site.cartd.url}/-/carts")
        assert "of-alice" in page.text() and "of-bob" not in page.text()
        page.open(f"{site.cartd.url}/-/admin")
        assert "did not work" in page.text("h1")
        assert_all_is_well(page, site)


def test_script_and_service_word_and_draw_alike(page: Browser, site: CartSite) -> None:
    page.open(site.cartd.url)
    sizes = [
        0,
        1,
        999,
        1000,
        9_994,
        9_995,
        99_949,
        99_950,
        999_499,
        999_500,
        48_230_000_000,
        10**21,
    ]
    spans = [(0, 3), (21, 55), (89, 91), (700, 1500), (3000, 10000), (5399, 5400), (10**5, 10**7)]
    worded = page.driver.execute_async_script(
        "const [url, sizes, spans, done] = arguments;"
        "import(url).then((m) => done([sizes.map(m.size), spans.map((s) => m.span(...s))]))",
        f"{site.cartd.url}/-/static/page.js",
        sizes,
        spans,
    )
    assert worded == [[size(one) for one in sizes], [span(*one) for one in spans]]
    crowded = replace(STAGING.files, total=100, staged=50, fetching=20, recalling=40, failed=1)
    for status in (STAGING, READY, FAILED, PARTIAL, replace(STAGING, files=crowded)):
        drawn = page.driver.execute_async_script(
            "const [url, doc, done] = arguments;"
            "import(url).then((m) => done(m.segments(JSON.parse(doc))))",
            f"{site.cartd.url}/-/static/page.js",
            encode(status).decode(),
        )
        assert drawn == [list(one) for one in segments(status)]
