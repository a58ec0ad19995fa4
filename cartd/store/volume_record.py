"""The identity number of the volume that the database's carts are on; blocking, for the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete, exists, insert, select

from cartd.store.schema import lock_schema, schema_transaction
from cartd.store.tables import cart, cartsystem

_PART = "volume"
_NUMBER = select(cartsystem.c.value).where(cartsystem.c.part == _PART)
_HAS_CARTS = select(exists().where(cart.c.deleted_date.is_(None), cart.c.files_staged > 0))


class VolumeRecord:
    """The database's record of the volume, locked against other processes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def number(self) -> int | None:
        """None until a number has been recorded."""
        return self._connection.scalar(_NUMBER)

    @property
    def has_carts(self) -> bool:
        """Whether an undeleted cart should have files on the volume."""
        return bool(self._connection.scalar(_HAS_CARTS))

    def write(self, number: int) -> None:
        """Record ``number``, of 31 bits."""
        self._connection.execute(delete(cartsystem).where(cartsystem.c.part == _PART))
        self._connection.execute(insert(cartsystem).values(part=_PART, value=number))


@contextmanager
def volume_record(url: str) -> Iterator[VolumeRecord]:
    """Read and write in one transaction; an exception rolls it back.

    Raises ``Unavailable``.
    """
    with schema_transaction(url) as connection:
        lock_schema(connection)
        yield VolumeRecord(connection)
