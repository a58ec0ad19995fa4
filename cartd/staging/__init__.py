"""Staging: copies the files of carts from the archive to the volume."""
