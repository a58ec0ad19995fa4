"""Descriptions of the tars of ready carts, from the rows of the carts alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from cartd.http.headers import default_filename, top_folder
from cartd.model import Cart, CartFormat, TarFacts
from cartd.tar.bag import BagFacts
from cartd.tar.index import Lengths
from cartd.tar.virtual_tar import LAYOUT_VERSION, etag


@dataclass(frozen=True, slots=True)
class TarDescription:
    """What is known of a tar before any of it is read; equal ``etag`` means equal bytes."""

    name: str
    """File name of the tar; without its suffix, the top folder inside."""
    length: int
    etag: str
    last_modified: float
    """Unix time since which the cart's tar has had these bytes.

    It is not before the last change of the tar, but may be in the same second.
    """
    format: CartFormat = field(default=CartFormat.TAR, kw_only=True)


def is_stored(cart: Cart, format_: CartFormat) -> bool:
    """Whether the tar in this format is on the volume, where its top folder is the cart's uid."""
    return cart.has_tar and cart.format is format_


def recorded_description(cart: Cart, name: str | None = None) -> TarDescription | None:
    """Describe the plain tar of a ready cart from its row alone; None if that does not suffice.

    It is called ``name``, or by default after the cart's posting.
    """
    name = name or default_filename(cart.created)
    stored = is_stored(cart, CartFormat.TAR)
    if cart.tar is None or not (stored or cart.tar.layout == LAYOUT_VERSION):
        return None
    return _tar_description(cart.tar, name, cart.uid if stored else top_folder(name))


def bag_description(cart: Cart, facts: BagFacts, name: str | None = None) -> TarDescription:
    """Describe the bag of a ready cart; see :meth:`TarIndexCache.bag_facts`."""
    name = name or default_filename(cart.created)
    top = cart.uid if is_stored(cart, CartFormat.BAG) else top_folder(name)
    return TarDescription(
        name, facts.length(top), facts.etag(top), facts.since, format=CartFormat.BAG
    )


@lru_cache(maxsize=1024)
def _tar_description(tar: TarFacts, name: str, top: str) -> TarDescription:
    """Cached, as clients request it repeatedly while they wait or compare."""
    return TarDescription(
        name,
        Lengths.loaded(tar.lengths).length(top),
        etag(tar.layout, tar.digest, top),
        tar.since,
    )
