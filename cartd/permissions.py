"""Who may read a file, in words for a message.  Nothing is decided by it.  Blocks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from stat import S_IMODE

if sys.platform == "win32":

    def user_name(uid: int) -> str:
        return str(uid)

    def group_name(uid: int) -> str:
        """The group of a user."""
        return str(uid)

    def this_user() -> str:
        """Who runs this process."""
        return os.environ.get("USERNAME", "this user")

    def describe_permissions(path: Path) -> str:
        """Owner, group and mode of a file: ``root:cartd 0640``; '' if that is not to be seen."""
        return ""

    def unreadable_by(uid: int, path: Path) -> Path | None:
        """What keeps a user from reading a file: that, or a directory above it."""
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
        """The group of a user."""
        try:
            return grp.getgrgid(pwd.getpwuid(uid).pw_gid).gr_name
        except KeyError:
            return str(uid)

    def this_user() -> str:
        """Who runs this process."""
        return user_name(os.geteuid())

    def describe_permissions(path: Path) -> str:
        """Owner, group and mode of a file: ``root:cartd 0640``; '' if that is not to be seen."""
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
        """What keeps a user from reading a file: that, or a directory above it; by mode alone.

        None, too, where an ACL may say something else, or the user has no name.
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
