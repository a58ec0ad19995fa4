"""Compares carts on the volume with the store: binding, recovery, sync, repair, scrub, orphans."""
