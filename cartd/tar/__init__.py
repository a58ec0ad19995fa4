"""Computed tars: the position of every byte of a cart's tar, without opening any file."""
