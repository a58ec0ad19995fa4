"""The HTTP server: who may connect and for how long, up to the routes of ``cartd.rest``."""
