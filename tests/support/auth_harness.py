"""An authenticator with a token file, whose threads and clock the test controls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from cartd.auth import Authenticator, TokenFile, create_authenticator
from cartd.config import load
from cartd.errors import CartdError
from cartd.model import User
from tests.support.volume_parts import HeldThreads


class AuthHarness:
    """``ask`` sends a request; ``threads`` holds blocking calls; ``file`` is the token file."""

    def __init__(self, directory: Path, auth: str = "token_file = {file}") -> None:
        self.file = TokenFile(directory / "tokens")
        self.tokens = {
            "alice": self.file.add("alice", admin=True),
            "bob": self.file.add("bob", admin=False),
        }
        self.threads = HeldThreads()
        self.clock = Clock()
        config = load(options={}, environ={}, ini="[auth]\n" + auth.format(file=self.file.path))
        authenticator = create_authenticator(config, self.threads, self.clock)
        assert authenticator is not None
        self.authenticator: Authenticator = authenticator

    def ask(self, token: str, peer: str = "192.0.2.1") -> User | CartdError:
        return self.authenticate(request(peer, authorization=f"Bearer {token}"))

    def authenticate(self, asking: Any) -> User | CartdError:
        return self.authenticator.try_authenticate(asking)

    def poll(self) -> None:
        """Poll the token file; a failure must not raise."""
        looking = Deferred.fromCoroutine(self.authenticator.poll())
        self.threads.run_all()
        assert looking.called
        looking.addErrback(lambda failure: failure.raiseException())

    def poll_for(self, seconds: int) -> None:
        """Poll once a second, as the service does."""
        for _ in range(seconds):
            self.clock.advance(1)
            self.poll()


def request(peer: str, **headers: str | list[str]) -> Any:
    """Return a request with these headers; ``x_user`` is the header X-User."""
    given = Headers()
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            given.addRawHeader(name.replace("_", "-"), value)
    address = _address(peer)
    channel = SimpleNamespace(getPeer=lambda: address)
    return SimpleNamespace(requestHeaders=given, channel=channel)


def _address(peer: str) -> IAddress:
    if peer == "unix":
        return UNIXAddress(None)
    kind = IPv6Address if ":" in peer else IPv4Address
    return kind("TCP", peer, 4000)
