"""The service killed at any moment, under load, and what must hold of it all the same.

``model`` says what must be, ``load`` asks and compares, ``doomed`` is the service that ends where
it is told to, ``ordeal`` kills it and starts it again, ``checks`` and ``accounts`` compare the
volume with the store, and ``soak`` goes on with all that for as long as it is told.
"""
