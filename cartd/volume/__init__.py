"""The local directory that holds the staged carts: every path and every change comes from here."""

from cartd.volume.volume import Volume

__all__ = ["Volume"]
