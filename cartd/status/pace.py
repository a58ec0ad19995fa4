"""How fast carts are staged, and when they will be complete: pure estimates from samples.

Strategy: an estimate is a span, or none.  It is the span of several estimates that are each right
under another assumption (the rate of late or that of the whole time; the size or the number of the
files decides; the other carts stay or end), widened by how much the rates have varied so far.
Where that is too wide to be of use, there is none.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import Struct, structs
from msgspec.json import Decoder, Encoder

from cartd.status.document import Basis
from cartd.status.queue import FairQueue, Share

MIN_SECONDS = 10.0
"""Seconds of measuring before the first estimate."""
STALL_SECONDS = 20.0
"""Seconds without a byte after which measuring begins anew."""
RECENT_SECONDS = 10.0
"""Seconds of the recent rate."""
MIN_FILES = 10
"""Files that must be complete before their number is extrapolated."""
CHUNKS = 8
"""Parts of the measured time whose rates are compared."""
MAX_MARKS = 64
BASE_SPREAD = 0.22
"""Half the width of a span whose rates did not vary, as a logarithm."""
MAX_RATIO = 8.0
"""An estimate whose ``high`` is more than so many times its ``low`` is not given."""


class Pace(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the process that stages a cart has measured; what is not known is None."""

    at: float
    """Unix time of the measurement."""
    fetching: int = 0
    """Files that are being transferred."""
    here: int = 0
    """Bytes of the cart that are here, those of incomplete files included."""
    recalling: int = 0
    """Files on tape."""
    recent: int | None = None
    """Bytes per second of late."""
    mean: int | None = None
    """Bytes per second since the transfers began."""
    low: int | None = None
    """The cart is complete ``low`` to ``high`` seconds after ``at``."""
    high: int | None = None
    basis: Basis | None = None


_DECODER = Decoder(Pace)
_ENCODER = Encoder()


def dumped(pace: Pace) -> str:
    """Return the pace as JSON, for the store."""
    return _ENCODER.encode(pace).decode()


def loaded(text: str) -> Pace:
    """Return the pace of a result of :func:`dumped`."""
    return _DECODER.decode(text)


def differs(new: Pace, old: Pace) -> bool:
    """Whether ``new`` says anything that ``old`` does not, other than that time has passed."""
    if structs.replace(new, at=0.0, low=None, high=None) != structs.replace(
        old, at=0.0, low=None, high=None
    ):
        return True
    if new.low is None or new.high is None or old.low is None or old.high is None:
        return new.low is not old.low
    passed = new.at - old.at
    moved = max(abs(new.low - old.low + passed), abs(new.high - old.high + passed))
    return moved > 0.05 * new.high


@dataclass(frozen=True, slots=True)
class Sample:
    """What has been transferred of a cart, and what is left, at one time."""

    owner: str | None
    base_size: int
    """Bytes that were here before the transfers began."""
    done_size: int
    """Bytes of complete files, since the transfers began."""
    done_files: int
    left_size: int
    """Bytes of the other files, those of ``partial`` included."""
    left_files: int
    fetching: int
    partial: int
    recalling: int


class Span(NamedTuple):
    """A time to go, in seconds."""

    low: float
    high: float


