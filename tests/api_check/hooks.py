"""Hooks of schemathesis: rules that the OpenAPI document cannot express, and more checks.

It loads this module by its name, in a process of its own.
"""

from __future__ import annotations

import json
import os
from typing import Any, TypeAlias, cast

import schemathesis
from hypothesis import strategies as st
from schemathesis import Case as _Case
from schemathesis import CheckContext, HookContext, Response
from schemathesis.generation import GenerationMode
from schemathesis.generation.meta import TestPhase

from cartd.manifest import COMPONENT_LIMIT, ID_LIMIT, PATH_LIMIT

Case: TypeAlias = _Case[Any]

KNOWN_UIDS = os.environ["API_CHECK_UIDS"].split()
"""Of carts that are ready, staged and in error."""
KNOWN_ETAG = os.environ["API_CHECK_ETAG"]
KNOWN_NAME = "x.tar"
"""By which the first of them has that tag."""
SEEN = os.environ["API_CHECK_SEEN"]
"""The file to which each response is appended."""

RANGES = ("bytes=0-0", "bytes=100-", "bytes=-5", "bytes=99999999-", "bytes=3-2", "bytes=0-1,5-6")
VALIDATORS = (KNOWN_ETAG, f"W/{KNOWN_ETAG}", "*", '"other"')


@schemathesis.hook
def filter_body(context: HookContext, body: object) -> bool:
    """Leave out manifests that the schema allows only because it cannot say why not."""
    if isinstance(body, dict) and isinstance(body.get("max_failed"), float):
        return False
    entries = body.get("fileids") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return True
    paths = [entry.get("path") for entry in entries if isinstance(entry, dict)]
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    normal = [_components(path) for path in paths if isinstance(path, str)]
    return (
        all(len(str(each).encode("utf-8", "replace")) <= ID_LIMIT for each in ids)
        and all(_fits(components) for components in normal)
        and not _clash(normal)
    )


def _components(path: str) -> tuple[str, ...]:
    return tuple(each for each in path.split("/") if each not in ("", "."))


def _fits(components: tuple[str, ...]) -> bool:
    sizes = [len(each.encode("utf-8", "replace")) for each in components]
    return max(sizes, default=0) <= COMPONENT_LIMIT and sum(sizes) + len(sizes) <= PATH_LIMIT


def _clash(paths: list[tuple[str, ...]]) -> bool:
    """Whether a path comes twice, or is a directory of another one."""
    files = set(paths)
    above = {path[:length] for path in paths for length in range(1, len(path))}
    return len(files) < len(paths) or not files.isdisjoint(above)


@schemathesis.hook
def flatmap_case(context: HookContext, case: Case) -> st.SearchStrategy[Case]:
    """Request existing carts, too, and parts of them: generated uids and tags match none."""
    if (
        case.meta is None
        or case.meta.generation.mode is not GenerationMode.POSITIVE
        or case.meta.phase.name is not TestPhase.FUZZING
        or "uid" not in case.path_parameters
        or case.method not in ("GET", "HEAD")
    ):
        return st.just(case)

    def known(uid: str, query: dict[str, str], headers: dict[str, str]) -> Case:
        case.path_parameters["uid"] = uid
        if case.method == "GET":
            case.query = query
            case.headers.clear()
            case.headers.update(headers)
        return case

    queries = st.fixed_dictionaries({}, optional={"filename": st.just(KNOWN_NAME)})
    conditions = dict.fromkeys(("If-Range", "If-None-Match", "If-Match"), VALIDATORS)
    headers = st.fixed_dictionaries(
        {"Range": st.sampled_from(RANGES)},
        optional={name: st.sampled_from(values) for name, values in conditions.items()},
    )
    more = st.builds(known, st.sampled_from(KNOWN_UIDS), queries, headers)
    return st.integers(0, 2).flatmap(lambda number: st.just(case) if number == 0 else more)


@schemathesis.hook
def after_call(context: HookContext, case: Case, response: Response) -> None:
    line = [response.request.method, case.operation.path, response.status_code]
    with open(SEEN, "a") as seen:  # noqa: PTH123
        seen.write(json.dumps(line) + "\n")


@schemathesis.check
def errors_have_one_form(ctx: CheckContext, response: Response, case: Case) -> None:
    """Every error is JSON of the one form of its path, whatever the request was."""
    if response.status_code < 400:
        return
    [content_type] = response.headers["content-type"]
    is_problem = case.path.startswith("/-/") or _asks_for_problem(response)
    assert content_type == ("application/problem+json" if is_problem else "application/json")
    if response.request.method == "HEAD":
        return
    said = response.json()
    if is_problem:
        assert said["status"] == response.status_code, said
        assert said["detail"] and said["type"].startswith("/-/problems/"), said
        return
    limit = {"limit"} & said.keys()
    assert said.keys() == {"status", "message", "traceback", "version"} | limit, said
    assert said["status"].startswith(f"{response.status_code} "), said
    assert said["message"] and said["traceback"] == "", said


def _asks_for_problem(response: Response) -> bool:
    accepted = {name.lower(): value for name, value in response.request.headers.items()}
    return "problem+json" in str(accepted.get("accept", ""))


@schemathesis.check
def server_errors_are_those_of_carts(ctx: CheckContext, response: Response, case: Case) -> None:
    """500 is a cart in error; 503 one not ready, of which a range or checksums were wanted."""
    if response.status_code < 500:
        return
    if response.status_code == 503 and case.path.endswith("/checksums"):
        assert response.json()["type"].endswith("/-/problems/not-ready")
        return
    if response.status_code == 503 and response.request.method == "GET":
        assert "range" in {name.lower() for name in response.request.headers} or any(
            name.lower().startswith("if-") for name in response.request.headers
        )
        return
    if response.request.method == "HEAD":
        [message] = response.headers["x-pacifica-message"]
    else:
        said = cast("dict[str, Any]", response.json())
        message = said["detail"] if "detail" in said else said["message"]
    assert response.request.method in ("GET", "HEAD"), message
    assert message.startswith("Failed to stage "), message
