"""From the volume to the client: the bytes of a cart, as fast as they are taken."""