class PaceMeter:
    """Measures all carts that one process stages."""

    def __init__(self) -> None:
        self._carts: dict[int, _Meter] = {}

    def measure(
        self, samples: Mapping[int, Sample], now: float, at: float, *, available: bool
    ) -> dict[int, Pace]:
        """Return the pace of each sampled cart.

        ``now`` is of a steady clock, ``at`` is the Unix time.  Carts that are not sampled are
        forgotten.  While the archive is not ``available``, nothing is measured.
        """
        steps = self.steps(samples, now, at, available=available)
        return dict(step for step in steps if step is not None)

    def steps(
        self, samples: Mapping[int, Sample], now: float, at: float, *, available: bool
    ) -> Iterator[tuple[int, Pace] | None]:
        """As :meth:`measure`, in steps of less than a millisecond; None while carts are compared.

        So a thousand carts do not block the reactor.
        """
        self._carts = {
            cart_id: self._carts.get(cart_id) or _Meter(now, sample)
            for cart_id, sample in samples.items()
        }
        meters, alone = self._carts, {}
        for cart_id, sample in samples.items():
            meters[cart_id].add(now, sample, available=available)
            alone[cart_id] = meters[cart_id].transfer_span()
            yield None
        shared = self._shared(samples, alone)
        for cart_id, sample in samples.items():
            one = self._pace(sample, meters[cart_id], alone[cart_id], shared[cart_id], at)
            yield cart_id, one

    @staticmethod
    def _shared(
        samples: Mapping[int, Sample], alone: Mapping[int, Span | None]
    ) -> dict[int, float]:
        """Return the part of the time at its present rate that each cart needs.

        A cart gets faster as others end.  Its work is its time at the present rate, times its
        present share: owners have equal shares, and the carts of an owner, too.
        """
        active = {
            cart_id: sample
            for cart_id, sample in samples.items()
            if sample.left_files > sample.recalling
        }
        carts: dict[str | None, int] = {}
        for sample in active.values():
            carts[sample.owner] = carts.get(sample.owner, 0) + 1
        work: dict[int, float] = {}
        for cart_id, sample in active.items():
            span = alone[cart_id]
            # A cart of unknown speed counts as one that stays.
            seconds = math.inf if span is None else math.sqrt(span.low * span.high)
            work[cart_id] = seconds / carts[sample.owner] / len(carts)
        queue = FairQueue(
            Share(cart_id, active[cart_id].owner, min(amount, 1e15))
            for cart_id, amount in work.items()
        )
        parts = dict.fromkeys(samples, 1.0)
        for cart_id, amount in work.items():
            ahead = queue.ahead(cart_id)
            if ahead is not None and amount < math.inf:
                whole = amount * carts[active[cart_id].owner] * len(carts)
                parts[cart_id] = min((amount + ahead.amount) / whole, 1.0)
        return parts

    @staticmethod
    def _pace(sample: Sample, meter: _Meter, alone: Span | None, part: float, at: float) -> Pace:
        recent, mean = meter.rates()
        pace = Pace(
            at=at,
            fetching=sample.fetching,
            here=sample.base_size + sample.done_size + sample.partial,
            recalling=sample.recalling,
            recent=None if recent is None else _rounded(recent, 3),
            mean=None if mean is None else _rounded(mean, 3),
        )
        span, basis = Span(0.0, 0.0), Basis.RATE
        if sample.left_files > sample.recalling:
            if alone is None:
                return pace
            # Others end, but others come.
            span = Span(alone.low * part, alone.high * (1 + part) / 2)
            basis = Basis.QUEUE if part < QUEUE_PART else Basis.RATE
        if sample.recalling:
            tape = meter.tape_span()
            if tape is None:
                return pace
            if tape.low * tape.high > span.low * span.high:
                basis = Basis.TAPE
            span = Span(max(span.low, tape.low), max(span.high, tape.high))
        if not 0 < span.high <= max(MAX_RATIO * span.low, MIN_SECONDS):
            return pace
        return structs.replace(
            pace,
            low=_rounded(span.low, 2),
            high=max(_rounded(span.high, 2), 1),
            basis=basis,
        )


QUEUE_PART = 0.8
"""A cart that needs less than this part of the time at its present rate is held up by others."""


class _Mark(NamedTuple):
    time: float
    size: float
    files: float
    recalled: float


_FIELDS = len(_Mark._fields)


