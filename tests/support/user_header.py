"""Runs ``twistd`` with a service that trusts a user name in a header.

::

    cartd.program = trusting_user_header(cartd.twistd)
    cartd.start()
    ada = Client(cartd, "ada")
    assert ada.request("HEAD", "/a-cart").status == 204
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.running_cartd import Answer, RunningCartd, wait_for


def trusting_user_header(command: Sequence[str]) -> tuple[str, ...]:
    """Return the command line of ``command``, a script, with trusted user headers."""
    return sys.executable, __file__, *command


@dataclass(eq=False, slots=True)
class Client:
    """A client of one user; without a name, of a service without authentication."""

    cartd: RunningCartd
    name: str = ""
    admin: bool = False

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        identity = {"x_test_user": self.name, "x_test_admin": "yes" if self.admin else ""}
        return self.cartd.request(method, path, body, **identity, **headers)

    def post(self, uid: str, body: bytes) -> Answer:
        return self.request("POST", f"/{uid}", body)

    def status(self, uid: str) -> str:
        return self.request("HEAD", f"/{uid}").headers["x-pacifica-status"]

    def wait_until(self, uid: str, status: str) -> None:
        wait_for(lambda: self.status(uid) == status)

    def owners(self) -> list[str]:
        """Return the owners of all carts, newest first, from ``cartd-cmd dump``."""
        return [
            cart["owner"]
            for cart in json.loads(self.cartd.run("cartd-cmd", "dump", "--json").stdout)
        ]


def _trust_user_header() -> None:
    from cartd.http.request import LimitedRequest
    from cartd.model import User

    process = LimitedRequest.process

    def asked(request: LimitedRequest) -> None:
        name = request.getHeader("x-test-user")
        if name:
            request.authenticated_user = User(
                name, admin=request.getHeader("x-test-admin") == "yes"
            )
        process(request)

    setattr(LimitedRequest, "process", asked)  # noqa: B010


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    _trust_user_header()
    runpy.run_path(sys.argv[0], run_name="__main__")
