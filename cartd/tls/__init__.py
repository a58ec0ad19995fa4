"""TLS: certificates and keys from files, reloaded when they change."""
