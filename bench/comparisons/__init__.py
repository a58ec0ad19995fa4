"""The comparisons by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bench.bench import Bench
from bench.comparisons import (
    attacks,
    client,
    curves,
    downloads,
    events,
    first_byte,
    heads,
    idle,
    manifests,
    slow_clients,
    staging,
)
from bench.figures import Row


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison and its description."""

    about: str
    compare: Callable[[Bench], Iterable[Row]]


COMPARISONS: Mapping[str, Comparison] = {
    "idle": Comparison("start time, and an idle service", idle.idle),
    "download-big": Comparison("a cart of 4 big files, against nginx", downloads.big),
    "download-small": Comparison("a cart of 10,000 small files, against tar", downloads.small),
    "client": Comparison("cart get -x, against curl, tar and sha1sum", client.client),
    "first-byte": Comparison("time to the first byte of large carts", first_byte.first_byte),
    "head": Comparison("the status of a cart, against Pacifica Cartd", heads.heads),
    "slow-clients": Comparison("200 slow downloads, every byte checked", slow_clients.slow_clients),
    "attacks": Comparison("1,500 clients that send or read a byte at a time", attacks.attacks),
    "events": Comparison("1,000 event streams, and the status of a cart", events.events),
    "manifests": Comparison("manifests of 100,000 and 1,000,000 entries", manifests.manifests),
    "staging-big": Comparison("staging 4 big files, against Pacifica and aria2c", staging.big),
    "staging-small": Comparison("staging 100 to 100,000 files, against both", staging.small),
    "flat": Comparison("staging 100,000 files, against cartd's own 1,000", staging.flat),
    "curves": Comparison("speed and memory over the size of a cart", curves.curves),
}
