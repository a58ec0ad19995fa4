"""The requests of a user: what the ``cart`` command and notebooks call."""

from __future__ import annotations

import getpass
import http
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Union

from cartd_client import download as downloading
from cartd_client import listing
from cartd_client import verify as verifying
from cartd_client import watch as watching
from cartd_client.errors import (
    ClientError,
    InvalidResponse,
    NotSupported,
    PartialCart,
    ServiceUnavailable,
)
from cartd_client.manifest import Manifest, default_uid
from cartd_client.model import (
    Directory,
    FileEntry,
    Options,
    Progress,
    Report,
    Source,
    Status,
    Target,
)
from cartd_client.transport import OnRetry, Response, Transport, quote_segment

POST_SILENCE = 900.0
"""Seconds that the service may take to check and store a manifest, which may have millions of
files; sent again, it would take as long again."""
_JSON = {"Content-Type": "application/json"}

PathLike = Union[str, "os.PathLike[str]"]
OnStatus = Callable[[Status], None]
OnProgress = Callable[[Progress], None]


class Client:
    """A cartd, or a Pacifica Cartd, and its carts.

    Requests that fail for a reason that may pass are sent again, without end unless ``retries``
    says otherwise, and ``on_retry`` is called before each wait.  All methods raise
    :class:`~cartd_client.errors.ClientError`.  Use it as a context manager, or close it.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        login: tuple[str, str] | None = None,
        cacert: PathLike | None = None,
        retries: int | None = None,
        on_retry: OnRetry | None = None,
    ) -> None:
        """``login`` is a name and a password for a proxy in front of the service."""
        self.transport = Transport(
            url,
            token,
            None if cacert is None else os.fspath(cacert),
            retries,
            on_retry,
            login=login,
        )
        self.user = _user(token, login)
        """The user of :func:`~cartd_client.manifest.default_uid`."""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all idle connections."""
        self.transport.close()

    # From a manifest to files

    def submit(self, manifest: Manifest, uid: str | None = None) -> str:
        """Post a manifest; return the uid of its cart, by default that of manifest and user.

        The same manifest under the same uid is the same cart, unless that is in error.
        """
        given, uid = uid, uid or default_uid(manifest, self.user)
        if given is None and self._is_known_elsewhere(uid):
            return uid
        with manifest.open() as body:
            self.transport.request(
                "POST", quote_segment(uid), headers=_JSON, body=body, silence=POST_SILENCE
            )
        return uid

    def _is_known_elsewhere(self, uid: str) -> bool:
        """Whether a Pacifica Cartd has this cart, of this manifest as the uid says.

        It would create another one at each post; cartd, which has a phase, does not.
        """
        answer = self.transport.request("HEAD", quote_segment(uid), ok=(404, 500))
        return (
            answer.status == http.HTTPStatus.NO_CONTENT
            and "X-Pacifica-Status" in answer.headers
            and "X-Pacifica-Phase" not in answer.headers
        )

    def status(self, uid: str) -> Status:
        """Return the status of a cart; raise NoSuchCart."""
        return watching.status(self.transport, uid)

    def watch(self, uid: str, timeout: float | None = None) -> Iterator[Status]:
        """Yield the status now and whenever it changes, until the cart is ready or in error.

        :raises WaitTimeout: ``timeout`` seconds have passed before.
        :raises NoSuchCart: there is none, or it was deleted meanwhile.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return watching.watch(self.transport, uid, deadline)

    def wait(
        self, uid: str, timeout: float | None = None, on_status: OnStatus | None = None
    ) -> Status:
        """Return the status of a cart when it is ready, perhaps without the files that failed.

        :raises CartFailed: the cart is in error.
        :raises WaitTimeout: ``timeout`` seconds have passed before; the cart is staged further.
        """
        last = None
        for last in self.watch(uid, timeout):
            if on_status is not None:
                on_status(last)
        if last is None or not last.is_ready:
            raise watching.cart_failed(uid, last)
        return last

    def download(
        self,
        uid: str,
        target: Target,
        *,
        filename: str | None = None,
        format: str = "tar",
        expected: Iterable[FileEntry] | None = None,
        options: Options | None = None,
        on_progress: OnProgress | None = None,
    ) -> Report:
        """Download a ready cart, and verify it while it arrives; resume what was interrupted.

        ``filename`` is the name of the tar, by default ``UID.tar``.  ``expected`` are the files to
        verify, by default those that the service lists; a Pacifica Cartd lists none.
        """
        source = Source(self.transport.url + quote_segment(uid), filename or f"{uid}.tar", format)
        if expected is None:
            expected = self._listed(uid)
        return downloading.download(self.transport, source, target, expected, options, on_progress)

    def fetch(
        self,
        manifest: Manifest,
        directory: PathLike,
        *,
        uid: str | None = None,
        timeout: float | None = None,
        filename: str | None = None,
        format: str = "tar",
        allow_partial: bool = True,
        options: Options | None = None,
        on_status: OnStatus | None = None,
        on_progress: OnProgress | None = None,
    ) -> Report:
        """Submit, wait, download, unpack and verify.

        The files are then in ``directory``, in the folder of the tar: ``filename`` without
        ``.tar``, by default the uid.

        :raises PartialCart: files are missing, and ``allow_partial`` is false; nothing is
            downloaded.
        """
        uid = self.submit(manifest, uid)
        status = self.wait(uid, timeout, on_status)
        if status.is_partial and not allow_partial:
            files = status.files
            raise PartialCart(
                f"{files.failed} of {files.total} files of the cart {uid} are missing", cart=uid
            )
        return self.download(
            uid,
            Directory(Path(directory)),
            filename=filename,
            format=format,
            expected=self.expected(manifest, uid),
            options=options,
            on_progress=on_progress,
        )

    def expected(self, manifest: Manifest, uid: str) -> Iterator[FileEntry]:
        """Yield the files of a manifest, to verify a download of its cart.

        A file without a hash sum has the one that the service has computed when it fetched the
        file from the archive, if the service lists files.
        """
        if all(file.hash_sum is not None for file in manifest.files()):
            yield from manifest.files()
            return
        listed = self._listed(uid) or iter(())
        for file in manifest.files():
            # The list may be shorter, and of another cart: the manifest's own facts count.
            known = next(listed, None)
            if file.hash_sum is None and known is not None and known.path == file.path:
                file = file._replace(hash_type=known.hash_type, hash_sum=known.hash_sum)
            yield file

    def verify(
        self,
        path: PathLike,
        files: Iterable[FileEntry],
        on_progress: OnProgress | None = None,
    ) -> Report:
        """Verify a tar, or the files below a directory, against ``files``."""
        return verifying.verify(Path(path), files, on_progress)

    # Carts

    def files(self, uid: str, failed: bool = False) -> Iterator[FileEntry]:
        """Yield the files of a cart in their order, or those that failed; raise NotSupported."""
        return listing.files(self.transport, uid, failed=failed)

    def carts(self, status: str | None = None, label: str | None = None) -> Iterator[Status]:
        """Yield the user's carts, newest first."""
        return listing.carts(self.transport, status=status, label=label)

    def retry(self, uid: str) -> Status:
        """Stage the files of a cart that failed again; raise RequestRejected if none did."""
        answer = self._change("POST", _cart(uid, "/retry"), done=http.HTTPStatus.CONFLICT)
        return self.status(uid) if answer is None else Status.from_document(answer.json())

    def set_labels(self, uid: str, labels: Sequence[str]) -> tuple[str, ...]:
        """Replace the labels of a cart; return them."""
        body = json.dumps({"labels": list(labels)}).encode()
        path = _cart(uid, "/labels")
        document = self.transport.request("PUT", path, headers=_JSON, body=body).json()
        kept = document.get("labels") if isinstance(document, dict) else None
        if not isinstance(kept, list) or not all(isinstance(label, str) for label in kept):
            raise InvalidResponse("The answer to a change of labels has no labels")
        return tuple(kept)

    def delete(self, uid: str) -> None:
        """Delete all carts of the uid; raise NoSuchCart."""
        self._change("DELETE", quote_segment(uid), done=http.HTTPStatus.NOT_FOUND)

    def _change(self, method: str, path: str, done: int) -> Response | None:
        """Send a request that has another answer, ``done``, if it has been sent before.

        None if that comes after an attempt whose answer was lost.
        """
        backoff = self.transport.backoff()
        while True:
            try:
                return self.transport.request(method, path, retry=False)
            except ServiceUnavailable as error:
                if error.status == http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                backoff.failed(error)
            except ClientError as error:
                if error.status == done and backoff.attempt:
                    return None
                raise

    def plan(self, manifest: Manifest) -> Mapping[str, Any]:
        """Return what a cart of this manifest would take, as the service tells it."""
        with manifest.open() as body:
            answer = self.transport.request(
                "POST", "-/plan", headers=_JSON, body=body, silence=POST_SILENCE
            ).json()
        if not isinstance(answer, dict):
            raise InvalidResponse("The service sent no JSON object for a plan")
        return answer

    def _listed(self, uid: str) -> Iterator[FileEntry] | None:
        """Return the files that the service lists; None if it does not list files."""
        files = self.files(uid)
        try:
            first = next(files, None)
        except NotSupported:
            return None
        return files if first is None else chain([first], files)

    def page(self, uid: str) -> str:
        """Return the URL of the cart's page for a browser."""
        return self.transport.url + _cart(uid)


def _cart(uid: str, below: str = "") -> str:
    return f"-/carts/{quote_segment(uid)}{below}"


def _user(token: str | None, login: tuple[str, str] | None) -> str:
    """Return the name in a token of cartd, else that of the login, else of the system's user."""
    if token and token.startswith("cartd_") and "." in token:
        return token[len("cartd_") :].rpartition(".")[0]
    if login is not None:
        return login[0]
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
