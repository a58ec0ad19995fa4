"""A page of another origin, in a real browser: it can neither post, nor delete, nor read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.browser import Browser, browser
from tests.support.cart_site import CartSite, cart_site

FILES = {"a": b"data"}
SCRIPT = """
const [service, manifest, done] = [...arguments];
const timeout = (promise) => Promise.race([
    promise, new Promise((ended) => setTimeout(() => ended("nothing"), 5000))]);
async function send(path, options) {
    try {
        const answer = await fetch(service + path, options);
        return answer.type + " " + answer.status + " " + (await answer.text()).slice(0, 20);
    } catch (error) {
        return "failed";
    }
}
function listen(path) {
    return timeout(new Promise((heard) => {
        const source = new EventSource(service + path);
        for (const name of ["status", "end"]) {
            source.addEventListener(name, () => { source.close(); heard("read"); });
        }
        source.addEventListener("error", () => { source.close(); heard("failed"); });
    }));
}
function submit(path, type, text) {
    return timeout(new Promise((sent) => {
        const frame = document.createElement("iframe");
        frame.name = "frame" + Math.random();
        document.body.append(frame);
        const form = document.createElement("form");
        Object.assign(form, {method: "post", action: service + path, enctype: type,
                             target: frame.name});
        const field = document.createElement("input");
        [field.name, field.value] = text;
        form.append(field);
        document.body.append(form);
        frame.addEventListener("load", () => sent("sent"));
        form.submit();
    }));
}
(async () => done({
    read: await send("/kept", {}),
    status: await send("/-/carts/kept", {}),
    opaque: await send("/-/carts/kept", {mode: "no-cors"}),
    withPassword: await send("/-/carts/kept", {credentials: "include"}),
    events: await listen("/-/carts/kept/events"),
    post: await send("/posted", {method: "POST", body: manifest}),
    blindPost: await send("/blind", {method: "POST", body: manifest, mode: "no-cors"}),
    json: await send("/json", {
        method: "POST", body: manifest, headers: {"Content-Type": "application/json"}}),
    remove: await send("/kept", {method: "DELETE"}),
    put: await send("/-/carts/kept/labels", {method: "PUT", body: "[]"}),
    form: await submit("/formed", "text/plain", [manifest.slice(0, -1) + ',"x":"', '"}']),
    pageForm: await submit("/-/carts/kept/form", "application/x-www-form-urlencoded",
                           ["action", "delete"]),
}))();
"""
FAILED = ("read", "status", "withPassword", "events", "post", "json", "remove", "put")


class Handler(BaseHTTPRequestHandler):
    """Sends one empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><title>Another site</title><body>")

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@contextmanager
def another_site() -> Iterator[int]:
    """Serve a page; yield its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("downloads")) as started:
        yield started


def attack(window: Browser, site: CartSite, origin: str) -> dict[str, Any]:
    """Run the script on the page at ``origin``, against the service; return what it reached."""
    site.stage("kept", FILES)
    manifest = json.dumps(json.loads(site.manifest(FILES)))
    window.open(f"{origin}/")
    found = window.driver.execute_async_script(SCRIPT, f"http://127.0.0.1:{site.port}", manifest)
    assert isinstance(found, dict)
    return found


def carts(site: CartSite) -> set[str]:
    return {uid for uid in ("kept", "posted", "blind", "json", "formed")
            if site.cartd.request("HEAD", f"/{uid}").status < 400}  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["another port", "another site"])
def test_page_of_another_origin_can_do_nothing(tmp_path: Path, window: Browser, host: str) -> None:
    with another_site() as port, cart_site(tmp_path) as site:
        found = attack(window, site, f"http://{host}:{port}")
        assert {name: found[name] for name in FAILED} == dict.fromkeys(FAILED, "failed")
        # What a page may send to any site: it does not learn the answer.
        assert found["opaque"] == found["blindPost"] == "opaque 0 "
        assert found["form"] == found["pageForm"] == "sent"
        assert carts(site) == {"kept"}


def test_page_of_an_allowed_origin_can_do_all_of_it(tmp_path: Path, window: Browser) -> None:
    # So the test above fails if the service does not protect itself.
    with another_site() as port:
        origin = f"http://localhost:{port}"
        with cart_site(tmp_path, ini=f"[server]\nallowed_origins = {origin}\n") as site:
            found = attack(window, site, origin)
            assert found["read"].startswith("cors 200 ")
            assert found["status"].startswith('cors 200 {"uid":"kept"')
            assert found["events"] == "read"
            assert found["post"].startswith("cors 201 ")
            assert found["remove"].startswith("cors 200 ")
            assert carts(site) >= {"posted", "blind", "json", "formed"}
            assert "kept" not in carts(site)
