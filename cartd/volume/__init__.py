"""The local directory that holds the staged carts: all access to it is in this package."""

from cartd.volume.verify import FileFacts
from cartd.volume.volume import Volume

__all__ = ["FileFacts", "Volume"]
