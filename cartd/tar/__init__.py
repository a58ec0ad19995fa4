"""The tar of a cart as arithmetic: which byte stands where, before any file is opened."""
