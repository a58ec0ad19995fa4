"""Descriptions of file permissions, for messages only.  Blocks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from stat import S_IMODE

if sys.platform == "win32":

    def user_name(uid: int) -> str:
        return str(uid)

    def group_name(uid: int) -> str:
        """Return the name of the primary group of a user."""
        return str(uid)

    def this_user() -> str:
        """Return the name of the user of this process."""
        return os.environ.get("USERNAME", "this user")

    def describe_permissions(path: Path) -> str:
        """Return owner, group and mode of a file: ``root:cartd 0640``; '' if unknown."""
        return ""

    def unreadable_by(uid: int, path: Path) -> Path | None:
        """Return the file or the parent directory that a user may not read; else None."""
        return None

else:
    import grp
    import pwd

    def user_name(uid: int) -> str:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def group_name(uid: int) -> str:
        """Return the name of the primary group of a user."""
        try:
            return grp.getgrgid(pwd.getpwuid(uid).pw_gid).gr_name
        except KeyError:
            return str(uid)

    def this_user() -> str:
        """Return the name of the user of this process."""
        return user_name(os.geteuid())

    def describe_permissions(path: Path) -> str:
        """Return owner, group and mode of a file: ``root:cartd 0640``; '' if unknown."""
        try:
            state = path.stat()
        except OSError:
            return ""
        try:
            group = grp.getgrgid(state.st_gid).gr_name
        except KeyError:
            group = str(state.st_gid)
        return f"{user_name(state.st_uid)}:{group} {S_IMODE(state.st_mode):04o}"

    def unreadable_by(uid: int, path: Path) -> Path | None:
        """Return the file or the parent directory that a user may not read, judged by its mode.

        None if all is readable, if an ACL may change the result, or if the user has no name.
        """
        try:
            user = pwd.getpwuid(uid)
            groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
        except (KeyError, OSError):
            return None
        if uid == 0:
            return None
        path = path.resolve()
        for place, needed in [*((above, 0o1) for above in reversed(path.parents)), (path, 0o4)]:
            try:
                state = place.stat()
                if "system.posix_acl_access" in getattr(os, "listxattr", lambda _: [])(place):
                    continue
            except OSError:
                return None
            mode = S_IMODE(state.st_mode)
            if state.st_uid == uid:
                mode >>= 6
            elif state.st_gid in groups:
                mode >>= 3
            if not mode & needed:
                return place
        return None