class _Meter:
    """Measures one cart."""

    def __init__(self, now: float, sample: Sample) -> None:
        self._stalled = False
        """Whether measuring begins with the next byte."""
        self._begin(now, sample)

    def _begin(self, now: float, sample: Sample) -> None:
        self._tape_files = sample.recalling
        self._spacing = 1.0
        self._last = self._mark(now, sample)
        self._marks = array("d", self._last)
        """The fields of marks, one after the other: a cart may wait for days."""
        self._recent = deque([self._last])
        self._progress_at = now
        self._sample = sample

    def _mark(self, now: float, sample: Sample) -> _Mark:
        return _Mark(
            now,
            sample.done_size + sample.partial,
            sample.done_files + _begun(sample),
            self._tape_files - sample.recalling,
        )

    def add(self, now: float, sample: Sample, *, available: bool) -> None:
        mark = self._mark(now, sample)
        progress = mark.size > self._last.size or mark.files > self._last.files
        only_tape = sample.left_files <= sample.recalling
        if progress or only_tape or not sample.fetching:
            self._progress_at = now
        if not available or now - self._progress_at >= STALL_SECONDS:
            self._stalled = True
        elif progress or only_tape:
            self._stalled = False
        if self._stalled:
            self._begin(now, sample)
            return
        self._last, self._sample = mark, sample
        if now - self._marks[-_FIELDS] >= self._spacing:
            self._marks.extend(mark)
            if len(self._marks) > MAX_MARKS * _FIELDS:
                kept = range(0, len(self._marks), 2 * _FIELDS)
                self._marks = array("d", (x for at in kept for x in self._marks[at : at + _FIELDS]))
                self._spacing *= 2
        self._recent.append(mark)
        while now - self._recent[1].time >= RECENT_SECONDS:
            self._recent.popleft()

    @property
    def _first(self) -> _Mark:
        return _Mark(*self._marks[:_FIELDS])

    def _elapsed(self) -> float:
        return self._last.time - self._marks[0]

    def rates(self) -> tuple[float | None, float | None]:
        """Return the recent and the mean rate, in bytes per second."""
        if self._elapsed() < MIN_SECONDS:
            return None, None
        return _rate(self._recent[0], self._last), _rate(self._first, self._last)

    def transfer_span(self) -> Span | None:
        """Return the time for all that is left, at the rates so far and without tape."""
        if self._elapsed() < MIN_SECONDS or self._last.size <= self._first.size:
            return None
        sample, marks = self._sample, self._chunk_marks()
        left = max(sample.left_size - sample.partial, 0)
        times = _times(left, [mark.size for mark in marks], marks)
        if self._last.files - self._first.files >= MIN_FILES:
            times += _times(
                sample.left_files - _begun(sample), [mark.files for mark in marks], marks
            )
        if not times:
            return None
        spread = BASE_SPREAD + 0.7 * _error([mark.size for mark in marks], marks)
        return Span(min(times) / math.exp(spread), max(times) * math.exp(spread))

    def tape_span(self) -> Span | None:
        """Return the time until all files on tape are here, at the rate of recalls so far."""
        if self._elapsed() < MIN_SECONDS or self._last.recalled <= 0:
            return None
        marks = self._chunk_marks()
        recalled = [mark.recalled for mark in marks]
        rate = (recalled[-1] - recalled[0]) / self._elapsed()
        seconds = self._sample.recalling / rate
        spread = BASE_SPREAD + 1.2 * _error(recalled, marks)
        return Span(seconds / math.exp(spread), seconds * math.exp(spread))

    def _chunk_marks(self) -> list[_Mark]:
        """Return marks that part the measured time into equal chunks, as far as possible."""
        times = self._marks[::_FIELDS]
        start, elapsed = times[0], self._elapsed()
        wanted = (start + elapsed * number / CHUNKS for number in range(CHUNKS))
        chosen = {min(bisect_left(times, time - 1e-6), len(times) - 1) for time in wanted}
        places = [place * _FIELDS for place in sorted(chosen)]
        marks = [_Mark(*self._marks[place : place + _FIELDS]) for place in places]
        return marks if marks[-1] == self._last else [*marks, self._last]


def _begun(sample: Sample) -> float:
    """Return how many files the bytes of those in progress amount to."""
    if not sample.left_size or not sample.left_files:
        return 0.0
    return min(sample.partial / (sample.left_size / sample.left_files), sample.fetching)


def _rate(first: _Mark, last: _Mark) -> float:
    return max(last.size - first.size, 0.0) / max(last.time - first.time, 1e-9)


def _times(left: float, done: list[float], marks: list[_Mark]) -> list[float]:
    """Return the times for what is left, at the rate of the whole time and of its last part."""
    starts = (0, len(marks) * 2 // 3)
    times = []
    for start in starts:
        seconds = marks[-1].time - marks[start].time
        if (gained := done[-1] - done[start]) > 0 and seconds > 0:
            times.append(left * seconds / gained)
    return times


def _error(done: list[float], marks: list[_Mark]) -> float:
    """Return the relative standard error of the mean rate, from the rates of the chunks."""
    rates = [
        (after - before) / max(late.time - early.time, 1e-9)
        for before, after, early, late in zip(done, done[1:], marks, marks[1:], strict=False)
    ]
    mean = sum(rates) / len(rates)
    if len(rates) < 2 or mean <= 0:
        return 1.0
    variance = sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1)
    return math.sqrt(variance / len(rates)) / mean


def _rounded(number: float, digits: int) -> int:
    """Return the number, rounded to so many significant digits."""
    if number < 1:
        return round(number)
    return int(round(number, digits - 1 - int(math.log10(number))))
