"""Trying a file again: how often, after how long, and what is told of it in the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.archive import ArchiveError
from cartd.backoff import waits
from cartd.checksum import Mismatch
from cartd.errors import CartdError
from cartd.model import CartFile
from cartd.tolerance import Tolerance

T = TypeVar("T")
log = Logger()

LONGEST_PAUSE_ASKED = 300.0
"""Seconds of an archive's Retry-After that are honoured."""


class FileFailed(CartdError):
    """A file could not be staged; carries which one, for the store."""

    def __init__(self, file: CartFile, cause: Exception) -> None:
        super().__init__(f"Failed to stage {file.path} (archive id {file.archive_id}): {cause}")
        self.position = file.position
        self.cause = str(cause)


class Patience:
    """So many ``tries`` for each request; what comes wrong is told to ``tolerance``."""

    def __init__(
        self,
        tries: int,
        tolerance: Tolerance,
        clock: IReactorTime,
        random: Callable[[], float],
    ) -> None:
        self._tries = tries
        self._tolerance = tolerance
        self._clock = clock
        self._random = random

    async def with_file(self, file: CartFile, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` gives, once it works.

        :raises FileFailed: the tries are used up, or the failure is final.
        """
        pauses = waits(self._tries, self._random)
        wrong: list[str] = []
        while True:
            try:
                return await attempt()
            except OSError as error:
                raise FileFailed(file, error) from error
            except Mismatch as error:
                self._judge(wrong, str(error))
                failure: ArchiveError | Mismatch = error
            except ArchiveError as error:
                failure = error
            pause = next(pauses, None)
            if pause is None or not getattr(failure, "retryable", True):
                raise FileFailed(file, failure) from failure
            log.info("Trying {path} again: {failure}", path=file.path, failure=failure)
            await self._wait(pause, failure)

    async def _wait(self, pause: float, failure: Exception) -> None:
        asked = getattr(failure, "retry_after", None) or 0.0
        await deferLater(self._clock, max(pause, min(asked, LONGEST_PAUSE_ASKED)))

    def _judge(self, wrong: list[str], how: str) -> None:
        """Find out whose fault it is that a file came wrong, by how it comes the second time."""
        if not wrong and not self._tolerance.was_wrong():
            how = ""
        wrong.append(how)
        if len(wrong) == 2 and wrong[0] == how:
            self._tolerance.was_wrong_again()
