"""Compares the carts on the volume with the store: binding, recovery, repair, scrub, orphans."""
