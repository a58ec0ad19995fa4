"""What only browsers get: pages, the files that they load, and the forms that they send.

The pages are at the addresses where programs get JSON, or the status of a cart: a request gets the
page only if its Accept header names ``text/html`` and prefers it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlencode

from klein import Klein
from msgspec import UNSET
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from cartd.carts.submit import Submissions
from cartd.checksum import hash_name
from cartd.errors import (
    INTERNAL_ERROR,
    CartdError,
    CartNotFound,
    Forbidden,
    InvalidInput,
    NoCommonHash,
)
from cartd.http.carts import CART_STATUSES, MAX_ID, choice, integer, text
from cartd.http.form_tokens import FormTokens
from cartd.http.headers import NO_STORE, PUBLIC, prefers_html
from cartd.http.monitoring import ADMINS_ONLY, may_administer
from cartd.http.request import LimitedRequest, header_field, log_internal_error, prepare_error
from cartd.http.routes import response, set_header, static_response, viewer_of
from cartd.model import CartStatus, FileStatus, HashTypes, Outcome
from cartd.page.admin import ADMIN, admin_page
from cartd.page.assets import ASSETS, STATIC
from cartd.page.cart import NO_HASHES, Hashes, cart_page, cart_url
from cartd.page.carts import CARTS, carts_page, start_page
from cartd.page.layout import (
    FORM_FIELD,
    HEADERS,
    HTML,
    Page,
    Visitor,
    find_form,
    message_page,
    prefix_of,
    render,
)
from cartd.status.document import FailedFile, Status
from cartd.status.documents import StatusDocuments, failed_file
from cartd.status.listing import CartLists, CartQuery
from cartd.status.overview import Overviews
from cartd.store import Store
from cartd.tar.bag import common_algorithm

ASSET_PATH = f"{STATIC}/<name>"
FILTERS = ("status", "label", "owner")
LISTED = 50
"""Carts of one page of the list."""
ON_THE_START_PAGE = 5
FAILED_ON_A_PAGE = 50
HASHES_CACHE_SIZE = 256
"""Carts whose kinds of hashes are cached."""
MAX_FORM = 4096
"""Maximum bytes of a form."""
FOR_EVER = "public, max-age=31536000, immutable"
"""For addresses that change with their content."""


def is_browser(request: Request) -> bool:
    """Return whether the response to the request is a page."""
    accepted = header_field(request, "accept") or ""
    return request.method == b"GET" and prefers_html(accepted)


class Pages:
    """Klein routes of the pages."""

    app = Klein()
    """What has an address of its own."""
    variants = Klein()
    """The pages at addresses of other routes, for :func:`is_browser`."""
    app.url_map.strict_slashes = variants.url_map.strict_slashes = False

    def __init__(
        self,
        store: Store,
        documents: StatusDocuments,
        submissions: Submissions,
        *,
        download: IResource,
        auth: bool,
        tokens: bool,
        public_url: str | None,
        overviews: Overviews,
        form_tokens: FormTokens,
        lists: CartLists,
        listed: bool,
        recovered: Callable[[], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        """``download`` sends a ready cart; ``auth``: whether authentication is on, and
        ``tokens`` whether users may authenticate by tokens; ``listed``: whether carts are listed
        for clients that are not authenticated.

        ``public_url``: the address of the service, if it is not the one that clients use.

        All requests for carts wait for ``recovered()``.
        """
        self._form_tokens = form_tokens
        self._store = store
        self._documents = documents
        self._submissions = submissions
        self._download = download
        self._auth = auth
        self._tokens = tokens
        self._recovered = recovered
        self._overviews = overviews
        self._lists = lists
        self._listed = listed
        self._public_url = None if public_url is None else public_url.rstrip("/")
        self._prefix = prefix_of(public_url)
        self._now = now
        self._hashes: OrderedDict[tuple[int, int], Hashes] = OrderedDict()
        """By cart and version."""

    @app.route(ASSET_PATH, methods=["GET"])
    def static(self, request: Request, name: str) -> bytes:
        asset = ASSETS.get(name)
        if asset is None:
            return prepare_error(request, 404, "Not Found")
        current = request.args.get(b"v") == [asset.version.encode()]
        caching = FOR_EVER if current else PUBLIC
        body = static_response(request, asset.content, f'"{asset.version}"', caching)
        if request.code != 304:
            set_header(request, "Content-Type", asset.media_type)
        set_header(request, "X-Content-Type-Options", "nosniff")
        return body

    @app.route(ADMIN, methods=["GET"])
    async def admin(self, request: Request) -> bytes:
        if not may_administer(request):
            raise Forbidden(ADMINS_ONLY)
        visitor = self._visitor(request)
        page = admin_page(await self._overviews.collect(), visitor)
        return await self._answer(request, 200, page, visitor)

    @variants.route("/", methods=["GET"])
    async def start(self, request: Request) -> bytes:
        if uids := request.args.get(b"uid"):
            return self._see_other(request, cart_url(uids[0].decode("utf-8", "replace").strip()))
        visitor, carts = self._visitor(request), []
        if visitor.lists:
            await self._recovered()
            query = CartQuery(limit=ON_THE_START_PAGE)
            carts = (await self._lists.page(viewer_of(request), query)).carts
        return await self._answer(request, 200, start_page(visitor, carts, self._time()), visitor)

    @variants.route(CARTS, methods=["GET"])
    async def carts(self, request: Request) -> bytes:
        given = {name: text(request, name) or "" for name in FILTERS}
        query = CartQuery(
            limit=LISTED,
            status=choice(request, "status", CART_STATUSES) if given["status"] else None,
            partial=given["status"] == Outcome.PARTIAL,
            label=given["label"] or None,
            owner=given["owner"] or None,
            before=integer(request, "after", 1, MAX_ID),
        )
        await self._recovered()
        visitor = self._visitor(request)
        found = await self._lists.page(viewer_of(request), query)
        following = None if found.next is UNSET else CARTS + "?" + found.next.partition("?")[2]
        asked = {**given, "after": "" if query.before is None else str(query.before)}
        url = f"{CARTS}?{urlencode({name: value for name, value in asked.items() if value})}"
        page = carts_page(visitor, found.carts, self._time(), given, url, following)
        return await self._answer(request, 200, page, visitor)

    @variants.route(f"{CARTS}/<uid>", methods=["GET"])
    async def cart(self, request: Request, uid: str) -> bytes:
        return await self._cart(request, uid, lambda status: 200)

    @variants.route("/<uid>", methods=["GET"])
    async def cart_or_tar(self, request: Request, uid: str) -> bytes | IResource:
        """Send a page with the status that programs get, or the tar once it is ready."""
        await self._recovered()
        try:
            if (await self._documents.newest(viewer_of(request), uid)).status is CartStatus.READY:
                request.postpath = [uid.encode()]  # Klein has consumed it
                return self._download
        except CartNotFound:
            pass
        return await self._cart(request, uid, _code_of)

    async def _cart(self, request: Request, uid: str, code: Callable[[CartStatus], int]) -> bytes:
        await self._recovered()
        visitor = self._visitor(request)
        cart_id, status = await self._documents.newest_with_id(viewer_of(request), uid)
        failed = await self._failed_files(cart_id, _position(request))
        more = status.files.failed - FAILED_ON_A_PAGE if len(failed) > FAILED_ON_A_PAGE else 0
        hashes = await self._hashes_of(cart_id, status)
        page = cart_page(status, visitor, failed[:FAILED_ON_A_PAGE], more, hashes)
        return await self._answer(request, code(status.status), page, visitor)

    async def _failed_files(self, cart_id: int, after: int) -> list[FailedFile]:
        """Return one failed file more than a page shows, if there are that many."""
        files = await self._store.statuses.files(
            cart_id, status=FileStatus.ERROR, after=after, limit=FAILED_ON_A_PAGE + 1
        )
        return [failed_file(file) for file in files]

    async def _hashes_of(self, cart_id: int, status: Status) -> Hashes:
        """Return the hashes of a ready cart, or none.

        All files of the cart are read for it, so it is kept until the cart changes.
        """
        if status.status is not CartStatus.READY:
            return NO_HASHES
        key = cart_id, status.version
        if key not in self._hashes:
            found = await self._store.statuses.hash_types(cart_id)
            known = all(one.is_known for one in found)
            listed = {hash_name(one.hash_type) for one in found} if known else ()
            self._hashes[key] = Hashes(frozenset(listed), _has_common_hash(found))
            if len(self._hashes) > HASHES_CACHE_SIZE:
                self._hashes.popitem(last=False)
        return self._hashes[key]

    @app.route(f"{CARTS}/<uid>/form", methods=["POST"])
    async def act(self, request: Request, uid: str) -> bytes:
        """Do what a form of a page asks for, and send the browser back."""
        fields = _fields(request)
        self._form_tokens.check(fields.get(FORM_FIELD, ""), _user_name(request))
        await self._recovered()
        if fields.get("action") == "delete":
            await self._submissions.delete(viewer_of(request), uid)
            return self._see_other(
                request, CARTS if fields.get("back") == "list" else cart_url(uid)
            )
        if fields.get("action") == "retry":
            await self._submissions.retry(viewer_of(request), uid)
            return self._see_other(request, cart_url(uid))
        raise InvalidInput("action: must be delete or retry")

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> Any:
        return self._error(request, failure)

    @variants.handle_errors(Exception)
    def variant_failed(self, request: Any, failure: Failure) -> Any:
        return self._error(request, failure)

    async def _error(self, request: Request, failure: Failure) -> bytes:
        """Send the page of an error."""
        error = failure.value
        code, message = 500, INTERNAL_ERROR
        if isinstance(error, CartdError):
            code, message = error.code, str(error)
        elif isinstance(error, HTTPException):
            code, message = 404, "Not Found"
        else:
            log_internal_error(request, failure)
        prepare_error(request, code, message)  # its headers, and the line in the rejection log
        if code == 404:
            page = message_page("Not here", f"{message}. It may have been deleted.", find_form())
        else:
            page = message_page("That did not work", message)
        return await self._answer(request, code, page, self._visitor(request))

    def _visitor(self, request: Request) -> Visitor:
        assert isinstance(request, LimitedRequest)
        user = request.authenticated_user
        scheme = "https" if request.isSecure() else "http"
        return Visitor(
            base_url=self._public_url or f"{scheme}://{request.sent_host.decode('latin-1')}",
            guessed=self._public_url is None,
            prefix=self._prefix,
            user=None if user is None else user.name,
            auth=self._auth,
            tokens=self._tokens,
            lists=self._listed if user is None else True,
            # On public paths a client without credentials is not local where others need them.
            admin=user.admin if user is not None else not self._auth and may_administer(request),
            form_token=self._form_tokens.issue(_user_name(request)),
        )

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    async def _answer(self, request: Request, code: int, page: Page, visitor: Visitor) -> bytes:
        body = response(request, code, HTML, await render(page, visitor))
        for name, value in HEADERS:
            set_header(request, name, value)
        set_header(request, "Cache-Control", NO_STORE)
        return body

    def _see_other(self, request: Request, url: str) -> bytes:
        response(request, 303, HTML, b"")
        set_header(request, "Location", self._prefix + url)
        return b""


def _user_name(request: Request) -> str | None:
    assert isinstance(request, LimitedRequest)
    user = request.authenticated_user
    return None if user is None else user.name


def _has_common_hash(types: Sequence[HashTypes]) -> bool:
    """Return whether the files can be in a bag."""
    try:
        common_algorithm(types)
    except NoCommonHash:
        return False
    return True


def _code_of(status: CartStatus) -> int:
    """Return the status code of a program's GET for the tar of a cart that is not ready."""
    return 500 if status is CartStatus.ERROR else 202


def _position(request: Request) -> int:
    """Return the position after which the failed files are shown."""
    value = request.args.get(b"after", [b""])[0]
    return int(value) if value.isdigit() and len(value) < 10 else -1


def _fields(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    :raises InvalidInput: the body is no form.
    """
    body = request.content
    assert body is not None
    if body.seek(0, 2) > MAX_FORM:
        raise InvalidInput(f"The form exceeds {MAX_FORM} bytes")
    body.seek(0)
    try:
        found = parse_qs(body.read().decode(), max_num_fields=10)
    except ValueError:
        raise InvalidInput("The body must be an application/x-www-form-urlencoded form") from None
    return {name: values[0] for name, values in found.items()}
