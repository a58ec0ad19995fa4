"""Errors as problem details (RFC 9457), and when a response has that form.

Below ``/-/`` every error has it.  On the routes of Pacifica Cartd it is sent to clients that ask
for it: the body of Pacifica's services has a text under ``status``, where problem details have a
number, so one body cannot be both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import encode

from cartd.errors import Fault, InvalidInput, Problem, error_body
from cartd.http.headers import quality_of
from cartd.http.problem_types import PROBLEM_TYPES
from cartd.http.request_limits import path_segments, route_path
from cartd.model import MAX_UID_LENGTH
from cartd.page.problems import PROBLEMS

JSON = b"application/json"
PROBLEM_JSON = b"application/problem+json"

_BY_STATUS = {
    401: Problem.UNAUTHENTICATED,
    403: Problem.FORBIDDEN,
    404: Problem.NOT_FOUND,
    409: Problem.CONFLICT,
    412: Problem.PRECONDITION_FAILED,
    416: Problem.RANGE_NOT_SATISFIABLE,
    421: Problem.UNKNOWN_HOST,
    429: Problem.LIMIT_EXCEEDED,
    500: Problem.INTERNAL_ERROR,
    503: Problem.UNAVAILABLE,
    507: Problem.NO_SPACE,
}


class FaultDetails(Struct, frozen=True, kw_only=True):
    """A fault of the manifest."""

    pointer: str
    """A JSON pointer as the fragment of a URI (RFC 6901, section 6)."""
    detail: str


class ProblemDetails(Struct, frozen=True, kw_only=True):
    """The body of an error, as RFC 9457 defines it.  What is not known is absent."""

    type: str
    """URL of a page that explains the problem."""
    title: str
    """The same for all problems of this type."""
    status: int
    detail: str
    """The error, in one sentence."""
    instance: str | UnsetType = UNSET
    """Names the request in the logs of the service."""
    limit: str | UnsetType = UNSET
    """The setting of the exceeded limit."""
    retry_after: int | UnsetType = UNSET
    """Seconds after which the request may be sent again, as in Retry-After."""
    cart: str | UnsetType = UNSET
    """The uid in the path of the request."""
    cause: str | UnsetType = UNSET
    """Of a cart in error: the type of the problem that it failed with."""
    errors: list[FaultDetails] | UnsetType = UNSET
    """Faults of the manifest, at most 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFacts:
    """What an error response says, in either form."""

    code: int
    message: str
    limit: str | None = None
    problem: Problem | None = None
    """None: it follows from the status and the limit."""
    faults: Sequence[Fault] = ()
    cause: str | None = None
    """Of a cart in error: the name of the problem that it failed with, if that is known."""
    retry_after: int | None = None
    request_id: str | None = None


def serialize(
    facts: ErrorFacts, target: bytes, accept: Sequence[bytes], base: str | None
) -> tuple[bytes, bytes]:
    """Return content type and body of an error response.

    ``target`` and ``accept`` are those of the request, as received.  ``base`` is the URL before the
    path of the pages, empty for relative URLs; None if the service has no such pages, and never
    sends problem details.
    """
    path = _path_of(target)
    if base is None or not (_is_own(target, path) or _asks_for_problem(accept)):
        return JSON, error_body(facts.code, facts.message, facts.limit)
    details = _details(facts, path, base.removesuffix("/") + PROBLEMS)
    return PROBLEM_JSON, encode(details)


def _details(facts: ErrorFacts, path: Sequence[str], pages: str) -> ProblemDetails:
    problem = facts.problem
    if problem is None:
        by_status = _BY_STATUS.get(facts.code, Problem.INVALID_REQUEST)
        problem = by_status if facts.limit is None else Problem.LIMIT_EXCEEDED
    uid = _uid_in(path)
    return ProblemDetails(
        type=f"{pages}/{problem}",
        title=PROBLEM_TYPES[problem].title,
        status=facts.code,
        detail=facts.message,
        instance=UNSET if facts.request_id is None else _instance(facts.request_id),
        limit=UNSET if facts.limit is None else facts.limit,
        retry_after=UNSET if facts.retry_after is None else facts.retry_after,
        cart=UNSET if uid is None else uid,
        cause=UNSET if facts.cause is None else f"{pages}/{facts.cause}",
        errors=[FaultDetails(pointer=one.pointer, detail=one.detail) for one in facts.faults]
        or UNSET,
    )


def _instance(request_id: str) -> str:
    return f"urn:request:{quote(request_id, safe='')}"


def _path_of(target: bytes) -> list[str]:
    """Return the non-empty segments of the target's path; none if it is not a path."""
    try:
        return route_path(path_segments(target))
    except InvalidInput:
        return []


def _is_own(target: bytes, path: Sequence[str]) -> bool:
    """Whether the target is below ``/-/``, where nothing of Pacifica Cartd is."""
    return (len(path) > 1 and path[0] == "-") or (not path and target.startswith(b"/-/"))


def _asks_for_problem(accept: Sequence[bytes]) -> bool:
    """Whether the client names problem details, and does not prefer plain JSON by name."""
    wanted = quality_of(accept, PROBLEM_JSON)
    return wanted > 0 and wanted >= quality_of(accept, JSON)


def _uid_in(path: Sequence[str]) -> str | None:
    """Return the uid in the path of a request, if it may be one."""
    if len(path) == 1:
        uid = path[0]
    elif len(path) > 2 and list(path[:2]) == ["-", "carts"]:
        uid = path[2]
    else:
        return None
    return uid if len(uid) <= MAX_UID_LENGTH else None
