"""Deterministic mutations of inputs, for the short run in the suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

LIMIT = 4096
"""Maximum bytes of an input."""
_MOST_STEPS = 4
_BYTES = b'\0\t\n\r "%&,-./:;=@[\\]{}\x7f\x80\xc3\xff019aA'
"""Bytes with a meaning in some format."""


def mutations(seed: str, corpus: Sequence[bytes], words: Sequence[bytes]) -> Iterator[bytes]:
    """Yield mutations without end; equal arguments give equal mutations."""
    random = Random(seed)
    while True:
        data = random.choice(corpus)
        for _ in range(random.randint(1, _MOST_STEPS)):
            data = _step(random, data, corpus, words)
        yield data[:LIMIT]


def _step(random: Random, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    start, stop = sorted(random.randint(0, len(data)) for _ in range(2))
    short = min(start + random.randint(1, 8), len(data))
    other = random.choice(corpus)
    way = random.randrange(8)
    if way == 0:
        return data[:start] + bytes([random.choice(_BYTES)]) + data[start + 1 :]
    if way == 1:
        return data[:start] + bytes([random.randrange(256)]) + data[start:]
    if way == 2:
        return data[:start] + data[short:]
    if way == 3:
        return data[:start] + random.choice(words) + data[start:]
    if way == 4:
        return data[:start] + random.choice(words) + data[short:]
    if way == 5:
        return data[:stop] + data[start:stop] + data[stop:]
    if way == 6:
        return data[:start] + other[random.randint(0, len(other)) :]
    return data[:start] + data[start:short] * random.randint(2, 40) + data[short:]
