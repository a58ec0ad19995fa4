"""From the archive to the volume: which carts, which of their files, and in which order."""
