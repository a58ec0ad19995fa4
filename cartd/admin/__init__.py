"""``cartd-cmd``: the commands for who runs the service."""

from cartd.admin.commands import main

__all__ = ["main"]
