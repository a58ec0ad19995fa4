"""What all pages have: head, navigation and footer; and the rendering to bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.web.template import Tag, flattenString, tags

from cartd import __version__
from cartd.page.assets import asset_url
from cartd.page.units import utc

_ADDRESSES = {"href", "src", "action", "data-page", "data-events"}
FORM_FIELD = "form_token"
"""The field of a form that has the token against forged forms."""
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of all pages: nothing inline, nothing from another host."""
HTML = "text/html; charset=utf-8"
HEADERS = (
    ("Content-Security-Policy", CSP),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)
"""Headers of every page."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """For whom a page is rendered, and what it may offer."""

    base_url: str
    """Scheme and host of the service, as the browser sees them."""
    guessed: bool = False
    """Whether ``base_url`` is what this process sees, so that a proxy may have changed it."""
    prefix: str = ""
    """The path below which a proxy offers the service."""
    user: str | None = None
    """None without authentication, and before signing in."""
    auth: bool = False
    """Whether authentication is on."""
    tokens: bool = False
    """Whether users authenticate by tokens, rather than by a proxy."""
    lists: bool = False
    """Whether the visitor may list carts."""
    admin: bool = False
    """Whether the visitor may see the page for administrators."""
    form_token: str = ""
    """The token of the forms on this page."""


@dataclass(frozen=True, slots=True)
class Page:
    """What one page has of its own."""

    title: str
    main: Tag
    refresh: str | None = None
    """What a browser without script loads every ten seconds; None if nothing changes."""
    here: str = ""
    """The entry of the navigation that is this page."""


def rendered(page: Page, visitor: Visitor) -> bytes:
    """Return a page as HTML at once; nothing in it may be asynchronous."""
    found: list[bytes] = []
    Deferred.fromCoroutine(render(page, visitor)).addCallback(found.append)
    return found[0]


async def render(page: Page, visitor: Visitor) -> bytes:
    """Return the page as HTML."""
    html = tags.html(lang="en")(
        _head(page, visitor),
        tags.body(
            tags.a("Skip to the content", href="#main", class_="skip"),
            tags.header(_navigation(page.here, visitor)),
            page.main(id="main", tabindex="-1"),
            _footer(),
        ),
    )
    if visitor.prefix:
        _with_prefix(html, visitor.prefix)
    return b"<!DOCTYPE html>\n" + await flattenString(None, html)


def prefix_of(public_url: str | None) -> str:
    """Return the path below which a proxy offers the service whose address is ``public_url``."""
    return urlsplit(public_url or "").path.rstrip("/")


def base_of(visitor: Visitor) -> dict[str, str]:
    """Return the attribute by which the script corrects ``base_url``."""
    return {"data-base": visitor.base_url} if visitor.guessed else {}


def _with_prefix(element: object, prefix: str) -> None:
    """Let all addresses of the service in ``element`` begin with ``prefix``."""
    if not isinstance(element, Tag):
        return
    for name in _ADDRESSES & element.attributes.keys():
        value = element.attributes[name]
        if isinstance(value, str) and value.startswith("/"):
            element.attributes[name] = prefix + value
    for child in element.children:
        _with_prefix(child, prefix)


def _head(page: Page, visitor: Visitor) -> Tag:
    head = tags.head(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.meta(name="color-scheme", content="light dark"),
        tags.title(f"{page.title} \u2013 cartd"),
        tags.link(rel="icon", type="image/svg+xml", href=asset_url("favicon.svg")),
        tags.link(rel="stylesheet", href=asset_url("pico.css")),
        tags.link(rel="stylesheet", href=asset_url("style.css")),
        tags.script(type="module", src=asset_url("page.js")),
    )
    if page.refresh is not None:
        refresh = tags.meta(content=f"10; url={visitor.prefix}{page.refresh}")(
            **{"http-equiv": "refresh"}
        )
        head(tags.noscript(refresh))
    return head


def _navigation(here: str, visitor: Visitor) -> Tag:
    entries = []
    if visitor.lists:
        entries.append(("Carts", "/-/carts"))
    elif visitor.tokens and visitor.user is None:
        entries.append(("Sign in", "/-/carts"))
    if visitor.admin:
        entries.append(("Service", "/-/admin"))
    items = tags.ul()
    for name, url in entries:
        link = tags.a(name, href=url)
        items(tags.li(link(**{"aria-current": "page"}) if here == url else link))
    if visitor.user is not None:
        items(tags.li(tags.span(visitor.user, class_="user", title="Signed in")))
    logo = tags.img(src=asset_url("logo.svg"), alt="", width="32", height="32")
    home = tags.a(logo, tags.strong("cartd"), href="/", class_="home")
    return tags.nav(tags.ul(tags.li(home)), items)(**{"aria-label": "Main"})


def _footer() -> Tag:
    return tags.footer(
        tags.small(
            f"cartd {__version__} \u00b7 ",
            tags.a("API description", href="/-/openapi.json"),
            " \u00b7 programs get JSON at the addresses of these pages",
        )
    )


def moment(when: datetime) -> Tag:
    """Return a time, which the script shows in the browser's zone."""
    stamp = when.strftime("%Y-%m-%dT%H:%M:%SZ")
    return tags.time(utc(when), datetime=stamp, title=utc(when))


def form(visitor: Visitor, url: str, *content: Tag) -> Tag:
    """Return a form that changes something."""
    token = tags.input(type="hidden", name=FORM_FIELD, value=visitor.form_token)
    return tags.form(token, *content, method="post", action=url)


def find_form() -> Tag:
    """Return the form that asks for a uid."""
    return tags.form(
        tags.label("Uid of a cart", for_="uid"),
        tags.div(
            tags.input(
                type="text", id="uid", name="uid", required="", maxlength="255",
                autocomplete="off", spellcheck="false", placeholder="my-cart",
            ),
            tags.button("Show", type="submit"),
            class_="row",
        ),
        method="get",
        action="/",
        role="search",
    )  # fmt: skip


def sign_in_page(message: str, public_url: str | None = None, *, tokens: bool = True) -> bytes:
    """Return the page that a browser shows if its user does not sign in.

    ``tokens``: whether users authenticate by tokens, rather than by a proxy.
    """
    page = message_page(
        "Sign in",
        f"{message.rstrip('.')}.",
        tags.p(
            tags.a("Sign in", role="button", href=""),
            tags.span(
                "The browser asks for your name, and for your token as the password."
                if tokens
                else "It is possible through the proxy only.",
                class_="quiet",
            ),
            class_="action",
        ),
    )
    return rendered(page, Visitor("", prefix=prefix_of(public_url), auth=True))


def message_page(title: str, text: str, *more: Tag) -> Page:
    """Return a page that says one thing."""
    return Page(
        title, Tag("main")(tags.article(tags.h1(title), tags.p(text, class_="lead"), *more))
    )
