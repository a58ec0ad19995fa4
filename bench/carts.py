"""Client of a cart service, cartd's or Pacifica's: post a manifest, poll, wait, delete."""

from __future__ import annotations

import time
from http.client import HTTPConnection, HTTPResponse

from bench.data import CartData
from bench.processes import MeasurementFailed
from bench.server import Server

ANSWER_SECONDS = 600.0
MIN_RATE = 10.0
"""Files per second; after two minutes, a slower service counts as hanging."""


def post(server: Server, uid: str, manifest: bytes) -> None:
    """Post a manifest and wait for the response."""
    answer = _asked(server, "POST", uid, manifest)
    if answer.status != 201:
        raise MeasurementFailed(f"the manifest of {uid} was answered with {answer.status}")


def delete(server: Server, uid: str) -> None:
    answer = _asked(server, "DELETE", uid)
    if answer.status != 200:
        raise MeasurementFailed(f"deleting {uid} was answered with {answer.status}")


def staged(server: Server, uid: str) -> int:
    """Return how many files of the cart are staged."""
    return int(_asked(server, "HEAD", uid).headers["X-Pacifica-Files-Staged"])


def wait_until_ready(server: Server, uid: str, files: int, began: float) -> None:
    """Poll the status until it is ``ready``; ``MeasurementFailed`` if that never happens.

    The poll interval is 10 ms or a fiftieth of the wait so far: too rare to cost anything, but
    frequent enough to measure the wait within a few percent.
    """
    while True:
        answer = _asked(server, "HEAD", uid)
        status = answer.headers["X-Pacifica-Status"]
        waited = time.monotonic() - began
        if status == "ready":
            return
        if status != "staging" or waited > 120 + files / MIN_RATE:
            message = answer.headers["X-Pacifica-Message"]
            raise MeasurementFailed(f"after {waited:.1f} s the cart {uid} is {status}: {message}")
        time.sleep(max(0.01, waited / 50))


def stage(server: Server, uid: str, data: CartData) -> float:
    """Post a cart; return the seconds until it is ready."""
    manifest = data.manifest
    began = time.monotonic()
    post(server, uid, manifest)
    wait_until_ready(server, uid, len(data.entries), began)
    return time.monotonic() - began


def _asked(server: Server, method: str, uid: str, body: bytes | None = None) -> HTTPResponse:
    """Return the response to one request, read to its end."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection = HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, f"/{uid}", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()
